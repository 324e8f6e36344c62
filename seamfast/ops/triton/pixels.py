"""Shared by the kernels that write batches of images."""

from __future__ import annotations

import triton
import triton.language as tl

# Elements of the output that a program writes: 8 a thread, so that a warp writes whole cache lines.
BLOCK = 1024
WARPS = 4


@triton.jit
def place_of(at, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """``(channel, row, column)`` of elements of one image, numbered as they lie in the output."""
    if CHANNELS_LAST:
        channel = at % CHANNELS
        pixel = at // CHANNELS
    else:
        channel = at // (HEIGHT * WIDTH)
        pixel = at % (HEIGHT * WIDTH)
    return channel, pixel // WIDTH, pixel % WIDTH


@triton.jit
def to_pixel(x):
    """``clip(round(x), 0, 255)`` as int32, half to even: adding 1.5 * 2^52 leaves no bits for a fraction."""
    rounded = (x + 6755399441055744.0) - 6755399441055744.0
    return tl.minimum(tl.maximum(rounded, 0.0), 255.0).to(tl.int32)
