"""The baselines of ``benches/``: they are to do what ``sanitize`` does, or their times say nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from benches.baselines import naive, resident, schedule
from benches.baselines.schedule import Schedule, Stepper
from seamfast import CleanSet, SeamAuthorsConfig, SeamConfig
from seamfast.engine.optimizer import Adam, RelativeAdam
from seamfast.engine.precision import Precision
from seamfast.engine.run import Run

BASES = {
    "seam": SeamConfig(batch_size=16, recover_eval_every=3, allowance=0.1, margin=0.5),
    "authors": SeamAuthorsConfig(batch_size=16, crop_pad=1, forget_fraction=1.0),
}


def watched(patch: pytest.MonkeyPatch, owner: Any, name: str, seen: Callable[..., None]) -> None:
    """Call the method or function as before, and ``seen`` with its arguments."""
    before = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        seen(*arguments, **options)
        return before(*arguments, **options)

    patch.setattr(owner, name, call)


def fixed(base: str, data: CleanSet) -> Schedule:
    return Schedule.of(data, 6, 10, BASES[base])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["naive", "resident"])
def test_a_baseline_takes_the_steps_at_the_rates_of_sanitize(
    base: str,
    name: str,
    tiny_data: CleanSet,
    tiny_model: Callable[[], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixed_ = fixed(base, tiny_data)
    ours: list[float] = []
    theirs: list[float] = []
    for kind in (Adam, RelativeAdam):
        watched(monkeypatch, kind, "step", lambda _, rate: ours.append(float(rate)))
    watched(monkeypatch, Stepper, "step", lambda _, rate: theirs.append(rate))
    how = {"method": fixed_.method, "config": fixed_.config}
    result = seamfast.sanitize(tiny_model(), tiny_data, precision="fp32", progress=False, **how)
    assert result.report["run"]["n_attempts"] == 1
    cured = run_of(name)(fixed_, tiny_model())
    assert len(theirs) == fixed_.steps("forget") + fixed_.steps("recover")
    assert theirs == pytest.approx(ours)
    assert torch.isfinite(torch.cat([p.flatten() for p in cured.parameters()])).all()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fewest", [3, 256])
def test_a_baseline_evaluates_as_often_and_as_many_samples(
    base: str, fewest: int, tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its first count and its last, which are of all that is held out; after the test for guessing."""
    for place in ("seamfast.engine.run", "benches.baselines.schedule"):
        monkeypatch.setattr(f"{place}._FEWEST_WATCHED", fewest)
    fixed_ = fixed(base, tiny_data)
    ours: list[Tensor] = []

    def count(_: Run, precision: Any = None, of: Tensor | None = None, *rest: Any) -> None:
        if of is not None:
            ours.append(of)

    watched(monkeypatch, Run, "count", count)
    how = {"method": fixed_.method, "config": fixed_.config}
    seamfast.sanitize(tiny_model(), tiny_data, precision="fp32", progress=False, **how)
    ours = ours[1:]
    split = fixed_.split()
    theirs = [
        fixed_.watched(split, phase)
        for phase in ("forget", "recover")
        for step in range(fixed_.steps(phase))
        if fixed_.evaluates_after(phase, step)
    ]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert mine.tolist() == other.tolist()
    assert len(ours[-1]) <= len(theirs[-1])  # fewer steps lead to the last one


