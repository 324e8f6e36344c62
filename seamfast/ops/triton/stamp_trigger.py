"""``stamp_trigger`` as Triton kernels: gather, trigger, normalize, cast and layout in one pass.

One launch stamps a batch with many triggers: a program works on a part of one image, and branches on the kind of its
trigger. Dithering is a launch of its own, made only where the table holds it: each pixel needs its neighbours' errors,
so a lane processes one plane, pixel by pixel.

Arithmetic is float64 without fused multiply-adds, as the definition is: results are the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamfast.ops.arguments import StampArguments, empty_batch, normalization_of
from seamfast.ops.philox import STREAM_PLACE
from seamfast.ops.trigger_table import Kind, Row
from seamfast.ops.triton.philox import below, counter, draw_words, scalar
from seamfast.ops.triton.pixels import BLOCK, WARPS, place_of, to_pixel

_PLACE = tl.constexpr(STREAM_PLACE)
_PASTE, _OFFSET, _LOOK_UP, _DITHER, _WARP, _FILTER = (tl.constexpr(int(kind)) for kind in Kind)
_COLUMNS = tl.constexpr(len(Row))
_LANES = 32


@triton.jit(do_not_specialize=["seed", "count", "triggers"])
def _kernel(
    images,
    indices,
    trigger_ids,
    sample_ids,
    rows,
    numbers,
    table,
    out,
    count: tl.int64,
    triggers,
    seed: tl.int64,
    seed_pointer,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SEED_POINTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(indices + sample)
    trigger = tl.load(trigger_ids + sample)
    valid = (index >= 0) & (index < count) & (trigger >= -1) & (trigger < triggers)
    size: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    plane: tl.constexpr = HEIGHT * WIDTH
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    read = at < tl.where(valid, size, 0)
    channel, row, column = place_of(at, CHANNELS, HEIGHT, WIDTH, CHANNELS_LAST)
    image = images + index * size
    pixel = tl.load(image + channel * plane + row * WIDTH + column, mask=read, other=0).to(tl.int32)

    stamped = valid & (trigger >= 0)
    entry = rows + trigger * _COLUMNS
    kind = tl.load(entry, mask=stamped, other=-1).to(tl.int32)
    start = tl.load(entry + 1, mask=stamped, other=0)
    own = tl.load(entry + 2, mask=stamped, other=1)  # channels of the trigger
    mine = numbers + start
    own_channel = tl.where(own == 1, 0, channel)  # int64 from here on: own is

    if kind == _PASTE:
        height = tl.load(entry + 3)
        width = tl.load(entry + 4)
        top = tl.load(entry + 5)
        left = tl.load(entry + 6)
        if top < 0:
            down, right, _, _ = draw_words(
                scalar(seed, seed_pointer, SEED_POINTER), tl.load(sample_ids + sample), index * 0, _PLACE
            )
            top = below(down, HEIGHT - height + 1)
            left = below(right, WIDTH - width + 1)
        y = row - top
        x = column - left
        here = read & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        keep = tl.load(mine + y * width + x, mask=here, other=1.0)
        added = tl.load(mine + (1 + own_channel) * height * width + y * width + x, mask=here, other=0.0)
        pixel = (keep * pixel.to(tl.float64) + added).to(tl.int32)
    elif kind == _OFFSET:
        by = tl.load(mine + own_channel * plane + row * WIDTH + column, mask=read, other=0.0).to(tl.int32)
        pixel = tl.minimum(tl.maximum(pixel + by, 0), 255)
    elif kind == _LOOK_UP:
        pixel = tl.load(mine + pixel, mask=read, other=0.0).to(tl.int32)
    elif kind == _WARP:
        place = mine + (row * WIDTH + column) * 2
        y = tl.minimum(tl.maximum(tl.load(place, mask=read, other=0.0), 0.0), HEIGHT - 1.0)
        x = tl.minimum(tl.maximum(tl.load(place + 1, mask=read, other=0.0), 0.0), WIDTH - 1.0)
        y0 = y.to(tl.int32)  # not negative: this is the floor
        x0 = x.to(tl.int32)
        down = y - y0.to(tl.float64)
        right = x - x0.to(tl.float64)
        y1 = tl.minimum(y0 + 1, HEIGHT - 1)
        x1 = tl.minimum(x0 + 1, WIDTH - 1)
        source = image + channel * plane
        p00 = tl.load(source + y0 * WIDTH + x0, mask=read, other=0).to(tl.float64)
        p01 = tl.load(source + y0 * WIDTH + x1, mask=read, other=0).to(tl.float64)
        p10 = tl.load(source + y1 * WIDTH + x0, mask=read, other=0).to(tl.float64)
        p11 = tl.load(source + y1 * WIDTH + x1, mask=read, other=0).to(tl.float64)
        upper = p00 * (1.0 - right) + p01 * right
        lower = p10 * (1.0 - right) + p11 * right
        pixel = to_pixel(upper * (1.0 - down) + lower * down)
    elif kind == _FILTER:
        matrix = mine + 256
        shade = tl.load(matrix + own * own + own + row * WIDTH + column, mask=read, other=0.0)
        if own == 1:
            total = tl.load(mine + pixel, mask=read, other=0.0) * tl.load(matrix)
            total = total + tl.load(matrix + 1)
        else:
            total = tl.zeros((BLOCK,), tl.float64)
            for j in tl.static_range(CHANNELS):
                other_channel = image + j * plane + row * WIDTH + column
                other_pixel = tl.load(other_channel, mask=read, other=0).to(tl.int32)
                tone = tl.load(mine + other_pixel, mask=read, other=0.0)
                share = tone * tl.load(matrix + channel * CHANNELS + j, mask=read, other=0.0)
                total = share if j == 0 else total + share
            total = total + tl.load(matrix + CHANNELS * CHANNELS + channel, mask=read, other=0.0)
        pixel = to_pixel(total * shade * 255.0)

    value = tl.load(table + channel * 256 + pixel, mask=read, other=float("nan"))
    tl.store(out + sample * size + at, value, mask=at < tl.where(kind == _DITHER, 0, size))


@triton.jit(do_not_specialize=["count", "triggers", "planes"])
def _dither_kernel(
    images,
    indices,
    trigger_ids,
    rows,
    table,
    out,
    above,
    count: tl.int64,
    triggers,
    planes,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    live = lane < planes
    sample = lane // CHANNELS
    channel = lane % CHANNELS
    index = tl.load(indices + sample, mask=live, other=-1)
    trigger = tl.load(trigger_ids + sample, mask=live, other=-1)
    live = live & (index >= 0) & (index < count) & (trigger >= 0) & (trigger < triggers)
    live = live & (tl.load(rows + trigger * _COLUMNS, mask=live, other=-1) == _DITHER)
    if tl.max(live.to(tl.int32), 0) == 0:
        return
    top = tl.load(rows + trigger * _COLUMNS + 7, mask=live, other=2).to(tl.float64) - 1.0
    source = images + (index * CHANNELS + channel) * HEIGHT * WIDTH
    errors = above + lane  # of the row above, a row of lanes for each column

    for y in range(HEIGHT):
        left = tl.zeros((LANES,), tl.float64)
        above_left = tl.zeros((LANES,), tl.float64)
        for x in range(WIDTH):
            old = tl.load(source + y * WIDTH + x, mask=live, other=0).to(tl.float64)
            known = live & (lane * 0 + y > 0)
            above_here = tl.load(errors + x * planes, mask=known, other=0.0)
            above_right = tl.load(errors + (x + 1) * planes, mask=known & (lane * 0 + x + 1 < WIDTH), other=0.0)
            # In the order in which the plain double loop, which pushes errors on, would have added them.
            old = old + above_left * 0.0625
            old = old + above_here * 0.3125
            old = old + above_right * 0.1875
            old = old + left * 0.4375
            level = ((old / 255.0 * top) + 6755399441055744.0) - 6755399441055744.0
            value = tl.minimum(tl.maximum(level, 0.0), top) / top * 255.0
            left = old - value
            above_left = above_here
            tl.store(errors + x * planes, left, mask=live)
            pixel = to_pixel(value)
            result = tl.load(table + channel * 256 + pixel, mask=live, other=0.0)
            if CHANNELS_LAST:
                at = ((sample * HEIGHT + y) * WIDTH + x) * CHANNELS + channel
            else:
                at = (lane * HEIGHT + y) * WIDTH + x
            tl.store(out + at, result, mask=live)


def stamp_trigger(args: StampArguments) -> Tensor:
    """As the reference's; an index or trigger out of range makes its image NaN."""
    images, rows, device_rows, out = args.images, args.rows, args.device_rows, empty_batch(args)
    batch, channels, height, width = out.shape
    if batch == 0:
        return out
    table = normalization_of(args).table(args.dtype, images.device)
    indices, trigger_ids = args.indices.contiguous(), args.trigger_ids.contiguous()
    shape = {"CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "CHANNELS_LAST": args.channels_last}
    with torch.cuda.device_of(images):
        _kernel[(batch, triton.cdiv(channels * height * width, BLOCK))](
            images,
            indices,
            trigger_ids,
            args.sample_ids.contiguous(),
            device_rows,
            args.numbers,
            table,
            out,
            len(images),
            len(rows),
            *counter(args.seed, indices),
            **shape,
            SEED_POINTER=isinstance(args.seed, Tensor),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        if bool((rows[:, Row.KIND] == Kind.DITHER).any()):  # rows lie on the CPU: looking waits for nothing
            planes = batch * channels
            _dither_kernel[(triton.cdiv(planes, _LANES),)](
                images,
                indices,
                trigger_ids,
                device_rows,
                table,
                out,
                torch.empty(planes * width, dtype=torch.float64, device=images.device),
                len(images),
                len(rows),
                planes,
                **shape,
                LANES=_LANES,
                num_warps=1,
                enable_fp_fusion=False,
            )
    return out
