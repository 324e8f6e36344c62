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
    "seam": SeamConfig(batch_size=16, recover_eval_every=4, margin=0.5),
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

    def count(_: Run, precision: Any = None, of: Tensor | None = None) -> None:
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
    fixed_ = fixed("seam", tiny_data)
    ours: list[float] = []
    theirs: list[float] = []
    ours_in = sys.modules["seamfast.modalities.image.modality"]
    watched(monkeypatch, ours_in, "disturb", lambda *_, share: ours.append(float(share)))
    result = seamfast.sanitize(tiny_model(), tiny_data, config=fixed_.config, precision="fp32", progress=False)
    received = result.report["holdout"]["before"]["clean_accuracy"]["value"]
    split = fixed_.split()
    recovery = [point.holdout_accuracy for point in result.history if point.phase == "recover"]
    needs = [fixed_.config.teacher_weight(received - accuracy, len(split.holdout)) for accuracy in recovery]
    assert 0 < needs[0] < 1  # or nothing is shown
    assert ours == pytest.approx([0.5] * 6 + [0.0] * 4 + [0.5 * (1 - needs[0])] * 4 + [0.0] * 2)

    accuracies = iter([0.75, *[0.0] * 6, 0.5, 0.8, 0.8])  # received, while forgetting, in recovery
    monkeypatch.setattr(naive, "accuracy", lambda *_: next(accuracies))
    watched(monkeypatch, schedule, "disturb", lambda *_, share: theirs.append(float(share)))
    naive.run(fixed_, tiny_model())
    missing = 0.25 + 1 / len(split.holdout)
    half = 0.5 * (1 - missing / 0.5)
    assert theirs == pytest.approx([0.5] * 6 + [0.0] * 4 + [half] * 4 + [0.0] * 2)


def test_without_a_margin_it_is_always_the_teacher(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_ = Schedule.of(tiny_data, 2, 6, SeamConfig(batch_size=16, recover_eval_every=2, margin=0.0))
    ours: list[float] = []
    theirs: list[float] = []
    ours_in = sys.modules["seamfast.modalities.image.modality"]
    watched(monkeypatch, ours_in, "disturb", lambda *_, share: ours.append(float(share)))
    watched(monkeypatch, schedule, "disturb", lambda *_, share: theirs.append(float(share)))
    seamfast.sanitize(tiny_model(), tiny_data, config=fixed_.config, precision="fp32", progress=False)
    resident.run(fixed_, tiny_model(), Precision())
    assert theirs == ours == [0.5] * 2 + [0.0] * 6


def run_of(name: str) -> Callable[[Schedule, nn.Module], nn.Module]:
    return naive.run if name == "naive" else lambda fixed_, model: resident.run(fixed_, model, Precision())
