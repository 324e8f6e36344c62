"""Max-pooling and batch normalization of channels-last images on the CPU, against PyTorch's, one thread each.

    OMP_NUM_THREADS=1 python -m pytest benches/bench_layers.py --benchmark-only

Each way by itself, with autograd as a training step has it: "forward" is the call on an input that needs a gradient,
"backward" is ``torch.autograd.grad`` of its result. Results are allocated, as always, from memory that stays with the
process once it is freed, as in a run: else both mostly clear pages. Batch normalization is in training mode, with
weights and running statistics. Shapes are those of a small CNN on 28x28 and 32x32, and of the last and the first stage
of ResNet-18s. "match": max-pooling has the same bits; batch normalization is no further from float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seamfast.engine.layers import faster_layers
from seamfast.ops import cpp

pytestmark = pytest.mark.skipif(cpp.why_unavailable() is not None, reason="seamfast._native is not built")

CPU = torch.device("cpu")
SHAPES = [(128, 16, 28, 28), (128, 16, 32, 32), (128, 128, 4, 4), (128, 64, 32, 32)]
DTYPES = [torch.bfloat16, torch.float32]

# For bfloat16, whose rounding PyTorch pays dearly for; float32 is bound by the memory.
TARGETS = {"max pool": 3.0, "batch norm": 2.0}


@pytest.fixture(autouse=True)
def freed_memory_stays() -> Iterator[None]:
    with cpp.freed_memory_kept():
        yield


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws).to(dtype).contiguous(memory_format=torch.channels_last)


def layer_of(name: str, channels: int, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """The layer and its parameters."""
    if name == "max pool":
        return lambda x: F.max_pool2d(x, 2), []
    weight, bias = (torch.rand(channels, dtype=dtype).add_(0.5).requires_grad_() for _ in range(2))
    mean, var = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
    return lambda x: F.batch_norm(x, mean, var, weight, bias, training=True), [weight, bias]


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["max pool", "batch norm"])
def test_layer(race: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype, way: str) -> None:
    layer, parameters = layer_of(name, shape[1], torch.float32)
    x = images(shape, dtype, seed=0).requires_grad_()
    theirs = layer(x)
    with faster_layers(CPU):
        ours = layer(x)
    grad = images(tuple(theirs.shape), dtype, seed=1)

    def backward(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (x, *parameters), grad, retain_graph=True)

    if name == "max pool":
        match = torch.equal(ours, theirs) and torch.equal(backward(ours)[0], backward(theirs)[0])
    else:
        match = is_no_further(name, shape, x, parameters, grad, (ours, *backward(ours)), (theirs, *backward(theirs)))

    def forward() -> Tensor:
        with faster_layers(CPU):
            return layer(x)

    calls = (forward, lambda: layer(x)) if way == "forward" else (lambda: backward(ours), lambda: backward(theirs))
    target = TARGETS[name] if dtype == torch.bfloat16 else None
    row = race(
        f"{name} {way} {'x'.join(map(str, shape))} {str(dtype)[6:]}",
        calls[0],
        "PyTorch",
        calls[1],
        match=match,
        target=target,
        turns=15,
    )
    row["input_gb_per_second"] = x.numel() * x.element_size() / row["ours_us"] / 1e3


def is_no_further(
    name: str,
    shape: tuple[int, ...],
    x: Tensor,
    parameters: list[Tensor],
    grad: Tensor,
    ours: tuple[Tensor, ...],
    theirs: tuple[Tensor, ...],
) -> bool:
    layer, exact_parameters = layer_of(name, shape[1], torch.float64)
    with torch.no_grad():
        for exact, given in zip(exact_parameters, parameters, strict=True):
            exact.copy_(given)
    exact_x = x.detach().double().requires_grad_()
    out = layer(exact_x)
    exacts = (out, *torch.autograd.grad(out, (exact_x, *exact_parameters), grad.double()))

    def error(got: Tensor, exact: Tensor) -> float:
        return float((got.detach().double() - exact.detach()).norm() / exact.detach().norm())

    return all(error(a, e) <= 1.01 * error(b, e) for a, b, e in zip(ours, theirs, exacts, strict=True))