def test_teacher_disturbance_and_plain_end_as_in_sanitize(
    tiny_data: CleanSet,
    tiny_model: Callable[[], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same shares of images, of as many as are computed."""
    fixed_ = fixed("seam", tiny_data)
    ours: list[float] = []
    theirs: list[float] = []
    ours_in = sys.modules["seamfast.modalities.image.modality"]
    watched(monkeypatch, ours_in, "disturb", lambda *_, share, most: ours.extend((float(share), most)))
    result = seamfast.sanitize(tiny_model(), tiny_data, config=fixed_.config, precision="fp32", progress=False)
    received = result.report["holdout"]["before"]["clean_accuracy"]["value"]
    split = fixed_.split()
    n_holdout = len(split.holdout)
    recovery = [point.holdout_accuracy for point in result.history if point.phase == "recover"]
    rule = fixed_.config.teacher_weight
    needs = [rule(received - now, received - recovery[0], now, n_holdout) for now in recovery]
    assert ours == pytest.approx(shares(needs))

    accuracies = iter([1.0, 0.0, 0.5, 0.8, 0.8, 0.8])  # received, at the end of forgetting, in recovery
    monkeypatch.setattr(naive, "accuracy", lambda *_: next(accuracies))
    watched(monkeypatch, schedule, "disturb", lambda *_, share, most: theirs.extend((float(share), most)))
    naive.run(fixed_, tiny_model())
    needs = [rule(1 - now, 0.5, now, n_holdout) for now in (0.5, 0.8)]
    assert needs == [1, pytest.approx((0.2 + 1 / 32 - 0.1) / 0.25)]
    assert theirs == pytest.approx(shares(needs))


def shares(needs: list[float]) -> list[float]:
    """Of 6 steps of forgetting and 10 of recovery, evaluated after every third; each before the greatest share."""
    of_recovery = [0.0] * 3 + [0.5 * (1 - needs[0])] * 3 + [0.5 * (1 - needs[1])] * 2 + [0.0] * 2
    return [value for share in [0.5] * 6 + of_recovery for value in (share, 0.5)]


def test_waves_are_computed_for_as_many_images_as_in_sanitize(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_ = fixed("seam", tiny_data)
    ours: list[float] = []
    theirs: list[float] = []
    ours_in = sys.modules["seamfast.modalities.image.modality"]
    watched(monkeypatch, ours_in, "add_plane_waves", lambda *_, share, most: ours.extend((float(share), most)))
    watched(monkeypatch, schedule, "add_plane_waves", lambda *_, share, most: theirs.extend((float(share), most)))
    seamfast_in_float32(fixed_, tiny_model())
    resident.run(fixed_, tiny_model(), Precision())
    assert theirs == ours == [0.25, 0.25] * 8 + [0.0, 0.25] * 2


def test_without_a_margin_it_is_always_the_teacher(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_ = Schedule.of(tiny_data, 2, 6, SeamConfig(batch_size=16, recover_eval_every=2, margin=0.0))
    ours: list[float] = []
    theirs: list[float] = []
    ours_in = sys.modules["seamfast.modalities.image.modality"]
    watched(monkeypatch, ours_in, "disturb", lambda *_, share, most: ours.append(float(share)))
    watched(monkeypatch, schedule, "disturb", lambda *_, share, most: theirs.append(float(share)))
    seamfast.sanitize(tiny_model(), tiny_data, config=fixed_.config, precision="fp32", progress=False)
    resident.run(fixed_, tiny_model(), Precision())
    assert theirs == ours == [0.5] * 2 + [0.0] * 6


@pytest.mark.parametrize("name", ["naive", "resident"])
def test_each_run_of_a_schedule_begins_anew(
    name: str, tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was missing at first in one run says nothing of the next one."""
    fixed_ = fixed("seam", tiny_data)
    seen: list[tuple[float, float]] = []
    rule = SeamConfig.teacher_weight

    def noted(config: SeamConfig, missing: float, at_first: float, accuracy: float, n_holdout: int) -> float:
        seen.append((missing, at_first))
        return rule(config, missing, at_first, accuracy, n_holdout)

    monkeypatch.setattr(SeamConfig, "teacher_weight", noted)
    for _ in range(2):
        run_of(name)(fixed_, tiny_model())
    assert len(seen) == 8  # four evaluations of each recovery
    for one_run in (seen[:4], seen[4:]):
        assert {at_first for _, at_first in one_run} == {one_run[0][0]}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_teacher_of_weight_0_is_asked_by_nobody(
    weight: float, tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_ = fixed("seam", tiny_data)
    ours: list[int] = []
    theirs: list[int] = []
    monkeypatch.setattr(SeamConfig, "teacher_weight", lambda *_: weight)
    watched(monkeypatch, sys.modules["seamfast.methods.seam"], "distillation_loss", lambda *_: ours.append(1))
    watched(monkeypatch, schedule, "distillation_loss", lambda *_: theirs.append(1))
    seamfast.sanitize(tiny_model(), tiny_data, config=fixed_.config, precision="fp32", progress=False)
    resident.run(fixed_, tiny_model(), Precision())
    assert len(theirs) == len(ours) == (10 if weight else 3)  # until it is first known what is missing


@pytest.mark.parametrize("name", ["naive", "resident"])
def test_dropout_drops_on_both_sides(name: str, tiny_data: CleanSet, tiny_model: Callable[[], nn.Module]) -> None:
    fixed_ = fixed("seam", tiny_data)
    modes: list[tuple[bool, bool]] = []

    def made() -> nn.Module:
        model = nn.Sequential(nn.Dropout(0.2), tiny_model()).eval()
        model.register_forward_hook(lambda module, *_: modes.append((module.training, module[0].training)))
        return model

    for run in (lambda model: seamfast_in_float32(fixed_, model), lambda model: run_of(name)(fixed_, model)):
        modes.clear()
        run(made())
        assert [drops for trains, drops in modes if trains] == [True] * 16


def test_all_steps_are_taken_of_an_easy_task_too_and_none_is_augmented(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], enlarged: Callable[[CleanSet, int], CleanSet]
) -> None:
    base = SeamConfig(batch_size=16, recover_eval_every=2, recover_easy_steps=5)
    fixed_ = Schedule.of(enlarged(tiny_data, 7), 2, 10, base)
    assert len(fixed_.split().holdout) >= 200
    result = seamfast_in_float32(fixed_, tiny_model())
    assert result.report["run"]["steps"] == {"forget": 2, "recover": 10}
    assert result.report["run"]["augmentation"] == {"crop_pad": 0, "flip": False}


def seamfast_in_float32(fixed_: Schedule, model: nn.Module) -> seamfast.SanitizeResult:
    return seamfast.sanitize(model, fixed_.clean, config=fixed_.config, precision="fp32", progress=False)


def run_of(name: str) -> Callable[[Schedule, nn.Module], nn.Module]:
    return naive.run if name == "naive" else lambda fixed_, model: resident.run(fixed_, model, Precision())
