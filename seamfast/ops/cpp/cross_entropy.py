"""``cross_entropy`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import out_of_range
from seamfast.ops.cpp.native import LOGIT_TYPES, load
from seamfast.ops.library import NONE


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
    isa: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Of checked arguments, as the reference's. ``isa`` forces an instruction set, for tests."""
    rows, classes = logits.shape
    loss = torch.empty((rows,) if reduction == NONE else (), dtype=torch.float32)
    grad = torch.empty((rows, classes) if want_grad else 0, dtype=logits.dtype)
    n_correct = torch.empty((), dtype=torch.int64)
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    labels = labels.contiguous()
    sample_ids, mixed_labels, mixed_weight = (
        None if value is None else value.contiguous() for value in (sample_ids, mixed_labels, mixed_weight)
    )
    which, bad = load().cross_entropy(
        logits.data_ptr(),
        LOGIT_TYPES[logits.dtype],
        rows,
        classes,
        *logits.stride(),
        labels.data_ptr(),
        0 if sample_ids is None else sample_ids.data_ptr(),
        0 if mixed_labels is None else mixed_labels.data_ptr(),
        0 if mixed_weight is None else mixed_weight.data_ptr(),
        int(seed) & 0xFFFFFFFFFFFFFFFF,
        int(step) & 0xFFFFFFFF,
        exclude_true,
        label_smoothing,
        reduction,
        loss.data_ptr() if rows or reduction != NONE else n_correct.data_ptr(),
        grad.data_ptr() if want_grad else 0,
        n_correct.data_ptr(),
        threads,
        isa,
    )
    if which >= 0:
        name, values = ("labels", labels) if which == 0 else ("mixed_labels", mixed_labels)
        assert values is not None
        raise out_of_range(name, values, bad, classes)
    return loss, grad, n_correct
