"""``augmented_places``: which pixel of an image each pixel of a random crop and flip comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.philox import STREAM_AUGMENT, Counter, below, draw


def augmented_places(
    sample_ids: Tensor, height: int, width: int, *, pad: int, flip: bool, seed: Counter, epoch: Counter
) -> tuple[Tensor, Tensor]:
    """Rows and columns, ``(B, height)`` and ``(B, width)`` int64, of images flipped, moved, and reflected at the edges.

    Args:
        sample_ids: ``(B,)`` int64.
        height, width: of the images.
        pad, flip, seed, epoch: see ``gather_augment``, which is defined by these places.
    """
    device, n = sample_ids.device, len(sample_ids)
    rows, columns = (torch.arange(size, device=device).expand(n, -1) for size in (height, width))
    if pad or flip:
        down, right, mirror, _ = (word[:, None] for word in draw(seed, sample_ids, epoch, STREAM_AUGMENT))
        if flip:
            columns = torch.where(mirror >> 31 == 1, width - 1 - columns, columns)
        rows = _reflect(rows + below(down, 2 * pad + 1) - pad, height)
        columns = _reflect(columns + below(right, 2 * pad + 1) - pad, width)
    return rows, columns


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside ``[0, size)`` by less than ``size``, mirrored at the first and the last one."""
    last = size - 1
    return last - (last - position.abs()).abs()
