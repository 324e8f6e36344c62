"""``gather_augment`` through the compiled extension."""

from __future__ import annotations

from torch import Tensor

from seamfast.checks import out_of_range
from seamfast.ops.arguments import GatherArguments, empty_batch, normalization_of
from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.normalization import DTYPES


def gather_augment(args: GatherArguments, isa: str = "") -> Tensor:
    """As the reference's. ``isa`` forces an instruction set, for tests."""
    images, indices, out = args.images, args.indices.contiguous(), empty_batch(args)
    normalization = normalization_of(args)
    bad = load().gather_augment(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        indices=indices.data_ptr(),
        batch=len(indices),
        out=out.data_ptr(),
        element=DTYPES.index(args.dtype),
        channels_last=args.channels_last,
        table=normalization.table(args.dtype, images.device).data_ptr(),
        scale=normalization.scale,
        bias=normalization.bias,
        pad=args.pad,
        flip=args.flip,
        seed=int(args.seed) & 0xFFFFFFFFFFFFFFFF,
        epoch=int(args.epoch) & 0xFFFFFFFF,
        threads=args.threads or default_threads(),
        isa=isa,
    )
    if bad >= 0:
        raise out_of_range("indices", indices, bad, len(images))
    return out
