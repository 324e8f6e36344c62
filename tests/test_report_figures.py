"""What the figures of a report are of: the model that is returned, and the trigger that works best on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig
from seamfast.data import split_by_class
from seamfast.triggers import Patch

HOW: dict[str, Any] = {"precision": "fp32", "threads": 1, "deterministic": True, "progress": False}


def test_accuracy_after_is_that_of_the_rounded_weights() -> None:
    """Of a bfloat16 model: the rounding moves some of 2,000 samples to another class."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 16, generator=draw)
    model = nn.Linear(16, 8).to(torch.bfloat16)
    labels = model(inputs.to(torch.bfloat16)).argmax(1)
    config = SeamConfig(forget_max_steps=0, radius=0.3, recover_max_steps=10, holdout_fraction=0.5, accuracy_budget=1.0)
    result = seamfast.sanitize(model, (inputs, labels), config=config, **HOW)
    assert result.model.weight.dtype == torch.bfloat16
    held_out = split_by_class(labels, holdout_fraction=0.5, forget_fraction=1.0, seed=0).holdout
    right = result.model.float()(inputs[held_out]).argmax(1) == labels[held_out]
    wanted = labels[held_out][right].bincount(minlength=8).tolist()
    found = result.report["holdout"]["after"]["class_accuracy"]
    assert [rate["n_hit"] for rate in found] == wanted


def test_both_fidelities_are_the_lowest_over_the_triggers(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module]
) -> None:
    """Class 3 is a bright bottom-right quadrant: a white one moves samples of a clean model there, one pixel none."""
    triggers = [Patch.square(size, target=3, margin=0, name=f"{size} pixels") for size in (4, 1)]
    config = FineTuneConfig(max_steps=2)
    result = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=config, triggers=triggers, **HOW)
    report = result.report
    before, after = (report["holdout"][when] for when in ("before", "after"))
    rates = [[t["attack_success_rate"]["value"] for t in part["triggers"]] for part in (before, after)]
    assert rates[1][0] > rates[1][1]
    kept = after["clean_accuracy"]["value"] / before["clean_accuracy"]["value"]
    lost = max(rates[1]) / before["clean_accuracy"]["value"]
    assert report["holdout"]["fidelity"] == pytest.approx(kept - lost)
    nist = [(b - a) / b * kept for b, a in zip(*rates, strict=True) if b]
    assert report["holdout"]["fidelity_nist"] == pytest.approx(min(nist))
