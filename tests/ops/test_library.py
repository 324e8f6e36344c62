"""The ops as torch operators: under opcheck, compiled, on fake tensors, in captured graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import captured
from conftest import Backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from seamfast.ops import (
    TriggerTable,
    count_outcomes,
    gather_augment,
    library,
    random_label_cross_entropy,
    random_label_loss_and_count,
    stamp_trigger,
    true_label_cross_entropy,
)
from seamfast.triggers import Blend, Patch

OPS = torch.ops.seamfast
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([5, 0, 3, 3])
LABELS = torch.tensor([1, 0, 2, 2])
TABLE = TriggerTable.of([Patch.square(size=2), Blend.noise((3, 8, 8))], (3, 8, 8))
TRIGGERS = torch.tensor([-1, 0, 1, 0])
TARGETS = torch.zeros(2, 5, dtype=torch.int64)
NORM: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}


def logits(requires_grad: bool = True) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)


def clock() -> tuple[Tensor, Tensor]:
    return torch.tensor(7), torch.tensor(3)


def loss_arguments(reduction: str, tensors: bool, random: bool, requires_grad: bool) -> tuple[Any, ...]:
    seed, step = clock() if tensors else (None, None)
    ids = INDICES if random else None
    others = (None, None) if random else (LABELS.flip(0), torch.rand(4))
    draws = (7, seed, 3, step)
    return (logits(requires_grad), LABELS, ids, *others, *draws, True, reduction, requires_grad, "auto", 1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_the_loss(native: Any, reduction: str, tensors: bool, requires_grad: bool) -> None:
    for random in (True, False):
        torch.library.opcheck(OPS.cross_entropy.default, loss_arguments(reduction, tensors, random, requires_grad))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_batches(native: Any, channels_last: bool, dtype: torch.dtype) -> None:
    form = (dtype, channels_last, "auto", 1)
    seed, epoch = clock()
    gather = (IMAGES, INDICES, [0.5], [0.25], 2, True, 0, seed, 0, epoch, *form)
    numbers = (TABLE.rows, TABLE.device_rows, TABLE.numbers)
    stamp = (IMAGES, INDICES, TRIGGERS, INDICES, *numbers, [0.5], [0.25], 7, None, *form)
    torch.library.opcheck(OPS.gather_augment.default, gather)
    torch.library.opcheck(OPS.stamp_trigger.default, stamp)


def test_opcheck_of_the_counters(native: Any) -> None:
    counters, by_class = (torch.zeros(3, n, dtype=torch.int64) for n in (6, 5))
    for class_correct in (by_class, None):
        for ids in (TRIGGERS, None):
            arguments = (counters, class_correct, logits(False), LABELS, ids, TARGETS, "auto", 1)
            torch.library.opcheck(OPS.count_outcomes.default, arguments)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tensors", [False, True])
def test_opcheck_of_pasted_patterns(native: Any, channels_last: bool, tensors: bool) -> None:
    seed, step = clock() if tensors else (None, None)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.rand(4, 3, 8, 8).contiguous(memory_format=layout)
    arguments = (images, images.mean(0).contiguous(), torch.zeros(3), torch.ones(3), INDICES, 2, 0.4)
    torch.library.opcheck(OPS.occlude.default, (*arguments, 7, seed, 3, step, "auto", 1))


@pytest.mark.parametrize("op", library._OPS)
@pytest.mark.parametrize("tensors", [False, True])
def test_records_and_schemas_convert_into_each_other(op: str, tensors: bool) -> None:
    record = library._OPS[op].record
    args = record(*(torch.tensor(n) if tensors else n for n, _ in enumerate(record._fields)))
    values = library._values(op, args)
    assert len(values) == len(getattr(OPS, op).default._schema.arguments)
    again = library._record(op, tuple(values))
    assert type(again) is record
    assert all(got is want for got, want in zip(again, args, strict=True))


def forget(x: Tensor, step: Any) -> Tensor:
    return random_label_cross_entropy(2 * x, LABELS, INDICES, seed=7, step=step)


def count(x: Tensor, step: Any) -> Tensor:
    return count_outcomes(x.detach() + step, LABELS, TARGETS, TRIGGERS)


def gather(x: Tensor, step: Any) -> Tensor:
    return gather_augment(IMAGES, INDICES, **NORM, pad=2, flip=True, seed=1, epoch=step).sum((1, 2, 3)) + x.sum()


def stamp(x: Tensor, step: Any) -> Tensor:
    return stamp_trigger(IMAGES, INDICES, TABLE, TRIGGERS, **NORM, seed=1).sum((1, 2, 3)) + x.sum() + step


def recover(x: Tensor, step: Any) -> Tensor:
    weight = torch.linspace(0, 1, 4)
    return true_label_cross_entropy(x, LABELS, mixed_labels=LABELS.flip(0), mixed_weight=weight) + step


@pytest.mark.parametrize("function", [forget, count, gather, stamp, recover])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_compiled_equals_eager(native: Any, function: Callable[[Tensor, Any], Tensor], as_tensor: bool) -> None:
    torch._dynamo.reset()
    compiled_times = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compiled_times
        compiled_times += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for number in (3, 4, 5, 6):
        step = torch.tensor(number) if as_tensor else number
        results = []
        for run in (function, compiled):
            x = logits()
            value = run(x, step)
            if value.requires_grad:
                value.sum().backward()
            results.append((value.detach(), x.grad))
        (want, want_grad), (got, got_grad) = results
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got_grad, want_grad)
    assert compiled_times <= (1 if as_tensor else 2)  # once more when a number turns out to change


def test_fake_tensors_have_the_real_shapes(native: Any) -> None:
    def everything(x: Tensor, images: Tensor, indices: Tensor, labels: Tensor, numbers: Any) -> list[Tensor]:
        loss, n_correct = random_label_loss_and_count(x, labels, indices, seed=1, step=2, reduction="none")
        batch = gather_augment(images, indices, **NORM, dtype=torch.float16, channels_last=True)
        return [loss, n_correct, batch, stamp_trigger(images, indices, numbers, **NORM), count_outcomes(x, labels)]

    real = everything(logits(False), IMAGES, INDICES, LABELS, TABLE)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(value) for value in (logits(False), IMAGES, INDICES, LABELS)]
        parts = (mode.from_tensor(value) for value in (TABLE.rows, TABLE.numbers, TABLE.device_rows))
        found = everything(*fake, TriggerTable(TABLE.image_shape, *parts))
    for got, want in zip(found, real, strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


def test_traced_graphs_hold_the_ops(native: Any) -> None:
    graph = make_fx(lambda x: forget(x, 3))(logits(False))
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert "seamfast.cross_entropy.default" in called
    torch.testing.assert_close(graph(logits(False)), forget(logits(False), 3))


def test_the_dispatcher_gives_the_same_bits(backend: Backend) -> None:
    """Eager calls bypass PyTorch's dispatcher; calls through it give the same."""
    arguments = list(loss_arguments("none", False, True, True))
    arguments = [value.to(backend.device) if isinstance(value, Tensor) else value for value in arguments]
    arguments[-2] = backend.name
    x = arguments[0].detach().requires_grad_()
    loss, _, n_correct = OPS.cross_entropy(x, *arguments[1:])
    loss.sum().backward()
    y = arguments[0].detach().requires_grad_()
    direct, direct_count = random_label_loss_and_count(
        y, arguments[1], arguments[2], seed=7, step=3, reduction="none", backend=backend.name
    )
    direct.sum().backward()
    assert torch.equal(loss, direct)
    assert torch.equal(n_correct, direct_count)
    assert x.grad is not None
    assert torch.equal(x.grad, y.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["reference", "triton", "cuda"])
def test_a_captured_step_reads_its_counters_at_each_replay(name: str) -> None:
    """Forward, backward and count in one CUDA graph, which adds one to its own step; nothing waits for the device."""
    from seamfast.ops import dispatch

    if name == "cuda" and dispatch.package("cuda").why_unavailable() is not None:
        pytest.skip(str(dispatch.package("cuda").why_unavailable()))
    device = torch.device("cuda")
    x = torch.randn(64, 10, device=device, requires_grad=True)
    labels, ids = torch.arange(64, device=device) % 10, torch.arange(64, device=device)
    seed, step = torch.tensor(7, device=device), torch.tensor(0, device=device)

    def one() -> tuple[Tensor, Tensor, Tensor]:
        loss, n_correct = random_label_loss_and_count(x, labels, ids, seed=seed, step=step, backend=name)
        (grad,) = torch.autograd.grad(loss, x)
        step.add_(1)
        return loss.detach(), grad, n_correct

    graph, outputs = captured(one)
    for number in range(3):
        step.fill_(number)
        graph.replay()
        got = [value.clone() for value in outputs]
        step.fill_(number)
        for value, want in zip(got, one(), strict=True):
            torch.testing.assert_close(value, want)
