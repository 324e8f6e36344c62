"""``occlude`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.occlude import length_thresholds
from seamfast.ops.philox import STREAM_OCCLUDE, below, draw

_NOISE = 1 << 24
"""Streams of noise: block ``b`` of 128 bits of rectangle ``r`` is ``(r + 1) * _NOISE + b``."""


def occlude(
    images: Tensor,
    mean: Tensor,
    lowest: Tensor,
    highest: Tensor,
    sample_ids: Tensor,
    *,
    n_rectangles: int,
    largest: float,
    seed: int | Tensor,
    step: int | Tensor,
    threads: int,
) -> tuple[Tensor, Tensor]:
    """Of checked arguments, ``seamfast.ops.occlude``; ``mean`` is the mean image. ``threads`` is PyTorch's affair."""
    n, channels, height, width = images.shape
    low = lowest.view(1, -1, 1, 1)
    reach = highest.view(1, -1, 1, 1) - low
    occluded, neutral = images.clone(), images.clone()
    for rectangle in range(n_rectangles):
        stream = STREAM_OCCLUDE + 1024 * rectangle
        sides = draw(seed, sample_ids, step, stream)
        kind, partner, _, _ = draw(seed, sample_ids, step, stream + 1)
        words = [word for four in range(-(-channels // 4)) for word in draw(seed, sample_ids, step, stream + 2 + four)]
        color = torch.stack(words[:channels], 1).view(n, channels, 1, 1)

        rows = _covered(sides[0], sides[1], height, largest)
        columns = _covered(sides[2], sides[3], width, largest)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]

        # With equal odds: a colour of the range, a colour of its ends, noise of its ends, another image.
        kind = (kind >> 30).view(n, 1, 1, 1)
        share = torch.where(kind == 0, (color >> 8).float() * 2**-24, (color >> 31).float())
        noise = _bits(seed, sample_ids, step, rectangle, images)
        filling = low + reach * torch.where(kind == 2, noise, share)
        filling = torch.where(kind == 3, images[below(partner, n)], filling)
        occluded = torch.where(inside, filling, occluded)
        neutral = torch.where(inside, mean, neutral)
    layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    return occluded.contiguous(memory_format=layout), neutral.contiguous(memory_format=layout)


def _covered(length_word: Tensor, place_word: Tensor, side: int, largest: float) -> Tensor:
    """``(N, side)`` bool. From touching the first position to touching the last, alike for all; then pushed inside."""
    length = torch.ones_like(length_word)
    for threshold in length_thresholds(side, largest):
        length = length + (length_word >= threshold)
    begin = ((place_word * (side + length - 1)) >> 32) - (length - 1)
    begin = torch.minimum(begin.clamp(min=0), side - length)[:, None]
    at = torch.arange(side, device=length.device)
    return (at >= begin) & (at < begin + length[:, None])


def _bits(seed: int | Tensor, sample_ids: Tensor, step: int | Tensor, rectangle: int, images: Tensor) -> Tensor:
    """0 or 1 for each number of ``images``: the bits of a rectangle's words, from the lowest on."""
    n, size = len(images), images[0].numel() if len(images) else 0
    shifts = torch.arange(32, device=images.device)
    found = []
    for block in range(-(-size // 128)):
        words = torch.stack(draw(seed, sample_ids, step, (rectangle + 1) * _NOISE + block), 1)
        found.append((words[:, :, None] >> shifts & 1).view(n, 128))
    bits = torch.cat(found, 1)[:, :size] if found else sample_ids.new_zeros(n, 0)
    return bits.reshape(images.shape).float()
