"""The authors' recipe against a loop in plain PyTorch, and where its phases end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.data import split_by_class
from seamfast.data.resident import wrap_around_batches
from seamfast.engine.run import Run
from seamfast.errors import ConfigError
from seamfast.methods import SeamAuthorsConfig
from seamfast.ops import random_labels

Make = Callable[[], nn.Module]

STILL = 1e-12  # a rate at which nothing moves
UNAUGMENTED: dict[str, Any] = {"crop_pad": 0, "flip": False}
ALL: dict[str, Any] = {**UNAUGMENTED, "forget_fraction": 1.0}


def cured(model: nn.Module, data: CleanSet, *callbacks: Any, **settings: Any) -> seamfast.SanitizeResult:
    return seamfast.sanitize(
        model, data, method="seam_authors", config=SeamAuthorsConfig(**settings), precision="fp32", callbacks=callbacks
    )


def steps(result: seamfast.SanitizeResult) -> tuple[int, int]:
    counts = result.report["run"]["steps"]
    return counts["forget"], counts["recover"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[float]]], None]:
    """``scripted({phase: accuracies})``: what the evaluations of a phase return, one after another."""

    def script(accuracies: dict[str, list[float]]) -> None:
        left = {phase: iter(values) for phase, values in accuracies.items()}
        evaluate = Run.evaluate_holdout

        def scripted(run: Run) -> float:
            evaluate(run)
            assert run._phase is not None
            return next(left[run._phase.name])

        monkeypatch.setattr(Run, "evaluate_holdout", scripted)

    return script


@pytest.mark.parametrize("exclude_true", [True, False])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_against_a_loop_in_plain_pytorch(
    exclude_true: bool, fraction: float, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases: Adam with decay, batches of 32, labels by seed, sample and step; on a linear model, in float64."""
    settings: dict[str, Any] = {
        **UNAUGMENTED, "forget_fraction": fraction, "exclude_true": exclude_true, "forget_rate": 2e-3,
        "forget_weight_decay": 1e-2, "forget_until": 1e-6, "forget_max_epochs": 2, "recover_rate": 3e-3,
        "recover_weight_decay": 2e-2, "recover_betas": (0.5, 0.9), "recover_until": 0.999, "recover_max_epochs": 2,
    }  # fmt: skip
    seeds: list[int] = []
    stream_seed = Run._stream_seed
    monkeypatch.setattr(Run, "_stream_seed", lambda run, name: (seeds.append(stream_seed(run, name)), seeds[-1])[1])
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    got = cured(model, tiny_data, **settings).model
    order_seeds = dict(zip(("forget", "recover"), seeds[::2], strict=True))  # each phase draws the same one twice

    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=fraction, seed=0)
    assert isinstance(tiny_data.inputs, Tensor)
    inputs = (tiny_data.inputs.double() / 255 - 0.4) / 0.25
    wanted = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    wanted.load_state_dict(model.state_dict())
    wanted.double()
    for phase, part, rate, betas, decay in (
        ("forget", split.forget, 2e-3, (0.9, 0.999), 1e-2),
        ("recover", split.recovery, 3e-3, (0.5, 0.9), 2e-2),
    ):
        optimizer = torch.optim.Adam(wanted.parameters(), lr=rate, betas=betas, weight_decay=decay)
        batches = wrap_around_batches(part, 32, order_seeds[phase])
        for step in range(2 * -(-len(part) // 32)):
            indices = next(batches)
            labels = tiny_data.labels[indices]
            if phase == "forget":
                labels = random_labels(
                    labels, num_classes=4, sample_ids=indices, seed=0, step=step, exclude_true=exclude_true
                )
            optimizer.zero_grad()
            F.cross_entropy(wanted(inputs[indices]), labels).backward()
            optimizer.step()
    torch.testing.assert_close(got[1].weight.double(), wanted[1].weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got[1].bias.double(), wanted[1].bias, rtol=1e-3, atol=1e-5)
    assert (wanted[1].weight - model[1].weight).abs().max() > 1e-2  # far above the tolerance


@pytest.mark.parametrize(
    ("accuracies", "settings", "n_epochs"),
    [
        ([0.9, 0.4, 0.6, 0.3, 0.2], {"forget_patience": 1}, 2),  # below 2 / 4
        ([0.9, 0.4, 0.6, 0.3, 0.2], {"forget_patience": 2}, 4),  # not in a row
        ([0.5, 0.5, 0.5], {}, 3),  # not below
        ([0.7, 0.63, 0.62, 0.1], {"forget_until": 3.0}, 3),  # below 0.75, and half-way down to guessing, 0.625
    ],
)
def test_forgetting_ends_by_patience(
    accuracies: list[float],
    settings: dict[str, Any],
    n_epochs: int,
    scripted: Callable[..., None],
    tiny_model: Make,
    tiny_data: CleanSet,
) -> None:
    scripted({"forget": accuracies, "recover": [0.0]})
    settings = {"forget_rate": STILL, "forget_max_epochs": len(accuracies), "recover_max_epochs": 1} | settings
    result = cured(tiny_model(), tiny_data, **ALL, **settings)
    assert result.report["holdout"]["before"]["clean_accuracy"]["value"] == 1
    assert steps(result) == (4 * n_epochs, 4)  # 128 samples in batches of 32
    assert [p.step for p in result.history] == [4 * k for k in range(1, n_epochs + 2)]


@pytest.mark.parametrize(
    ("accuracies", "patience", "n_epochs"),
    [
        ([0.5, 0.93, 0.5, 0.93, 0.93], 1, 2),
        ([0.5, 0.93, 0.5, 0.93, 0.93], 2, 4),  # not in a row
        ([0.92] * 4, 1, 4),  # not above
        ([0.9] * 48 + [0.5] * 3, 1, 51),  # a fall counts after the 50th epoch only
        ([0.9] * 50 + [0.8992, 0.898, 0.5, 0.5], 2, 53),  # and by more than a thousandth below the best
    ],
)
def test_recovery_ends_by_patience(
    accuracies: list[float],
    patience: int,
    n_epochs: int,
    scripted: Callable[..., None],
    tiny_model: Make,
    tiny_data: CleanSet,
) -> None:
    scripted({"forget": [0.9], "recover": accuracies})
    settings = {"forget_max_epochs": 1, "recover_max_epochs": len(accuracies), "recover_patience": patience}
    result = cured(tiny_model(), tiny_data, **ALL, batch_size=128, forget_rate=STILL, recover_rate=STILL, **settings)
    assert steps(result) == (1, n_epochs)


@pytest.mark.parametrize(("batch_size", "n_forget", "n_recover"), [(128, 1, 1), (100, 1, 2), (7, 2, 19), (1, 8, 128)])
def test_an_epoch_is_as_many_steps_as_draw_each_sample_once(
    batch_size: int, n_forget: int, n_recover: int, tiny_model: Make, tiny_data: CleanSet
) -> None:
    settings = {"forget_fraction": 0.05, "forget_max_epochs": 1, "recover_max_epochs": 1, "batch_size": batch_size}
    result = cured(tiny_model(), tiny_data, **UNAUGMENTED, forget_rate=STILL, recover_rate=STILL, **settings)
    assert result.report["data"]["n_forget"] == 8
    assert steps(result) == (n_forget, n_recover)
    assert [p.phase for p in result.history] == ["forget", "recover"]  # one evaluation an epoch


class Tagged(nn.Module):
    """A linear model that notes by their brightness the images it is trained on, by phase: each has its own."""

    def __init__(self, seen: dict[str, set[int]]) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)
        self.phase = "none"
        self.seen = seen

    def __deepcopy__(self, memo: Any) -> Tagged:
        made = Tagged(self.seen)  # shared: the notes of the copy are what the test reads
        made.load_state_dict(self.state_dict())
        return made

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.setdefault(self.phase, set()).update((images[:, 0, 0, 0] * 255).round().int().tolist())
        logits: Tensor = self.head(images.mean((1, 2, 3))[:, None])
        return logits


@pytest.mark.usefixtures("guessers_are_trained")
def test_each_phase_sees_its_part_and_all_of_it() -> None:
    class SetPhase(seamfast.Callback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].phase = state.phase

    data = CleanSet(torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.arange(200) % 4)
    model = Tagged({})
    settings = {"forget_fraction": 0.25, "forget_max_epochs": 2, "recover_max_epochs": 2, "batch_size": 16}
    result = cured(model, data, SetPhase(), **UNAUGMENTED, forget_rate=STILL, **settings)
    assert len(model.seen["forget"]) == result.report["data"]["n_forget"] == 40
    assert len(model.seen["recover"]) == result.report["data"]["n_recovery"] == 160
    assert model.seen["forget"] < model.seen["recover"]


def test_the_settings_are_the_published_ones() -> None:
    cifar10 = {
        "batch_size": 32, "crop_pad": 4, "flip": True, "exclude_true": True, "forget_fraction": 0.01,
        "forget_rate": 3e-5, "forget_weight_decay": 5e-5, "forget_until": 2.0, "forget_patience": 1,
        "forget_max_epochs": 300, "recover_rate": 5e-4, "recover_weight_decay": 5e-5, "recover_betas": [0.5, 0.9],
        "recover_until": 0.92, "recover_patience": 10, "recover_max_epochs": 300,
    }  # fmt: skip
    trojai = cifar10 | {
        "crop_pad": 0, "flip": False, "exclude_true": False, "forget_fraction": 1.0, "forget_rate": 5e-4,
        "forget_weight_decay": 5e-4, "forget_patience": 10, "recover_betas": [0.9, 0.5], "recover_until": 0.99,
    }  # fmt: skip
    of_all_methods = {"holdout_fraction": 0.2, "accuracy_budget": 0.03, "accuracy_limit": 0.06, "prune": True}
    assert SeamAuthorsConfig().to_dict() == cifar10 | of_all_methods
    assert SeamAuthorsConfig.trojai().to_dict() == trojai | of_all_methods
    assert SeamAuthorsConfig.trojai(batch_size=7).to_dict() == trojai | of_all_methods | {"batch_size": 7}


@pytest.mark.parametrize("config", [SeamAuthorsConfig(), SeamAuthorsConfig.trojai()])
@pytest.mark.parametrize("method", ["seam_authors", "seam"])  # the latter as until 0.2.0
def test_both_presets_run(config: SeamAuthorsConfig, method: str, tiny_model: Make, tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, method=method, config=config.shortened(1))
    assert result.report["method"] == "seam_authors"
    assert result.report["run"]["stopped"] is None
    assert steps(result) == (1 if config.forget_fraction < 1 else 4, 4)


def test_what_it_cannot_be_given(tiny_model: Make, tiny_data: CleanSet) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size is 0; expected an integer of at least 1$"):
        SeamAuthorsConfig.trojai(batch_size=0)
    for options, message in (
        ({"config": seamfast.SeamConfig()}, "config is a SeamConfig; expected SeamAuthorsConfig for method 'seam_auth"),
        ({"preset": "fast"}, "preset is 'fast'; expected None for method 'seam_authors'$"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            seamfast.sanitize(tiny_model(), tiny_data, method="seam_authors", **options)
    rows = CleanSet(torch.rand(40, 64), torch.arange(40) % 4)
    model = nn.Linear(64, 4)
    with pytest.raises(ConfigError, match=r"^crop_pad is 4; expected 0, as only images can be cropped: "):
        seamfast.sanitize(model, rows, method="seam_authors")
