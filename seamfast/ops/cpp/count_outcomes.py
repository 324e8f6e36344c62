"""``count_outcomes`` through the compiled extension."""

from __future__ import annotations

from seamfast.checks import out_of_range
from seamfast.ops.arguments import CountArguments
from seamfast.ops.cpp.native import LOGIT_TYPES, address, default_threads, load


def count_outcomes(args: CountArguments, isa: str = "") -> None:
    """As the reference's. ``isa`` forces an instruction set, for tests."""
    rows, classes = args.logits.shape
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    labels = args.labels.contiguous()
    ids = None if args.trigger_ids is None else args.trigger_ids.contiguous()
    which, bad = load().count_outcomes(
        args.logits.data_ptr(),
        LOGIT_TYPES[args.logits.dtype],
        rows,
        classes,
        *args.logits.stride(),
        labels.data_ptr(),
        address(ids),
        args.targets.data_ptr(),
        len(args.targets),
        args.counters.data_ptr(),
        address(args.class_correct),
        args.threads or default_threads(),
        isa,
    )
    if which == 0:
        raise out_of_range("labels", labels, bad, classes)
    if which == 1 and ids is not None:
        raise out_of_range("trigger_ids", ids, bad, len(args.targets), low=-1)
    args.mark_written()
