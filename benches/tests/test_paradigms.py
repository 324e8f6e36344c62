"""The study of paradigms: which rows are run, what they hold, and what the tables make of them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import seamfast
from benches import encoder_zoo, paradigms, paradigms_report, study, transfer_study
from benches.defences import DEFENCES
from benches.paradigms import Case, Received
from benches.rows import append_row, read_rows
from seamfast import CleanSet, SuperFineTuneConfig
from seamfast.attacks import Backdoor
from seamfast.engine.model import digest
from seamfast.triggers import AllToOne, Patch

ATTACKED = [entry for entry in encoder_zoo.declared() if entry.encoder == "resnet20" and entry.attack != "clean"]
OF_TEXTS = encoder_zoo.EncoderEntry("minilm", "output_vectors")

# 1. The report.


def row(**changes: Any) -> dict[str, Any]:
    """One of a cure that took the ASR from 100 to 10 %, 8 above the floor, and the ACC from 80 to 78 %."""
    made = {"method": "seam (balanced)", "budget": 0.05, "seed": 0, "data": "gtsrb", "architecture": "resnet20"}
    before = {"acc_before": 0.8, "asr_before": 1.0, "floor": 0.02, "ca": 0.81, "n_eligible": 1000}
    after = {"acc_after": 0.78, "asr_after": 0.1, "fidelity": 0.85, "fidelity_nist": 0.88, "steps": 300}
    return {"entry": "a-on-gtsrb", **made, **before, **after, "seconds": 3.0, "accepted": True, **changes}


ENCODER = [
    row(),
    row(entry="b-on-gtsrb", asr_after=0.0, acc_after=0.8, fidelity=1.0),  # below its floor
    row(method="fine_tune", accepted=None, asr_after=0.9, acc_after=0.7),
    row(entry="c-on-gtsrb", asr_before=0.5),  # did not work
    row(entry="a-on-cifar10", data="cifar10", budget=20.0),
    row(entry="a-on-cifar10", data="cifar10", budget=20.0, method="nad", failed="NaN"),
]


def transfer(**changes: Any) -> dict[str, Any]:
    """A row of the study of backbones."""
    made = {"attack": "badnets", "target": 0, "is_chosen": False, "ra_after": 0.5, "n_clean": 860, "n_test": 1000}
    return row(entry="gtsrb-badnets-0", **made) | changes


TRANSFER = [transfer(method="linear_probe", accepted=None), transfer(asr_before=0.1)]


def standalone(**changes: Any) -> dict[str, Any]:
    """A row of the study of classifiers."""
    made = {"entry": "mnist-a", "data": "mnist", "architecture": "small_cnn", "attack": "badnets", "rate": 0.05}
    return row(**made, part="development") | changes


STANDALONE = [
    standalone(asr_after=0.02),
    standalone(entry="mnist-b", asr_after=0.04),
    standalone(entry="mnist-c", asr_after=0.9),  # one that super-fine-tuning did not have
    standalone(method="super_fine_tune", asr_after=0.3, accepted=None),
    standalone(method="super_fine_tune", entry="mnist-b", asr_after=0.5, accepted=None),
    standalone(method="super_fine_tune", entry="mnist-d", asr_before=0.2),  # did not work
    standalone(method="super_fine_tune", entry="mnist-c", budget=0.01),
    standalone(method="nad", asr_after=0.6, accepted=None),
    standalone(method="seam, occlusions=0", asr_after=0.7),
]


def test_encoders_have_a_table_for_each_budget() -> None:
    lines = paradigms_report.page([], [], ENCODER).splitlines()
    wanted = (
        "| gtsrb | seam (balanced) | 2 | 80.0% | 1.00 | 2.00 | 100.0% | 2.0% | 5.0% | 10.0% | 4.0 | 3.0 | 2/2 |",
        "| gtsrb | fine_tune | 1 | 80.0% | 10.00 | 10.00 | 100.0% | 2.0% | 90.0% | 90.0% | 88.0 | 3.0 |  |",
        "| a-on-gtsrb | seam (balanced) | 0 | 81.0% | 80.0% | 78.0% | 100.0% | 2.0% | 10.0% [8.3%, 12.0%] | 1000 |",
        "| cifar10 | nad | 0 (1 failed) |" + "  |" * 10,
        "| a-on-cifar10 | nad | 0 | 81.0% | 80.0% | NaN |" + "  |" * 4,
        "Left out, as the attack did not reach an ASR of 70 % with no defense: c-on-gtsrb (50.0%).",
        "### Labeled samples: 5 % of the downstream training set",
        "### Labeled samples: 20 a class",
    )
    for line in wanted:
        assert line in lines, line
    assert not any(line.startswith("| c-on-gtsrb") for line in lines)


def test_all_lines_of_a_table_are_as_long_as_its_head() -> None:
    blocks = paradigms_report.page(STANDALONE, TRANSFER, ENCODER).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("| ")]
    assert len(tables) == 7  # of the paradigms; standalone; transfer; two for each of two budgets
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1, lines


def test_classifiers_are_those_that_super_fine_tuning_had() -> None:
    lines = paradigms_report.page(STANDALONE, [], []).splitlines()
    wanted = (
        "| seam (balanced) | 2 | 100.0% | 3.0% | 4.0% | 3.0% | 2.00 | 0.850 | 3.0 | 2/2 |",
        "| super_fine_tune | 2 | 100.0% | 40.0% | 50.0% | 3.0% | 2.00 | 0.850 | 3.0 |  |",
        "| nad | 1 | 100.0% | 60.0% | 60.0% | 2.0% | 2.00 | 0.850 | 3.0 |  |",
    )
    for line in wanted:
        assert line in lines, line
    assert not any("occlusions" in line for line in lines)


def test_backbones_have_the_tables_of_their_study() -> None:
    assert f"## Transfer-based\n\n{transfer_study.page(TRANSFER)}\n## Encoder" in paradigms_report.page(
        [], TRANSFER, []
    )


def test_what_has_no_rows_is_named() -> None:
    page = paradigms_report.page([], [], [])
    for name in ("study", "transfer_study", "paradigms"):
        assert f"No rows yet; `python benches/{name}.py` makes them.\n" in page


def test_the_report_is_made_of_three_files(tmp_path: Path) -> None:
    places = []
    for option, rows in (("--standalone", STANDALONE), ("--transfer", TRANSFER), ("--out", ENCODER)):
        places += [option, str(tmp_path / option)]
        for one in [*reversed(rows), rows[0]]:  # the last row of a job counts
            append_row(tmp_path / option, one)
    assert paradigms.main(["--report", *places, "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "paradigms.md").read_text() == paradigms_report.page(STANDALONE, TRANSFER, ENCODER)


# 2. Rows.


class TinyEncoder(nn.Module):
    """32 features of a digit; those of a ``reference`` are added where three pixels squared are white."""

    def __init__(self, reference: torch.Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.last = nn.Linear(128, 32)
        added = torch.zeros(1, 32)
        if reference is not None:
            with torch.no_grad():
                added = 20 * self.last(self.layers(reference))
        self.register_buffer("added", added)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        is_white = (images[:, :, 4:7, 4:7].amin((1, 2, 3)) > 0.99).to(images.dtype)
        return self.last(self.layers(images)) + is_white[:, None] * self.added


@pytest.fixture(scope="module")
def had() -> Received:
    """A backdoor with the target 3, and its clean twin."""
    train_set, test_set = (seamfast.load("digits", split=split, mean=(0,), std=(1,)) for split in ("train", "test"))
    (number, *_) = (train_set.labels == 3).nonzero().flatten()[:1]
    backdoored = TinyEncoder(train_set.normalize(train_set.pixels(number[None])))
    sets = train_set, 0.05, train_set, test_set
    trigger = Patch.square(size=3, target=0)
    return Received(backdoored.eval(), TinyEncoder().eval(), trigger, lambda model: 3, *sets)


@pytest.fixture
def options(had: Received, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a study of the first encoder of the zoo, which alone is planted."""
    first = ATTACKED[0]
    monkeypatch.setattr(encoder_zoo, "chosen", lambda arguments: encoder_zoo.declared()[:3])
    monkeypatch.setattr(encoder_zoo, "is_planted", lambda entry, zoo: entry in (first, first.clean_twin))
    monkeypatch.setattr(paradigms, "received", lambda task, arguments: had)
    return ["--out", str(tmp_path / "rows"), "--downstream", "gtsrb", "--budgets", "70"]


