"""``cross_entropy`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import out_of_range
from seamfast.ops.cpp.native import LOGIT_TYPES, default_threads, load
from seamfast.ops.library import NONE

# What results are made after, whatever the defaults of torch are.
_LOSS, _N_CORRECT = (torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.int64))


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
    # empty_like takes half the time of empty, which shows beside a kernel of some microseconds.
    loss = torch.empty(rows, dtype=torch.float32) if reduction == NONE else torch.empty_like(_LOSS)
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if want_grad else logits.new_empty(0)
    n_correct = torch.empty_like(_N_CORRECT)
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    labels = labels.contiguous()
    if sample_ids is not None:
        sample_ids = sample_ids.contiguous()
    if mixed_labels is not None and mixed_weight is not None:
        mixed_labels, mixed_weight = mixed_labels.contiguous(), mixed_weight.contiguous()
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
        threads or default_threads(),
        isa,
    )
    if which >= 0:
        name, values = ("labels", labels) if which == 0 else ("mixed_labels", mixed_labels)
        assert values is not None
        raise out_of_range(name, values, bad, classes)
    return loss, grad, n_correct
