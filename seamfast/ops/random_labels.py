"""``random_labels``: the labels of the forgetting step."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import as_integer, check_vector
from seamfast.errors import InputError
from seamfast.ops.philox import STREAM_LABELS, Counter, as_seed, as_when, below, draw

__all__ = ["drawn_labels", "random_labels"]


def random_labels(
    labels: Tensor,
    sample_ids: Tensor,
    *,
    num_classes: int,
    seed: Counter,
    step: Counter,
    exclude_true: bool = True,
) -> Tensor:
    """``(labels + torch.randint_like(labels, 1, num_classes)) % num_classes`` in law, but a function of its arguments.

    A label depends on the seed, the sample and the step alone: not on the order of the batch, its size, or the device.
    With ``exclude_true`` it is uniform over the other ``num_classes - 1`` classes, else over all.

    Args:
        labels: ``(N,)`` int64, the true classes in ``[0, num_classes)``, on any device.
        sample_ids: ``(N,)`` int64 on the same device, the name of each sample in the draws: its index in the data set.
        num_classes: in ``[1, 2**31]``, and at least 2 with ``exclude_true``.
        seed: in ``[0, 2**64)``; or an int64 0-d tensor on the device, whose 64 bits are the seed.
        step: in ``[0, 2**32)``; or an int64 0-d tensor on the device, taken modulo ``2**32``. New labels at each step.
        exclude_true: never draw the true class.

    Returns:
        ``(N,)`` int64 on the device of ``labels``, in ``[0, num_classes)``. On a CUDA device nothing waits for the
        host, so ``labels`` is not searched for classes out of range.

    Raises:
        ShapeError: ``sample_ids has shape (3,); expected (N,) = (4,)``.
        DTypeError: ``labels has dtype float32; expected int64``.
        InputError: ``num_classes is 1; expected an integer in [2, 2147483648] with exclude_true=True``,
            ``labels hold 10; expected integers in [0, 10)``.

    Source:
        Zhu et al., "Selective Amnesia", IEEE S&P 2023, arXiv 2212.04687: forgetting trains on labels drawn anew for
        each batch; the wrong classes only, as in the authors' code for CIFAR-10.

    Example:
        >>> labels = torch.tensor([0, 1, 2, 3])
        >>> random_labels(labels, torch.arange(4), num_classes=10, seed=7, step=0).tolist()
        [2, 0, 4, 0]
    """
    check_vector("labels", labels, torch.int64)
    check_vector("sample_ids", sample_ids, torch.int64, length=len(labels), device=labels.device)
    seed, step = as_seed(seed, labels.device), as_when("step", step, labels.device)
    least = 2 if exclude_true else 1
    num_classes = as_integer("num_classes", num_classes, least, 2**31, f" with exclude_true={exclude_true}")
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise InputError(f"labels hold {low if low < 0 else high}; expected integers in [0, {num_classes})")
    return drawn_labels(labels, sample_ids, num_classes, seed, step, exclude_true)


def drawn_labels(
    labels: Tensor, sample_ids: Tensor, num_classes: int, seed: Counter, step: Counter, exclude_true: bool
) -> Tensor:
    """``random_labels`` of checked arguments."""
    word = draw(seed, sample_ids, step, STREAM_LABELS)[0]
    if not exclude_true:
        return below(word, num_classes)
    wrong = below(word, num_classes - 1)
    return wrong + (wrong >= labels)
