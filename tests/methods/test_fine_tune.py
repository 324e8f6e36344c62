"""Fine-tuning against a loop of its own, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import seamfast
from seamfast import CleanSet, FineTuneConfig
from seamfast.data import split_by_class


def test_against_a_loop_in_plain_pytorch(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = FineTuneConfig(rate=0.05, momentum=0.8, weight_decay=1e-2, max_steps=7, batch_size=128)
    got = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=config, precision="fp32").model

    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    inputs = (tiny_data.inputs[split.recovery].float() / 255 - 0.4) / 0.25  # every batch is the whole recovery part
    labels = tiny_data.labels[split.recovery]
    wanted = tiny_model().train()
    optimizer = torch.optim.SGD(wanted.parameters(), lr=1.0, momentum=0.8, weight_decay=1e-2)
    for step in range(7):
        through = step / 7
        warm = (through + 0.01) / 0.11 if through < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (through - 0.1) / 0.9)
        optimizer.param_groups[0]["lr"] = 0.05 * warm
        optimizer.zero_grad()
        F.cross_entropy(wanted(inputs), labels).backward()
        optimizer.step()
    torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=1e-3, atol=1e-5)
    moved = (wanted[9].weight - tiny_model()[9].weight).abs().max()
    assert moved > 1e-3  # far above the tolerance


def test_it_evaluates_at_the_interval_and_at_the_end(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    config = FineTuneConfig(max_steps=8, eval_every=3)
    result = seamfast.sanitize(tiny_model(), tiny_data, method="fine_tune", config=config)
    assert [(p.phase, p.attempt, p.step) for p in result.history] == [("recover", 0, n) for n in (3, 6, 8)]
    assert result.report["run"]["steps"] == {"recover": 8}
    assert result.report["run"]["n_attempts"] == 1
    assert result.report["method"] == "fine_tune"


def test_the_defaults_are_those_of_the_named_source() -> None:
    config = FineTuneConfig()
    assert (config.rate, config.momentum, config.weight_decay) == (0.01, 0.9, 5e-4)
