"""``cross_entropy`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import out_of_range
from seamfast.ops.arguments import REDUCTIONS, CrossEntropyArguments
from seamfast.ops.cpp.native import LOGIT_TYPES, address, default_threads, load

# Templates of the results, independent of the default dtype and device of torch.
_LOSS, _N_CORRECT = (torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.int64))


def cross_entropy(args: CrossEntropyArguments, isa: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's. ``isa`` forces an instruction set, for tests."""
    logits, each = args.logits, args.reduction == "none"
    rows, classes = logits.shape
    # empty_like takes half the time of empty, which shows beside a kernel of some microseconds.
    loss = torch.empty(rows, dtype=torch.float32) if each else torch.empty_like(_LOSS)
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if args.want_grad else logits.new_empty(0)
    n_correct = torch.empty_like(_N_CORRECT)
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    labels, sample_ids = args.labels.contiguous(), _contiguous(args.sample_ids)
    mixed_labels, mixed_weight = _contiguous(args.mixed_labels), _contiguous(args.mixed_weight)
    which, bad = load().cross_entropy(
        logits.data_ptr(),
        LOGIT_TYPES[logits.dtype],
        rows,
        classes,
        *logits.stride(),
        labels.data_ptr(),
        address(sample_ids),
        address(mixed_labels),
        address(mixed_weight),
        int(args.seed) & 0xFFFFFFFFFFFFFFFF,
        int(args.step) & 0xFFFFFFFF,
        args.exclude_true,
        REDUCTIONS.index(args.reduction),
        loss.data_ptr() if rows or not each else n_correct.data_ptr(),
        grad.data_ptr() if args.want_grad else 0,
        n_correct.data_ptr(),
        args.threads or default_threads(),
        isa,
    )
    if which >= 0:
        name, values = ("labels", labels) if which == 0 else ("mixed_labels", mixed_labels)
        assert values is not None
        raise out_of_range(name, values, bad, classes)
    return loss, grad, n_correct


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
