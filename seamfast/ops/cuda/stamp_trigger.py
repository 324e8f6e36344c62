"""``stamp_trigger`` through the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.arguments import StampArguments, empty_batch, normalization_of
from seamfast.ops.cuda.native import address, counter, load, queue
from seamfast.ops.normalization import DTYPES


def stamp_trigger(args: StampArguments) -> Tensor:
    """As the reference's; an index or trigger out of range makes its image NaN."""
    native, images, out = load(), args.images, empty_batch(args)
    batch, channels, height, width = out.shape
    if batch == 0:
        return out
    # The extension reads vectors as they lie in memory. Copies may go when this returns: the stream keeps the order.
    indices, trigger_ids, sample_ids = (ids.contiguous() for ids in (args.indices, args.trigger_ids, args.sample_ids))
    rows, device_rows, numbers = (part.contiguous() for part in (args.rows, args.device_rows, args.numbers))
    above = None
    if native.dithers(rows.data_ptr(), len(rows)):  # rows lie on the CPU: looking waits for nothing
        above = numbers.new_empty(batch * channels * width)
    device = images.get_device()
    with torch.cuda.device(device):
        native.stamp_trigger(
            images.data_ptr(),
            len(images),
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
            normalization_of(args).table(args.dtype, images.device).data_ptr(),
            DTYPES.index(args.dtype),
            *counter(args.seed),
            out.data_ptr(),
            args.channels_last,
            address(above),
            *queue(device),
        )
    return out
