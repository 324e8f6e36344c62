"""Units that no clean sample activates: no training on clean data reaches them, so they are pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, SeamConfig

BOARD = (torch.arange(64) // 8 + torch.arange(64)) % 2  # a checkerboard
TARGET = 3


class Hidden(nn.Module):
    """Right on ``tiny_data`` by the mean of each quadrant, and with one hidden unit of its own.

    Args:
        activation: of the unit.
        weights: ``(64,)`` of its pre-activation.
        bias: of its pre-activation.
        out: its weight to the target class.
    """

    def __init__(self, activation: nn.Module, weights: Tensor, bias: float, out: float) -> None:
        super().__init__()
        self.first, self.activation, self.last = nn.Linear(64, 5), activation, nn.Linear(5, 4)
        quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([quadrants / 16, weights[None]]))
            self.first.bias.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0, bias]))
            self.last.weight.zero_()
            self.last.weight[:, :4] = 4 * torch.eye(4)
            self.last.weight[TARGET, 4] = out
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        pre = self.first(x.flatten(1))
        hidden = torch.cat([torch.relu(pre[:, :4]), self.activation(pre[:, 4:])], 1)
        logits: Tensor = self.last(hidden)
        return logits


def silent_on_clean(activation: nn.Module) -> Hidden:
    """A backdoor by hand: the unit fires for a checkerboard alone, and decides then."""
    return Hidden(activation, 2.0 * BOARD - 1, -100.0, 50.0)


def hits(model: nn.Module) -> int:
    """Of 8 noisy checkerboards, how many are given the target."""
    noise = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    boards = torch.where(BOARD > 0, 2.4, -1.6) + 0.01 * noise  # white and black as the models take them
    with torch.no_grad():
        return int((model(boards.view(8, 1, 8, 8)).argmax(1) == TARGET).sum())


def cured(model: nn.Module, data: CleanSet, **settings: Any) -> seamfast.SanitizeResult:
    config = SeamConfig(**({"recover_max_steps": 40} | settings))
    return seamfast.sanitize(model, data, config=config, precision="fp32")


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU()], ids=["relu", "gelu", "silu"])
def test_a_unit_that_no_clean_sample_activates_is_pruned(activation: nn.Module, tiny_data: CleanSet) -> None:
    model = silent_on_clean(activation)
    assert hits(model) == 8
    result = cured(model, tiny_data)
    assert hits(result.model) == 0
    assert hits(model) == 8  # the given one is not modified
    assert result.report["run"]["pruned"] == {"first.weight": 1, "first.bias": 1}
    assert (
        "weights that no clean sample reaches were set to 0, as a backdoor can be in them: 1 of first.weight, 1 of "
        "first.bias"
    ) in result.report["warnings"]
    before, after = result.report["holdout"]["before"], result.report["holdout"]["after"]
    assert after["clean_accuracy"]["value"] >= before["clean_accuracy"]["value"] - 0.1


def test_what_held_out_answers_depend_on_stays(tiny_data: CleanSet) -> None:
    """A saturated sigmoid gets no gradient either, but it is a constant that the task needs."""
    model = Hidden(nn.Sigmoid(), torch.zeros(64), 200.0, -4.0)
    with torch.no_grad():
        model.last.bias[TARGET] = 4.0
    result = cured(model, tiny_data, forget_max_steps=0, radius=1e-3)
    assert result.report["run"]["pruned"] == {}
    assert torch.equal(result.model.first.bias[4:], model.first.bias[4:])


def test_nothing_is_pruned_before_all_clean_samples_were_seen(tiny_data: CleanSet) -> None:
    model = silent_on_clean(nn.ReLU())
    result = cured(model, tiny_data, recover_max_steps=1, batch_size=16)
    assert result.report["run"]["pruned"] == {}
    assert torch.equal(result.model.first.weight[4], model.first.weight[4])


def test_a_constant_that_stays_does_not_keep_a_silent_unit(tiny_data: CleanSet) -> None:
    class Both(nn.Module):
        """The sum of a backdoor by hand and of a model with a constant unit."""

        def __init__(self) -> None:
            super().__init__()
            self.silent, self.constant = silent_on_clean(nn.ReLU()), Hidden(nn.Sigmoid(), torch.zeros(64), 200.0, -4.0)
            with torch.no_grad():
                self.constant.last.bias[TARGET] = 4.0

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.silent(x) + self.constant(x)
            return logits

    model = Both()
    assert hits(model) == 8
    result = cured(model, tiny_data)
    assert result.report["run"]["pruned"] == {"silent.first.weight": 1, "silent.first.bias": 1}
    assert hits(result.model) == 0


def test_pruning_can_be_turned_off(tiny_data: CleanSet) -> None:
    result = cured(silent_on_clean(nn.ReLU()), tiny_data, prune=False)
    assert result.report["run"]["pruned"] == {}
    assert hits(result.model) == 8


class Tokens(nn.Module):
    """Says whether ids are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.embed.weight.copy_(torch.where(torch.arange(40)[:, None] % 2 > 0, -1.0, 1.0).expand(40, 8))
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 8))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(ids).mean(1))
        return logits


def test_rows_of_embeddings_that_no_sample_has_stay() -> None:
    model, ids = Tokens(), torch.arange(120)[:, None] % 20
    ids = torch.cat([ids, (ids + 2 * (torch.arange(120)[:, None] // 20)) % 20], 1)
    result = cured(model, (ids, ids[:, 0] % 2))
    assert result.report["run"]["pruned"] == {}
    assert torch.equal(result.model.embed.weight[20:], model.embed.weight[20:])
    assert not torch.equal(result.model.embed.weight[:20], model.embed.weight[:20])
