"""Cross-entropy on random or true labels, with its gradient and the count of correct predictions, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seamfast.checks import MAX_THREADS, as_integer, check_flag, check_vector
from seamfast.errors import InputError, ShapeError
from seamfast.ops import library
from seamfast.ops.arguments import REDUCTIONS, CrossEntropyArguments, check_logits
from seamfast.ops.philox import Counter, as_seed, as_when

__all__ = [
    "LossAndCount",
    "random_label_cross_entropy",
    "random_label_loss_and_count",
    "true_label_cross_entropy",
    "true_label_loss_and_count",
]

_MAX_CLASSES = 100_000


class LossAndCount(NamedTuple):
    """The result of one pass over the logits.

    Attributes:
        loss: float32, part of autograd: ``()``, or ``(N,)`` with ``reduction="none"``.
        n_correct: ``()`` int64 on the device: rows whose largest logit (the first, of equals) is at the true label. A
            row with NaN is never correct.
    """

    loss: Tensor
    n_correct: Tensor


def random_label_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sample_ids: Tensor,
    *,
    seed: Counter,
    step: Counter,
    exclude_true: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    threads: int = 0,
) -> Tensor:
    """``F.cross_entropy(logits.float(), random_labels(labels, sample_ids, num_classes=C, seed=seed, step=step))``.

    The labels are drawn inside the pass and never stored. They are those of :func:`seamfast.ops.random_labels`, to the
    bit, on every backend; the loss is computed and accumulated in float32.

    Args:
        logits: ``(N, C)`` float32, bfloat16 or float16, on any device, of any strides; N from 0, C from 2 to 100,000.
        labels: ``(N,)`` int64, the true classes, in ``[0, C)``.
        sample_ids: ``(N,)`` int64, the name of each sample in the draws: its index in the data set.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        step: in ``[0, 2**32)``; or an int64 0-d tensor on the device, taken modulo ``2**32``. New labels at each step.
        exclude_true: never draw the true class; otherwise all classes are equally probable.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. The mean of no rows is NaN, as in PyTorch.
        backend: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.
        threads: for ``"cpp"``, at most so many; 0 is as many as PyTorch has.

    Returns:
        The loss, float32 on the device of ``logits``, to call ``backward()`` on: ``()``, or ``(N,)`` with ``"none"``.
        The gradient is computed in the same pass; there is no second derivative.

    Raises:
        ShapeError: ``logits has shape (10,); expected (N, C)``,
            ``sample_ids has shape (3,); expected (N,) = (4,)``.
        DTypeError: ``logits has dtype float64; expected one of float32, bfloat16, float16``.
        InputError: ``labels hold 10 at position 2; expected integers in [0, 10)`` (on a CUDA device nothing waits for
            the host, so there the loss of such a row is NaN, or an assertion on the device).
        BackendUnavailableError: a named backend cannot run; the message gives the reason.

    Source:
        Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv 2212.04687 (the forgetting step).

    Example:
        >>> logits = torch.zeros(4, 10, requires_grad=True)
        >>> loss = random_label_cross_entropy(logits, torch.arange(4), torch.arange(4), seed=7, step=0)
        >>> loss.backward()
        >>> f"{loss:.4f}", (logits.grad < 0).nonzero()[:, 1].tolist()
        ('2.3026', [2, 0, 4, 0])
    """
    return random_label_loss_and_count(
        logits,
        labels,
        sample_ids,
        seed=seed,
        step=step,
        exclude_true=exclude_true,
        reduction=reduction,
        backend=backend,
        threads=threads,
    ).loss


def random_label_loss_and_count(
    logits: Tensor,
    labels: Tensor,
    sample_ids: Tensor,
    *,
    seed: Counter,
    step: Counter,
    exclude_true: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    threads: int = 0,
) -> LossAndCount:
    """``(random_label_cross_entropy(...), (logits.argmax(1) == labels).sum())``, in one pass, for a training step.

    Args, Raises: as :func:`random_label_cross_entropy`.

    Returns:
        LossAndCount. The count is against the true labels, not the drawn ones.
    """
    _check_logits(logits, labels)
    check_vector("sample_ids", sample_ids, torch.int64, length=labels.shape[0], device=logits.device)
    check_flag("exclude_true", exclude_true)
    args = CrossEntropyArguments(
        logits,
        labels,
        sample_ids,
        None,
        None,
        as_seed(seed, logits.device),
        as_when("step", step, logits.device),
        exclude_true,
        _check_reduction(reduction),
        logits.requires_grad and torch.is_grad_enabled(),
        backend,
        as_integer("threads", threads, 0, MAX_THREADS),
    )
    return LossAndCount(*library.cross_entropy(args))


def true_label_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    mixed_labels: Tensor | None = None,
    mixed_weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    threads: int = 0,
) -> Tensor:
    """``F.cross_entropy(logits.float(), labels)``: the loss of the recovery step.

    With ``mixed_labels``, the targets are ``w * one_hot(labels) + (1 - w) * one_hot(mixed_labels)``: samples mixed as
    by mixup.

    Args:
        mixed_labels: ``(N,)`` int64 in ``[0, C)``, or ``None``.
        mixed_weight: ``(N,)`` float32 in ``[0, 1]``, the share ``w`` of ``labels``; given with ``mixed_labels`` only.
        logits, labels, reduction, backend, threads: as :func:`random_label_cross_entropy`.

    Returns, Raises: as :func:`random_label_cross_entropy`, and
        InputError: ``got mixed_labels without mixed_weight; expected both or neither``.

    Source:
        Zhu et al., arXiv 2212.04687 (the recovery step); Zhang et al., "mixup", arXiv 1710.09412.

    Example:
        >>> true_label_cross_entropy(torch.zeros(4, 10), torch.arange(4))
        tensor(2.3026)
    """
    return true_label_loss_and_count(
        logits,
        labels,
        mixed_labels=mixed_labels,
        mixed_weight=mixed_weight,
        reduction=reduction,
        backend=backend,
        threads=threads,
    ).loss


def true_label_loss_and_count(
    logits: Tensor,
    labels: Tensor,
    *,
    mixed_labels: Tensor | None = None,
    mixed_weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    threads: int = 0,
) -> LossAndCount:
    """``(true_label_cross_entropy(...), (logits.argmax(1) == labels).sum())``, in one pass.

    Args, Raises: as :func:`true_label_cross_entropy`.

    Returns:
        LossAndCount. The count is against ``labels``.
    """
    _check_logits(logits, labels)
    if (mixed_labels is None) != (mixed_weight is None):
        got, missing = ("labels", "weight") if mixed_weight is None else ("weight", "labels")
        raise InputError(f"got mixed_{got} without mixed_{missing}; expected both or neither")
    if mixed_labels is not None and mixed_weight is not None:
        n = labels.shape[0]
        check_vector("mixed_labels", mixed_labels, torch.int64, length=n, device=logits.device)
        check_vector("mixed_weight", mixed_weight, torch.float32, length=n, device=logits.device)
        if mixed_weight.requires_grad:
            raise InputError("mixed_weight requires grad; expected a tensor that does not")
    args = CrossEntropyArguments(
        logits,
        labels,
        None,
        mixed_labels,
        mixed_weight,
        0,
        0,
        False,
        _check_reduction(reduction),
        logits.requires_grad and torch.is_grad_enabled(),
        backend,
        as_integer("threads", threads, 0, MAX_THREADS),
    )
    return LossAndCount(*library.cross_entropy(args))


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits)
    if logits.ndim != 2:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected (N, C)")
    if not 2 <= logits.shape[1] <= _MAX_CLASSES:
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected (N, C) with C in [2, {_MAX_CLASSES}]")
    check_vector("labels", labels, torch.int64, length=logits.shape[0], device=logits.device)


def _check_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction is {reduction!r}; expected one of {', '.join(REDUCTIONS)}")
    return reduction
