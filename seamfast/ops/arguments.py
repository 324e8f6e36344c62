"""The checked arguments of each operation: one record, which the public function makes and every backend takes.

A record is a tuple, which is immutable and takes a third of a frozen dataclass's time to make: beside the loss of a
small batch that shows. The order of the fields is that of the operator's schema, which ``library.py`` derives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seamfast.checks import check_tensor, dtype_name
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops.normalization import DTYPES, Normalization, normalization
from seamfast.ops.philox import Counter

__all__ = [
    "REDUCTIONS",
    "CountArguments",
    "CrossEntropyArguments",
    "GatherArguments",
    "OccludeArguments",
    "StampArguments",
    "check_contiguous",
    "check_dtype",
    "check_images",
    "check_logits",
    "empty_batch",
    "normalization_of",
]

REDUCTIONS = ("none", "sum", "mean")
"""How the losses of the rows become one; in the order of ``Reduction`` in ``csrc/ops/cross_entropy.h``."""


class CrossEntropyArguments(NamedTuple):
    """Of ``cross_entropy``. A backend returns the loss, its gradient (empty unless wanted) and the count of correct.

    Attributes:
        sample_ids: the labels are drawn by these; ``None``: the loss is on ``labels``.
        mixed_labels, mixed_weight: see ``true_label_cross_entropy``; both or neither.
        exclude_true: of the labels that are drawn.
    """

    logits: Tensor
    labels: Tensor
    sample_ids: Tensor | None
    mixed_labels: Tensor | None
    mixed_weight: Tensor | None
    seed: Counter
    step: Counter
    exclude_true: bool
    reduction: str
    want_grad: bool
    backend: str
    threads: int


class GatherArguments(NamedTuple):
    """Of ``gather_augment``. A backend returns the batch."""

    images: Tensor
    indices: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    seed: Counter
    epoch: Counter
    dtype: torch.dtype
    channels_last: bool
    backend: str
    threads: int


class StampArguments(NamedTuple):
    """Of ``stamp_trigger``. A backend returns the batch.

    Attributes:
        rows, device_rows, numbers: see ``TriggerTable``.
    """

    images: Tensor
    indices: Tensor
    trigger_ids: Tensor
    sample_ids: Tensor
    rows: Tensor
    device_rows: Tensor
    numbers: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: Counter
    dtype: torch.dtype
    channels_last: bool
    backend: str
    threads: int


class CountArguments(NamedTuple):
    """Of ``count_outcomes``. A backend adds to ``counters`` and ``class_correct``, and returns nothing.

    Attributes:
        trigger_ids: ``None``: no sample has a trigger.
    """

    counters: Tensor
    class_correct: Tensor | None
    logits: Tensor
    labels: Tensor
    trigger_ids: Tensor | None
    targets: Tensor
    backend: str
    threads: int

    def mark_written(self) -> None:
        """Report to autograd that the counters changed: it does not see a write through an address."""
        for written in (self.counters, self.class_correct):
            if written is not None and not written.is_inference():
                torch.autograd.graph.increment_version(written)


class OccludeArguments(NamedTuple):
    """Of ``occlude``. A backend returns the images under patterns, and under the mean image.

    Attributes:
        images: contiguous, or ``torch.channels_last``.
        mean: ``(C, H, W)``, the mean image.
    """

    images: Tensor
    mean: Tensor
    lowest: Tensor
    highest: Tensor
    sample_ids: Tensor
    n_rectangles: int
    largest: float
    seed: Counter
    step: Counter
    backend: str
    threads: int


def empty_batch(args: GatherArguments | StampArguments) -> Tensor:
    """The batch that the operation returns, uninitialized."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    shape = (args.indices.shape[0], *args.images.shape[1:])
    return torch.empty(shape, dtype=args.dtype, device=args.images.device, memory_format=layout)


def normalization_of(args: GatherArguments | StampArguments) -> Normalization:
    """``normalization(mean, std, channels)``."""
    return normalization(args.mean, args.std, args.images.shape[1])


def check_logits(logits: object) -> None:
    """Raises ``DTypeError`` unless ``logits`` is a tensor of float32, bfloat16 or float16."""
    if not isinstance(logits, Tensor):
        raise DTypeError(f"logits is a {type(logits).__name__}; expected a torch.Tensor")
    if logits.dtype not in DTYPES:
        wanted = ", ".join(map(dtype_name, DTYPES))
        raise DTypeError(f"logits has dtype {dtype_name(logits.dtype)}; expected one of {wanted}")


def check_images(images: Tensor, dtype: torch.dtype, max_channels: int) -> None:
    """Raises unless ``images`` is ``(N, C, H, W)`` of ``dtype``, with 1 to ``max_channels`` channels and a pixel."""
    check_tensor("images", images, dtype)
    wanted = "(N, C, H, W)"
    if images.ndim == 4:
        _, channels, height, width = images.shape
        if 1 <= channels <= max_channels and height >= 1 and width >= 1:
            return
        wanted = f"(N, C, H, W) with C in [1, {max_channels}] and at least one pixel"
    raise ShapeError(f"images has shape {tuple(images.shape)}; expected {wanted}")


def check_contiguous(name: str, value: Tensor) -> None:
    """Raises ``InputError`` unless ``value`` is contiguous."""
    if not value.is_contiguous():
        raise InputError(f"{name} has strides {value.stride()}; expected a contiguous tensor")


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ``DTypeError`` unless pixels can be normalized to ``dtype``."""
    if dtype not in DTYPES:
        raise DTypeError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
