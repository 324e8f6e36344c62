"""Checks of a backend's results. Tests apply them to backends, test_meta.py to planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from seamfast.ops import OUTCOMES, random_labels

Result = TypeVar("Result")

# How much further from float64 than PyTorch in the same dtype a result may be: some units in the last place of float32
# for losses (a sum of exponentials has another order), one rounding of the gradient's dtype.
LOSS_SLACK = {torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
GRAD_SLACK = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def exact_loss(
    logits: Tensor, labels: Tensor, mixed: tuple[Tensor, Tensor] | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by PyTorch, in the dtype of ``logits``."""
    x = logits.detach().clone().requires_grad_()
    targets = F.one_hot(labels, x.shape[1]).to(x.dtype)
    if mixed is not None:
        other, weight = mixed
        w = weight.to(x.dtype)[:, None]
        targets = w * targets + (1 - w) * F.one_hot(other, x.shape[1]).to(x.dtype)
        loss = F.cross_entropy(x, targets, reduction=reduction)
    else:
        loss = F.cross_entropy(x, labels, reduction=reduction)
    loss.sum().backward()
    assert x.grad is not None
    return loss.detach(), x.grad


def check_loss(
    logits: Tensor,
    trained: Tensor,
    loss: Tensor,
    grad: Tensor,
    *,
    mixed: tuple[Tensor, Tensor] | None = None,
    reduction: str = "mean",
) -> None:
    """Loss and gradient on ``trained`` labels are as close to float64 as PyTorch's in the dtype of ``logits``."""
    arguments: Any = (trained, mixed, reduction)
    exact, exact_grad = exact_loss(logits.double(), *arguments)
    theirs, their_grad = exact_loss(logits, *arguments)
    assert loss.dtype == torch.float32
    assert loss.shape == exact.shape
    assert grad.dtype == logits.dtype
    assert grad.shape == logits.shape
    if not len(logits):
        return
    scale = float(exact.abs().max())
    assert float((loss - exact).abs().max()) <= float((theirs - exact).abs().max()) + LOSS_SLACK[logits.dtype] * scale
    largest = float(exact_grad.abs().max())
    allowed = float((their_grad - exact_grad).abs().max()) + GRAD_SLACK[logits.dtype] * largest
    assert float((grad - exact_grad).abs().max()) <= allowed  # NaN is not <= anything


def labels_of(grad: Tensor) -> Tensor:
    """The label that each row was trained on: the place of the one negative element of its gradient."""
    assert ((grad < 0).sum(1) == 1).all()
    return (grad < 0).long().argmax(1)


def check_labels(labels: Tensor, ids: Tensor, grad: Tensor, seed: Any, step: Any, exclude_true: bool) -> None:
    """The drawn labels are those of ``random_labels``."""
    wanted = random_labels(labels, ids, num_classes=grad.shape[1], seed=seed, step=step, exclude_true=exclude_true)
    assert torch.equal(labels_of(grad), wanted)


def check_count(logits: Tensor, labels: Tensor, n_correct: Tensor) -> None:
    """The number of rows whose first largest logit is at the label, none of them with NaN: counted one by one."""
    count = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if all(value == value for value in row):
            count += row.index(max(row)) == label
    assert n_correct.dtype == torch.int64
    assert int(n_correct) == count


def counted_slowly(logits: Tensor, labels: Tensor, targets: Tensor, trigger_ids: Tensor) -> tuple[Tensor, Tensor]:
    """``(counters, class_correct)`` row by row, in plain Python."""
    triggers, classes = targets.shape
    counters = [[0] * len(OUTCOMES) for _ in range(triggers + 1)]
    class_correct = [[0] * classes for _ in range(triggers + 1)]
    wanted_classes = targets.tolist()
    for row, label, trigger in zip(logits.tolist(), labels.tolist(), trigger_ids.tolist(), strict=True):
        nan = any(value != value for value in row)
        predicted = -1 if nan else row.index(max(row))
        wanted = label if trigger < 0 else wanted_classes[trigger][label]
        outcomes = (
            True,
            predicted == label,
            wanted != label,
            wanted != label and predicted == wanted,
            wanted != label and predicted == label,
            nan,
        )
        counters[trigger] = [n + yes for n, yes in zip(counters[trigger], outcomes, strict=True)]
        class_correct[trigger][label] += predicted == label
    return torch.tensor(counters), torch.tensor(class_correct)


def check_outcomes(
    logits: Tensor, labels: Tensor, targets: Tensor, trigger_ids: Tensor, found: tuple[Tensor, Tensor]
) -> None:
    """Both results are those of ``counted_slowly``."""
    for got, want in zip(found, counted_slowly(logits, labels, targets, trigger_ids), strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got.cpu(), want)


def check_batch(got: Tensor, want: Tensor) -> None:
    """Two batches have the same bits, dtype and memory format."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    for layout in (torch.contiguous_format, torch.channels_last):
        assert got.is_contiguous(memory_format=layout) == want.is_contiguous(memory_format=layout)
    bits = torch.int32 if got.dtype == torch.float32 else torch.int16
    assert torch.equal(got.cpu().contiguous().view(bits), want.cpu().contiguous().view(bits))


def captured(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of a call, and the tensors that each replay fills. Raises where the call waits for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph, result
