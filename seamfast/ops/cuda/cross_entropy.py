"""``cross_entropy`` of few classes through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.errors import ShapeError
from seamfast.ops.arguments import CrossEntropyArguments
from seamfast.ops.cuda.native import address, counter, load, queue
from seamfast.ops.normalization import DTYPES


def cross_entropy(args: CrossEntropyArguments) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's; a label out of range makes its row's loss NaN, and never correct.

    Raises:
        ShapeError: ``logits has shape (128, 2000); expected at most 1024 classes with backend 'cuda'``.
    """
    native = load()
    logits, each = args.logits, args.reduction == "none"
    n, classes = logits.shape
    if classes > native.MAX_CLASSES:
        wanted = f"at most {native.MAX_CLASSES} classes with backend 'cuda'"
        raise ShapeError(f"logits has shape {tuple(logits.shape)}; expected {wanted}")
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if args.want_grad else logits.new_empty(0)
    if n == 0:
        empty = float("nan") if args.reduction == "mean" else 0.0
        loss = torch.full((0,) if each else (), empty, device=logits.device)
        return loss, grad, args.labels.new_zeros(())
    loss = logits.new_empty((n,) if each else (), dtype=torch.float32)
    n_correct = args.labels.new_empty(())
    blocks = native.cross_entropy_blocks(n, classes)
    parts = n_correct.new_empty(blocks) if blocks > 1 else None
    # The extension reads vectors as they lie in memory. Copies may go when this returns: the stream keeps the order.
    labels, sample_ids, mixed_labels, mixed_weight = (
        None if value is None else value.contiguous()
        for value in (args.labels, args.sample_ids, args.mixed_labels, args.mixed_weight)
    )
    device = logits.get_device()
    with torch.cuda.device(device):
        native.cross_entropy(
            logits.data_ptr(),
            DTYPES.index(logits.dtype),
            n,
            classes,
            *logits.stride(),
            address(labels),
            address(sample_ids),
            address(mixed_labels),
            address(mixed_weight),
            *counter(args.seed),
            *counter(args.step),
            args.exclude_true,
            1.0 / n if args.reduction == "mean" else 1.0,
            each,
            loss.data_ptr(),
            grad.data_ptr() if args.want_grad else 0,
            n_correct.data_ptr(),
            address(parts),
            *queue(device),
        )
    return loss, grad, n_correct