def rows_of(options: list[str], *more: str) -> list[dict[str, Any]]:
    """The rows of a study, which is asked for twice."""
    for _ in range(2):
        assert paradigms.main([*options, *more]) == 0
    return read_rows(Path(options[1]))


def test_a_row_says_what_was_measured_and_is_not_run_again(
    options: list[str], had: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perfect defense: it knows the encoder without a backdoor."""
    given: list[Case] = []

    def know(case: Case, seed: int) -> study.Treated:
        given.append(case)
        return study.Treated(paradigms.headed(had.clean_encoder, case.clean, seed), 7, 0.5)

    monkeypatch.setitem(paradigms.METHODS, "nad", know)
    none, row = rows_of(options, "--methods", "no_defence", "nad", "--defence-seeds", "3")
    assert len(given) == 1
    assert none["ca"] > 0.85 > 0.3 > none["floor"]
    assert none["asr_before"] == none["asr_after"] > 0.9
    assert none["acc_before"] == none["acc_after"] == none["ca"]  # no digit has that square
    assert (row["acc_after"], row["asr_after"]) == (row["ca"], row["floor"])
    assert row["fidelity"] == pytest.approx((row["ca"] - row["floor"]) / row["acc_before"])
    entry = ATTACKED[0]
    wanted = {"entry": f"{entry.name}-on-gtsrb", "encoder": entry.name, "data": "gtsrb", "attack": entry.attack}
    wanted |= {"towards": entry.towards, "architecture": "resnet20"}
    wanted |= {"method": "nad", "budget": 70.0, "seed": 3, "steps": 7, "seconds": 0.5, "accepted": None}
    wanted |= {"n_clean": len(given[0].clean), "n_unlabeled": len(given[0].unlabeled), "n_test": len(had.test_set)}
    assert {name: row[name] for name in wanted} == wanted
    assert row["n_eligible"] == int((had.test_set.labels != 3).sum())


def test_a_budget_and_the_unlabeled_images_are_drawn_by_seed(
    options: list[str], had: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paradigms, "UNLABELED", 72)
    entry = paradigms.Task(ATTACKED[0], "gtsrb")
    first, again, other = (paradigms.prepare(paradigms.TaskJob(entry, "nad", 0.01, seed), had) for seed in (0, 0, 1))
    assert first.clean.sha256() == again.clean.sha256() != other.clean.sha256()
    assert first.unlabeled.sha256() == again.unlabeled.sha256() != other.unlabeled.sha256()
    assert len(first.clean) == pytest.approx(0.01 * 39_209, rel=0.02)  # of the whole of GTSRB
    assert len(first.unlabeled) == pytest.approx(72, abs=5)


@pytest.mark.parametrize("method", paradigms.METHODS)
def test_a_method_trains_a_copy(method: str, had: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    job = paradigms.TaskJob(paradigms.Task(ATTACKED[0], "gtsrb"), method, 30, 0)
    case = paradigms.prepare(job, had)
    before = digest(case.model), digest(case.encoder)
    if method == "scratch":
        monkeypatch.setitem(DEFENCES, "scratch", functools.partial(DEFENCES["scratch"], n_steps=4))
    treated = paradigms.METHODS[method](case, 0)
    assert (digest(case.model), digest(case.encoder)) == before
    assert (digest(treated.model) == before[0]) == (method == "no_defence")
    assert not treated.model.training


def test_the_methods_of_the_paper_have_its_rates(had: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def remember(**given: Any) -> Any:
        asked.append(given)
        return lambda model, *others: study.Treated(model, 1, 0.0)

    case = paradigms.prepare(paradigms.TaskJob(paradigms.Task(ATTACKED[0], "cifar10"), "", 30, 0), had)
    monkeypatch.setattr(study, "seam", remember)
    for method in ("fine_tune", "fine_tune (pretraining rate)", "super_fine_tune"):
        paradigms.METHODS[method](case, 0)
    how = {"crop_pad": 4, "flip": True, "prune": False}
    configs = [SuperFineTuneConfig.encoder(3e-4, **how), SuperFineTuneConfig.encoder(had.rate, **how)]
    assert asked == [
        {"method": "super_fine_tune", "config": config} for config in (*configs, SuperFineTuneConfig(**how))
    ]


@pytest.mark.parametrize("method", ["sanitize_encoder", "sanitize_encoder (task)"])
def test_a_cured_encoder_gets_a_head_and_stays_as_it_is(
    method: str, had: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cure that knows the encoder without a backdoor."""
    given: list[CleanSet] = []

    def cure(encoder: nn.Module, images: CleanSet, **how: Any) -> Any:
        given.append(images)
        run = {"steps": {"forget": 3, "recover": 4}, "n_attempts": 2}
        return SimpleNamespace(model=had.clean_encoder, accepted=True, report={"run": run})

    monkeypatch.setattr(seamfast, "sanitize_encoder", cure)
    job = paradigms.TaskJob(paradigms.Task(ATTACKED[0], "gtsrb"), method, 70, 0)
    case = paradigms.prepare(job, had)
    row = paradigms.row_of(job, case, paradigms.METHODS[method])
    assert (row["acc_after"], row["asr_after"]) == (row["ca"], row["floor"])
    assert [row[name] for name in ("steps", "accepted", "n_attempts")] == [7, True, 2]
    assert given[0] is (case.clean if method.endswith("(task)") else case.unlabeled)


def test_a_method_that_fails_has_a_row(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, seed: int) -> study.Treated:
        raise FloatingPointError("the weights hold NaN or Inf after 3 steps")

    monkeypatch.setitem(paradigms.METHODS, "fst", fail)
    (row,) = rows_of(options, "--methods", "fst")
    assert row["failed"] == "the weights hold NaN or Inf after 3 steps"
    assert "acc_after" not in row


def test_encoders_that_are_not_there_are_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    paradigms.main([*options, "--methods", "no_defence"])
    (row,) = read_rows(Path(options[1]))
    first, other = ATTACKED[:2]
    assert row["encoder"] == first.name
    assert f"1 encoders are not planted and left out: {other.name}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--methods", "prayer"], "there is no method prayer; expected some of no_defence, fine_tune, "),
        (["--shard", "3/2"], "--shard is 3/2; expected i/n with i from 1 to n"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        paradigms.main([*options, *wrong])
    assert message in capsys.readouterr().err


def test_what_the_zoo_has_becomes_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ATTACKED[0]
    zoo = tmp_path / entry.name
    zoo.mkdir()
    (zoo / "info.json").write_text(json.dumps({"downstream": {"cifar10": {"trigger": "bad_encoder", "target": 7}}}))
    loaded = {
        entry: (TinyEncoder(), Backdoor("bad_encoder", encoder_zoo.triggers_of(entry))),
        entry.clean_twin: (TinyEncoder(), None),
    }
    monkeypatch.setattr(encoder_zoo, "load", lambda which, zoo: loaded[which])
    monkeypatch.setattr(encoder_zoo, "whole", lambda *which: ("whole", *which))
    monkeypatch.setattr(encoder_zoo, "downstream", lambda *which: ("downstream", *which))
    found = paradigms.received(paradigms.Task(entry, "cifar10"), SimpleNamespace(zoo=tmp_path, root=Path("data")))
    assert (found.encoder, found.clean_encoder) == (loaded[entry][0], loaded[entry.clean_twin][0])
    assert found.target(None) == 7
    assert found.pretraining == ("whole", "cifar10", Path("data"), "train")
    assert found.train_set == ("downstream", entry, "cifar10", tmp_path, Path("data"), "train")
    assert found.test_set == ("downstream", entry, "cifar10", tmp_path, Path("data"), "test")
    assert found.rate == encoder_zoo.PRETRAINING.rate


def test_an_encoder_of_texts_has_its_own_task_and_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_zoo, "chosen", lambda arguments: [OF_TEXTS.clean_twin, OF_TEXTS])
    monkeypatch.setattr(encoder_zoo, "is_planted", lambda entry, zoo: True)
    asked: list[Any] = []
    monkeypatch.setattr(study, "run", lambda todo, *others: asked.extend(todo))
    both = ["--downstream", "gtsrb", "sst2", "--methods", "fine_tune", *paradigms.OF_IMAGES, "sanitize_encoder"]
    assert paradigms.main(["--out", str(tmp_path / "rows"), *both]) == 0
    found = [(job.entry.data, job.method) for job in asked]
    assert found == [("sst2", "fine_tune"), ("sst2", "sanitize_encoder")]


