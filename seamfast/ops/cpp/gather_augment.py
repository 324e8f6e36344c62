"""``gather_augment`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import out_of_range
from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.normalization import DTYPES, Normalization


def gather_augment(
    images: Tensor,
    indices: Tensor,
    *,
    normalization: Normalization,
    pad: int,
    flip: bool,
    seed: int | Tensor,
    epoch: int | Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,
    out: Tensor | None,
    isa: str = "",
) -> Tensor:
    """Of checked arguments, ``seamfast.ops.gather_augment``. ``isa`` forces an instruction set, for tests."""
    native = load()
    indices = indices.contiguous()
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty((len(indices), *images.shape[1:]), dtype=dtype, memory_format=layout)
    table = normalization.table(dtype, images.device)
    bad = native.gather_augment(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        indices=indices.data_ptr(),
        batch=len(indices),
        out=out.data_ptr(),
        element=DTYPES.index(dtype),
        channels_last=channels_last,
        table=table.data_ptr(),
        scale=normalization.scale,
        bias=normalization.bias,
        pad=pad,
        flip=flip,
        seed=int(seed) & 0xFFFFFFFFFFFFFFFF,
        epoch=int(epoch) & 0xFFFFFFFF,
        threads=threads or default_threads(),
        isa=isa,
    )
    if bad >= 0:
        raise out_of_range("indices", indices, bad, len(images))
    if not out.is_inference():
        # Autograd does not see a write through an address. Unless told, it would let a tensor that it saved for the
        # backward pass change, and compute a wrong gradient without a word.
        torch.autograd.graph.increment_version(out)
    return out
