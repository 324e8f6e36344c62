from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from seamfast.engine.optimizer import SGD, Adam, RelativeAdam

Make = Callable[[], nn.Module]


def take(optimizer: Any, rate: float) -> None:
    optimizer.step(torch.tensor(rate))


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def with_grads(model: nn.Module, seed: int, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = factor * torch.randn(parameter.shape, generator=generator)


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_it_is_adam_with_a_rate_for_each_tensor(tiny_model: Make) -> None:
    """Against one Adam of PyTorch's a tensor, at rates that change from step to step."""
    ours, theirs = tiny_model(), tiny_model()
    sizes = [max(rms(p), 0.1 if p.ndim < 2 else 0.0) for p in theirs.parameters()]
    optimizer = RelativeAdam(ours, (0.8, 0.95))
    others = [torch.optim.Adam([p], betas=(0.8, 0.95)) for p in theirs.parameters()]
    for step, rate in enumerate((0.05, 0.01, 0.03)):
        with_grads(ours, step)
        with_grads(theirs, step)
        take(optimizer, rate)
        for other, size in zip(others, sizes, strict=True):
            other.param_groups[0]["lr"] = rate * size
            other.step()
    for got, wanted, start in zip(values(ours), values(theirs), values(tiny_model()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
        assert not torch.equal(got, start)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_relative_update_does_not_know_the_scale(factor: float) -> None:
    """Weights k times as large have gradients 1/k as large; what changes of them, as a share, is the same."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(factor)
    one, other = RelativeAdam(model), RelativeAdam(scaled)
    for step in range(5):
        with_grads(model, step)
        with_grads(scaled, step, 1 / factor)
        take(one, 0.02)
        take(other, 0.02)
    for a, b in zip(values(model), values(scaled), strict=True):
        torch.testing.assert_close(b / factor, a, rtol=1e-4, atol=1e-6)


def test_a_rate_is_the_share_that_one_step_moves() -> None:
    """Adam's first step is the rate times the gradient's sign, up to its epsilon."""
    model = nn.Linear(20, 30, bias=False)
    before = model.weight.detach().clone()
    with_grads(model, 0)
    take(RelativeAdam(model), 0.01)
    moved = (model.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * rms(before)), rtol=1e-3, atol=0)


def test_sizes_are_those_of_the_weights_as_given() -> None:
    """A run cannot feed its own growth: with constant gradients each step is as long as the first."""
    model = nn.Linear(4, 4, bias=False)
    size = rms(model.weight)
    optimizer = RelativeAdam(model)
    for _ in range(30):
        model.weight.grad = torch.full_like(model.weight, -1.0)
        before = model.weight.detach().clone()
        take(optimizer, 0.5)
        torch.testing.assert_close(model.weight.detach() - before, torch.full((4, 4), 0.5 * size), rtol=1e-3, atol=1e-5)
    assert rms(model.weight) > 10 * size


def test_zero_biases_and_zero_matrices_move() -> None:
    """Without another matrix, the gain of a usual one is 1: 0.1 / sqrt(4) is the floor of a matrix of four columns."""
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with_grads(model, 0)
    take(RelativeAdam(model), 0.1)
    torch.testing.assert_close(model.bias.detach().abs(), torch.full((3,), 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close(model.weight.detach().abs(), torch.full((3, 4), 0.005), rtol=1e-3, atol=0)


class Adapted(nn.Module):
    """A frozen matrix, and a pair of which the second is zero, as LoRA begins."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = nn.Parameter(scale * torch.randn(12, 16, generator=generator), requires_grad=False)
        self.lora_a = nn.Parameter(scale * torch.randn(4, 16, generator=generator))
        self.lora_b = nn.Parameter(torch.zeros(12, 4))
        self.conv_b = nn.Parameter(torch.zeros(12, 4, 3, 3))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_matrix_of_zeros_moves_a_tenth_of_what_others_move_of_their_outputs(scale: float) -> None:
    """At any scale of the model, by the median of the matrices that are not zero, frozen ones too."""
    model = Adapted(scale)
    gain = min(rms(model.base) * 4, rms(model.lora_a) * 4)  # of an even number, torch's median is the lower one
    before = model.lora_a.detach().clone()
    for parameter in (model.lora_a, model.lora_b, model.conv_b):
        parameter.grad = torch.full_like(parameter, 1.0)
    take(RelativeAdam(model), 0.01)
    expected = {model.lora_b: 0.01 * 0.1 * gain / 2, model.conv_b: 0.01 * 0.1 * gain / 6}
    for parameter, step in expected.items():
        torch.testing.assert_close(-parameter.detach(), torch.full_like(parameter, step), rtol=1e-3, atol=0)
    moved = before - model.lora_a.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * rms(before)), rtol=1e-3, atol=1e-9)


def test_a_matrix_above_the_floor_has_its_own_size() -> None:
    """The least of the trained models that were looked at has an eighth of the median gain."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    with torch.no_grad():
        model[2].weight.mul_(0.125 * rms(model[1].weight) / rms(model[2].weight))
        model[0].weight.mul_(rms(model[1].weight) / rms(model[0].weight))
    before = model[2].weight.detach().clone()
    model[2].weight.grad = torch.ones(8, 8)
    take(RelativeAdam(model), 0.01)
    moved = before - model[2].weight.detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * rms(before)), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("make", [RelativeAdam, Adam, SGD])
def test_a_frozen_tensor_is_not_trained(make: Any) -> None:
    model = Adapted()
    with_grads(model, 0)
    before = model.base.detach().clone()
    optimizer = make(model)
    take(optimizer, 0.1)
    assert torch.equal(model.base.detach(), before)
    assert not any(value.shape == model.base.shape for value in optimizer.state)
    assert model.lora_b.detach().abs().max() > 0


def test_a_rate_of_zero_moves_nothing(tiny_model: Make) -> None:
    model = tiny_model()
    before = values(model)
    with_grads(model, 0)
    take(RelativeAdam(model), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))


def test_grads_are_forgotten_after_a_step(tiny_model: Make) -> None:
    model = tiny_model()
    with_grads(model, 0)
    take(RelativeAdam(model), 0.01)
    assert all(p.grad is None for p in model.parameters())


def test_parameters_without_grads_or_numbers_are_passed_over() -> None:
    model = nn.Linear(3, 3)
    model.none = nn.Parameter(torch.zeros(0, 4))
    model.weight.grad = torch.ones(3, 3)
    bias = model.bias.detach().clone()
    take(RelativeAdam(model), 0.1)
    assert torch.equal(model.bias.detach(), bias)


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("kind", ["adam", "sgd", "sgd without momentum", "sgd nesterov"])
def test_they_are_those_of_pytorch(tiny_model: Make, kind: str, weight_decay: float) -> None:
    ours, theirs = tiny_model(), tiny_model()
    momentum = 0.0 if "without" in kind else 0.9
    optimizer: Any
    other: torch.optim.Optimizer
    if kind == "adam":
        optimizer = Adam(ours, (0.5, 0.9), weight_decay)
        other = torch.optim.Adam(theirs.parameters(), betas=(0.5, 0.9), weight_decay=weight_decay)
    else:
        nesterov = "nesterov" in kind
        optimizer = SGD(ours, momentum, weight_decay, nesterov=nesterov)
        other = torch.optim.SGD(
            theirs.parameters(), lr=1.0, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )
    for step, rate in enumerate((0.05, 0.01, 0.03)):
        with_grads(ours, step)
        with_grads(theirs, step)
        take(optimizer, rate)
        other.param_groups[0]["lr"] = rate
        other.step()
    for got, wanted, start in zip(values(ours), values(theirs), values(tiny_model()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
        assert not torch.equal(got, start)
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize("make", [RelativeAdam, Adam, SGD])
def test_a_tensor_without_a_gradient_stays(tiny_model: Make, make: Any) -> None:
    model = tiny_model()
    before = values(model)
    optimizer = make(model)
    take(optimizer, 0.1)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    take(optimizer, 0.1)
    for number, (got, old) in enumerate(zip(values(model), before, strict=True)):
        assert torch.equal(got, old) == (number > 0)