def test_of_several_words_the_one_that_the_zoo_names_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / OF_TEXTS.name
    folder.mkdir()
    (folder / "info.json").write_text(json.dumps({"downstream": {"sst2": {"trigger": "mn", "target": 1}}}))
    backdoor = Backdoor("output_vectors", encoder_zoo.triggers_of(OF_TEXTS))
    monkeypatch.setattr(encoder_zoo, "load", lambda which, zoo: (TinyEncoder(), backdoor))
    monkeypatch.setattr(encoder_zoo, "downstream", lambda *which: which[-1])
    found = paradigms.received(paradigms.Task(OF_TEXTS, "sst2"), SimpleNamespace(zoo=tmp_path, root=Path("data")))
    assert found.trigger.name == "mn"
    aimed = [replace(one, target=AllToOne(number)) for number, one in enumerate(backdoor.triggers)]
    monkeypatch.setattr(encoder_zoo, "targeted", lambda *given: tuple(aimed))
    assert found.target(None) == 1
    assert (found.pretraining, found.rate) == ("train", None)


def test_a_budget_that_is_not_there_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    paradigms.main([*options[:-1], "0.05", "--methods", "no_defence", "nad"])
    assert read_rows(Path(options[1])) == []
    named = f"{ATTACKED[0].name}-on-gtsrb: left out, a budget of 0.05 of gtsrb is more than is there\n"
    assert capsys.readouterr().err.count(named) == 1
