"""``cross_entropy`` of few classes through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.errors import ShapeError
from seamfast.ops.cuda.native import counter, load, queue
from seamfast.ops.library import MEAN, NONE
from seamfast.ops.normalization import DTYPES


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    sample_ids: Tensor | None,
    mixed_labels: Tensor | None,
    mixed_weight: Tensor | None,
    *,
    seed: int | Tensor,
    step: int | Tensor,
    exclude_true: bool,
    label_smoothing: float,
    reduction: int,
    want_grad: bool,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of checked arguments, as the reference's; a label out of range makes its row's loss NaN, and never correct.

    Raises:
        ShapeError: ``logits has shape (128, 2000); expected at most 1024 classes with backend 'cuda'``.
    """
    native = load()
    n, classes = logits.shape
    if classes > native.MAX_CLASSES:
        wanted = f"at most {native.MAX_CLASSES} classes with backend 'cuda'"
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected {wanted}")
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if want_grad else logits.new_empty(0)
    if n == 0:
        empty = float("nan") if reduction == MEAN else 0.0
        loss = torch.full((0,) if reduction == NONE else (), empty, device=logits.device)
        return loss, grad, labels.new_zeros(())
    loss = logits.new_empty((n,) if reduction == NONE else (), dtype=torch.float32)
    n_correct = labels.new_empty(())
    blocks = native.cross_entropy_blocks(n, classes)
    parts = labels.new_empty(blocks) if blocks > 1 else None
    # The extension reads vectors as they lie in memory. Copies may go when this returns: the stream keeps the order.
    labels = labels.contiguous()
    sample_ids, mixed_labels, mixed_weight = (
        None if value is None else value.contiguous() for value in (sample_ids, mixed_labels, mixed_weight)
    )
    device = logits.get_device()
    with torch.cuda.device(device):
        native.cross_entropy(
            logits.data_ptr(),
            DTYPES.index(logits.dtype),
            n,
            classes,
            *logits.stride(),
            labels.data_ptr(),
            0 if sample_ids is None else sample_ids.data_ptr(),
            0 if mixed_labels is None else mixed_labels.data_ptr(),
            0 if mixed_weight is None else mixed_weight.data_ptr(),
            *counter(seed),
            *counter(step),
            exclude_true,
            label_smoothing,
            1.0 / n if reduction == MEAN else 1.0,
            reduction == NONE,
            loss.data_ptr(),
            grad.data_ptr() if want_grad else 0,
            n_correct.data_ptr(),
            0 if parts is None else parts.data_ptr(),
            *queue(device),
        )
    return loss, grad, n_correct
