"""``gather_augment`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import check_in_range
from seamfast.ops.arguments import GatherArguments
from seamfast.ops.philox import STREAM_AUGMENT, below, draw
from seamfast.ops.reference.pixels import normalized


def gather_augment(args: GatherArguments) -> Tensor:
    """``seamfast.ops.gather_augment`` of checked arguments."""
    images, indices, pad = args.images, args.indices, args.pad
    count, channels, height, width = images.shape
    if images.device.type == "cpu":
        check_in_range("indices", indices, count)

    # Where each pixel of the result comes from: flipped, then moved by the crop, then reflected at the edges.
    rows = torch.arange(height, device=images.device).expand(len(indices), -1)
    columns = torch.arange(width, device=images.device).expand(len(indices), -1)
    if pad or args.flip:
        down, right, mirror, _ = (word[:, None] for word in draw(args.seed, indices, args.epoch, STREAM_AUGMENT))
        if args.flip:
            columns = torch.where(mirror >> 31 == 1, width - 1 - columns, columns)
        rows = _reflect(rows + below(down, 2 * pad + 1) - pad, height)
        columns = _reflect(columns + below(right, 2 * pad + 1) - pad, width)

    channel = torch.arange(channels, device=images.device)[:, None, None]
    pixels = images[indices[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
    return normalized(pixels, args)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside ``[0, size)`` by less than ``size``, mirrored at the first and the last one."""
    last = size - 1
    return last - (last - position.abs()).abs()
