"""``occlude`` as a Triton kernel: the draws of all rectangles and both results in one pass over the images."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamfast.ops.arguments import OccludeArguments
from seamfast.ops.occlude import thresholds_on
from seamfast.ops.philox import STREAM_OCCLUDE, STREAMS_OF_NOISE, STREAMS_OF_RECTANGLE
from seamfast.ops.triton.philox import below, counter, draw_words, scalar
from seamfast.ops.triton.pixels import BLOCK, WARPS, place_of

_OCCLUDE, _RECTANGLE, _NOISE = (
    tl.constexpr(stream) for stream in (STREAM_OCCLUDE, STREAMS_OF_RECTANGLE, STREAMS_OF_NOISE)
)


@triton.jit
def _span(length_word, place_word, thresholds, SIDE: tl.constexpr):
    """Begin and end. From touching the first position to touching the last; then pushed inside."""
    length = 1 + tl.sum((length_word.to(tl.int64) >= thresholds).to(tl.int32), 0)
    begin = below(place_word, SIDE + length - 1).to(tl.int32) - (length - 1)
    begin = tl.minimum(tl.maximum(begin, 0), SIDE - length)
    return begin, begin + length


@triton.jit
def _one_of(words, which):
    return tl.where(which < 2, tl.where(which == 0, words[0], words[1]), tl.where(which == 2, words[2], words[3]))


@triton.jit(do_not_specialize=["count", "rectangles", "seed", "step"])
def _kernel(
    images,
    mean,
    lowest,
    highest,
    sample_ids,
    heights,
    widths,
    occluded,
    neutral,
    count,
    rectangles,
    seed: tl.int64,
    seed_pointer,
    step: tl.int64,
    step_pointer,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHTS: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SEED_POINTER: tl.constexpr,
    STEP_POINTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    sample = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    channel, row, column = place_of(at, CHANNELS, HEIGHT, WIDTH, CHANNELS_LAST)
    place = (channel * HEIGHT + row) * WIDTH + column  # as the mean image lies, and the bits of noise are numbered
    if CHANNELS > 4:
        four = channel // 4
    else:
        four = 0  # one draw of colors for all lanes

    ids = tl.load(sample_ids + sample)
    key = scalar(seed, seed_pointer, SEED_POINTER)
    when = scalar(step, step_pointer, STEP_POINTER)
    longer = tl.load(heights + tl.arange(0, HEIGHTS))
    wider = tl.load(widths + tl.arange(0, WIDTHS))
    low = tl.load(lowest + channel, mask=live, other=0.0)
    reach = tl.load(highest + channel, mask=live, other=0.0) - low
    own = tl.load(images + sample * size + at, mask=live, other=0.0)
    seen = own
    hidden = at < 0

    for rectangle in range(rectangles):
        first = _OCCLUDE + _RECTANGLE * rectangle
        length_y, place_y, length_x, place_x = draw_words(key, ids, when, first)
        top, bottom = _span(length_y, place_y, longer, HEIGHT)
        left, right = _span(length_x, place_x, wider, WIDTH)
        inside = live & (row >= top) & (row < bottom) & (column >= left) & (column < right)
        if tl.max(inside.to(tl.int32), 0) > 0:
            kind_word, other_word, _, _ = draw_words(key, ids, when, first + 1)
            kind = (kind_word >> 30).to(tl.int32)
            if kind == 3:
                other = below(other_word, count)
                filling = tl.load(images + other * size + at, mask=inside, other=0.0)
            else:
                if kind == 2:
                    noise = draw_words(key, ids, when, _NOISE * (rectangle + 1) + place // 128)
                    bits = _one_of(noise, place % 128 // 32) >> (place % 32).to(tl.uint32) & 1
                    share = bits.to(tl.float32)
                else:
                    word = _one_of(draw_words(key, ids, when, first + 2 + four), channel % 4)
                    even = (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2 ** -24
                    share = tl.where(kind == 0, even, (word >> 31).to(tl.float32))
                filling = low + reach * share
            seen = tl.where(inside, filling, seen)
            hidden = hidden | inside

    tl.store(occluded + sample * size + at, seen, mask=live)
    under = tl.load(mean + place, mask=hidden, other=0.0)
    tl.store(neutral + sample * size + at, tl.where(hidden, under, own), mask=live)


def occlude(args: OccludeArguments) -> tuple[Tensor, Tensor]:
    """As the reference's."""
    images, sample_ids = args.images, args.sample_ids.contiguous()
    count, channels, height, width = images.shape
    occluded, neutral = torch.empty_like(images), torch.empty_like(images)
    if count == 0:
        return occluded, neutral
    longer, wider = (thresholds_on(side, args.largest, images.device) for side in (height, width))
    with torch.cuda.device_of(images):
        _kernel[(count, triton.cdiv(channels * height * width, BLOCK))](
            images,
            args.mean,
            args.lowest.contiguous(),
            args.highest.contiguous(),
            sample_ids,
            longer,
            wider,
            occluded,
            neutral,
            count,
            args.n_rectangles,
            *counter(args.seed, sample_ids),
            *counter(args.step, sample_ids),
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            HEIGHTS=len(longer),
            WIDTHS=len(wider),
            CHANNELS_LAST=not images.is_contiguous(),
            SEED_POINTER=isinstance(args.seed, Tensor),
            STEP_POINTER=isinstance(args.step, Tensor),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return occluded, neutral
