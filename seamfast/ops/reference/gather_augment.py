"""``gather_augment`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import check_in_range
from seamfast.ops.normalization import Normalization
from seamfast.ops.philox import STREAM_AUGMENT, below, draw


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
) -> Tensor:
    """Of checked arguments, ``seamfast.ops.gather_augment``. ``threads`` is PyTorch's own affair."""
    count, channels, height, width = images.shape
    if images.device.type == "cpu":
        check_in_range("indices", indices, count)

    # Where each pixel of the result comes from: flipped, then moved by the crop, then reflected at the edges.
    rows = torch.arange(height, device=images.device).expand(len(indices), -1)
    columns = torch.arange(width, device=images.device).expand(len(indices), -1)
    if pad or flip:
        down, right, mirror, _ = (word[:, None] for word in draw(seed, indices, epoch, STREAM_AUGMENT))
        if flip:
            columns = torch.where(mirror >> 31 == 1, width - 1 - columns, columns)
        rows = _reflect(rows + below(down, 2 * pad + 1) - pad, height)
        columns = _reflect(columns + below(right, 2 * pad + 1) - pad, width)

    channel = torch.arange(channels, device=images.device)[:, None, None]
    pixels = images[indices[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
    values = normalization.table(dtype, images.device)[channel, pixels.long()]
    if out is None and channels_last:
        out = torch.empty_like(values, memory_format=torch.channels_last)
    return values if out is None else out.copy_(values)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside ``[0, size)`` by less than ``size``, mirrored at the first and the last one."""
    last = size - 1
    return last - (last - position.abs()).abs()
