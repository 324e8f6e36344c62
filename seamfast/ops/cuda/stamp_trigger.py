"""``stamp_trigger`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.cuda.native import counter, load, queue
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
) -> Tensor:
    """Of checked arguments, as the reference's; an index or trigger out of range makes its image NaN."""
    native = load()
    count, channels, height, width = images.shape
    batch = len(indices)
    fresh = out is None
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty((batch, channels, height, width), dtype=dtype, device=images.device, memory_format=layout)
    if batch == 0:
        return out
    interleaved = not images.is_contiguous()
    if interleaved and not images.permute(0, 2, 3, 1).is_contiguous():
        images, interleaved = images.contiguous(), False
    # The extension reads vectors as they lie in memory. Copies may go when this returns: the stream keeps the order.
    indices, trigger_ids, sample_ids = (ids.contiguous() for ids in (indices, trigger_ids, sample_ids))
    rows, device_rows, numbers = rows.contiguous(), device_rows.contiguous(), numbers.contiguous()
    above = None
    if native.dithers(rows.data_ptr(), len(rows)):  # rows lie on the CPU: looking waits for nothing
        above = numbers.new_empty(batch * channels * width)
    device = images.get_device()
    with torch.cuda.device(device):
        native.stamp_trigger(
            images.data_ptr(),
            interleaved,
            count,
            channels,
            height,
            width,
            indices.data_ptr(),
            trigger_ids.data_ptr(),
            sample_ids.data_ptr(),
            batch,
            device_rows.data_ptr(),
            len(rows),
            numbers.data_ptr(),
            normalization.table(dtype, images.device).data_ptr(),
            DTYPES.index(dtype),
            *counter(seed),
            out.data_ptr(),
            channels_last,
            0 if above is None else above.data_ptr(),
            *queue(device),
        )
    if not fresh and not out.is_inference():
        torch.autograd.graph.increment_version(out)  # autograd does not see a kernel's write
    return out
