"""``occlude`` as its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.arguments import OccludeArguments
from seamfast.ops.occlude import thresholds_on
from seamfast.ops.philox import STREAM_OCCLUDE, STREAMS_OF_NOISE, STREAMS_OF_RECTANGLE, below, draw


def occlude(args: OccludeArguments) -> tuple[Tensor, Tensor]:
    """``seamfast.ops.occlude`` of checked arguments."""
    images, n_rectangles = args.images, args.n_rectangles
    n, channels, height, width = images.shape
    size = channels * height * width
    low = args.lowest.view(1, -1, 1, 1)
    reach = args.highest.view(1, -1, 1, 1) - low

    # (N, rectangles, draws, 4): of each rectangle its sides, its kind and other image, its colors, four channels each;
    # and its noise, 128 bits each.
    rectangle = torch.arange(n_rectangles, device=images.device)[:, None]
    draws = torch.arange(2 + -(-channels // 4), device=images.device)
    blocks = torch.arange(-(-size // 128), device=images.device)
    first, first_of_noise = STREAM_OCCLUDE + STREAMS_OF_RECTANGLE * rectangle, STREAMS_OF_NOISE * (rectangle + 1)
    streams = torch.cat([first + draws, first_of_noise + blocks], 1)
    words = torch.stack(draw(args.seed, args.sample_ids[:, None, None], args.step, streams), 3)
    words, noise = words[:, :, : len(draws)], words[:, :, len(draws) :]

    rows = _covered(words[:, :, 0, 0], words[:, :, 0, 1], height, args.largest)
    columns = _covered(words[:, :, 0, 2], words[:, :, 0, 3], width, args.largest)
    inside = (rows[:, :, :, None] & columns[:, :, None, :])[:, :, None]
    kind = (words[:, :, 1, 0] >> 30)[:, :, None, None, None]
    partner = below(words[:, :, 1, 1], n)
    color = words[:, :, 2:].flatten(2)[:, :, :channels, None, None]
    # With equal odds: a color of the range, a color of its ends, noise of its ends, another image.
    share = torch.where(kind == 0, (color >> 8).float() * 2**-24, (color >> 31).float())
    shifts = torch.arange(32, device=images.device)

    occluded = images.clone()
    for r in range(n_rectangles):
        bits = (noise[:, r, :, :, None] >> shifts & 1).flatten(1)[:, :size].view(images.shape)  # from the lowest on
        filling = low + reach * torch.where(kind[:, r] == 2, bits.float(), share[:, r])
        filling = torch.where(kind[:, r] == 3, images[partner[:, r]], filling)
        occluded = torch.where(inside[:, r], filling, occluded)
    neutral = torch.where(inside.any(1), args.mean, images)
    layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    return occluded.contiguous(memory_format=layout), neutral.contiguous(memory_format=layout)


def _covered(length_word: Tensor, place_word: Tensor, side: int, largest: float) -> Tensor:
    """``(N, rectangles, side)`` bool. From touching the first position to touching the last; then pushed inside."""
    length = 1 + (length_word[:, :, None] >= thresholds_on(side, largest, length_word.device)).sum(2)
    begin = ((place_word * (side + length - 1)) >> 32) - (length - 1)
    begin = torch.minimum(begin.clamp(min=0), side - length)[:, :, None]
    at = torch.arange(side, device=length.device)
    return (at >= begin) & (at < begin + length[:, :, None])
