"""``augmented_images``: images by index, cropped and flipped at random, not yet normalized."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.philox import STREAM_AUGMENT, Counter, below, draw


def augmented_images(images: Tensor, indices: Tensor, *, pad: int, flip: bool, seed: Counter, epoch: Counter) -> Tensor:
    """``images[indices]``, each flipped, moved, and reflected at the edges.

    Args:
        images: ``(N, C, H, W)`` of any dtype.
        indices: ``(B,)`` int64 in ``[0, N)``, on the device of ``images``.
        pad, flip, seed, epoch: see ``gather_augment``, which this defines.

    Returns:
        ``(B, C, H, W)``, new.
    """
    if not (pad or flip):
        return images[indices]
    channels, height, width = images.shape[1:]
    channel, rows, columns = (torch.arange(size, device=images.device) for size in (channels, height, width))
    down, right, mirror, _ = (word[:, None] for word in draw(seed, indices, epoch, STREAM_AUGMENT))
    if flip:
        columns = torch.where(mirror >> 31 == 1, width - 1 - columns, columns)
    rows = _reflect(rows + below(down, 2 * pad + 1) - pad, height)
    columns = _reflect(columns + below(right, 2 * pad + 1) - pad, width)
    return images[indices[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside ``[0, size)`` by less than ``size``, mirrored at the first and the last one."""
    last = size - 1
    return last - (last - position.abs()).abs()
