"""``count_outcomes`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import out_of_range
from seamfast.ops.cpp.native import LOGIT_TYPES, default_threads, load


def count_outcomes(
    counters: Tensor,
    class_correct: Tensor | None,
    confusion: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    trigger_ids: Tensor | None,
    targets: Tensor,
    *,
    threads: int,
    isa: str = "",
) -> None:
    """Of checked arguments, as the reference's. ``isa`` forces an instruction set, for tests."""
    rows, classes = logits.shape
    labels = labels.contiguous()
    ids = None if trigger_ids is None else trigger_ids.contiguous()
    which, bad = load().count_outcomes(
        logits.data_ptr(),
        LOGIT_TYPES[logits.dtype],
        rows,
        classes,
        *logits.stride(),
        labels.data_ptr(),
        0 if ids is None else ids.data_ptr(),
        targets.data_ptr(),
        len(targets),
        counters.data_ptr(),
        0 if class_correct is None else class_correct.data_ptr(),
        0 if confusion is None else confusion.data_ptr(),
        threads or default_threads(),
        isa,
    )
    if which == 0:
        raise out_of_range("labels", labels, bad, classes)
    if which == 1 and ids is not None:
        raise out_of_range("trigger_ids", ids, bad, len(targets), low=-1)
    for written in (counters, class_correct, confusion):
        if written is not None and not written.is_inference():
            torch.autograd.graph.increment_version(written)  # autograd does not see a write through an address
