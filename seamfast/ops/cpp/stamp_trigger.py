"""``stamp_trigger`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import out_of_range
from seamfast.ops.cpp.native import default_threads, load
from seamfast.ops.normalization import DTYPES, Normalization


def stamp_trigger(
    images: Tensor,
    indices: Tensor,
    trigger_ids: Tensor,
    sample_ids: Tensor,
    *,
    rows: Tensor,
    device_rows: Tensor,
    numbers: Tensor,
    normalization: Normalization,
    seed: int | Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,
    out: Tensor | None,
    isa: str = "",
) -> Tensor:
    """Of checked arguments, as the reference's. ``isa`` forces an instruction set, for tests."""
    interleaved = not images.is_contiguous()
    if interleaved and not images.permute(0, 2, 3, 1).is_contiguous():
        images, interleaved = images.contiguous(), False
    # The extension reads vectors as they lie in memory. Their copies, if any, live as long as these names.
    indices, trigger_ids, sample_ids = (ids.contiguous() for ids in (indices, trigger_ids, sample_ids))
    rows, numbers = rows.contiguous(), numbers.contiguous()
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty((len(indices), *images.shape[1:]), dtype=dtype, memory_format=layout)
    which, bad = load().stamp_trigger(
        images=images.data_ptr(),
        interleaved=interleaved,
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
        element=DTYPES.index(dtype),
        channels_last=channels_last,
        table=normalization.table(dtype, images.device).data_ptr(),
        scale=normalization.scale,
        bias=normalization.bias,
        seed=int(seed) & 0xFFFFFFFFFFFFFFFF,
        threads=threads or default_threads(),
        isa=isa,
    )
    if which == 0:
        raise out_of_range("indices", indices, bad, len(images))
    if which == 1:
        raise out_of_range("trigger_ids", trigger_ids, bad, len(rows), low=-1)
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)  # autograd does not see a write through an address
    return out
