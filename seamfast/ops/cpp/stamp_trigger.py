"""``stamp_trigger`` through the compiled extension."""

from __future__ import annotations

from torch import Tensor

from seamfast.checks import out_of_range
from seamfast.ops.arguments import StampArguments, empty_batch, normalization_of
from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.normalization import DTYPES


def stamp_trigger(args: StampArguments, isa: str = "") -> Tensor:
    """As the reference's. ``isa`` forces an instruction set, for tests."""
    images, out = args.images, empty_batch(args)
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    indices, trigger_ids, sample_ids, rows, numbers = (
        value.contiguous() for value in (args.indices, args.trigger_ids, args.sample_ids, args.rows, args.numbers)
    )
    normalization = normalization_of(args)
    which, bad = load().stamp_trigger(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        indices=indices.data_ptr(),
        trigger_ids=trigger_ids.data_ptr(),
        sample_ids=sample_ids.data_ptr(),
        batch=len(indices),
        rows=rows.data_ptr(),
        triggers=len(rows),
        numbers=numbers.data_ptr(),
        size=len(numbers),
        out=out.data_ptr(),
        element=DTYPES.index(args.dtype),
        channels_last=args.channels_last,
        table=normalization.table(args.dtype, images.device).data_ptr(),
        scale=normalization.scale,
        bias=normalization.bias,
        seed=int(args.seed) & 0xFFFFFFFFFFFFFFFF,
        threads=args.threads or default_threads(),
        isa=isa,
    )
    if which == 0:
        raise out_of_range("indices", indices, bad, len(images))
    if which == 1:
        raise out_of_range("trigger_ids", trigger_ids, bad, len(rows), low=-1)
    return out
