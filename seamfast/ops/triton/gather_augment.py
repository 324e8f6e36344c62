"""``gather_augment`` as a Triton kernel: one pass from uint8 pixels to the batch, draws included."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seamfast.ops.arguments import GatherArguments, empty_batch, normalization_of
from seamfast.ops.philox import STREAM_AUGMENT
from seamfast.ops.triton.philox import below, counter, draw_words, scalar
from seamfast.ops.triton.pixels import BLOCK, WARPS, place_of

_AUGMENT = tl.constexpr(STREAM_AUGMENT)


@triton.jit
def _reflect(position, size: tl.constexpr):
    return size - 1 - tl.abs(size - 1 - tl.abs(position))


@triton.jit(do_not_specialize=["seed", "epoch", "count"])
def _kernel(
    images,
    indices,
    table,
    out,
    count: tl.int64,
    seed: tl.int64,
    seed_pointer,
    epoch: tl.int64,
    epoch_pointer,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PAD: tl.constexpr,
    FLIP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SEED_POINTER: tl.constexpr,
    EPOCH_POINTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    index = tl.load(indices + sample)
    valid = (index >= 0) & (index < count)
    size: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    read = at < tl.where(valid, size, 0)
    channel, row, column = place_of(at, CHANNELS, HEIGHT, WIDTH, CHANNELS_LAST)

    if PAD > 0 or FLIP:
        down, right, mirror, _ = draw_words(
            scalar(seed, seed_pointer, SEED_POINTER), index, scalar(epoch, epoch_pointer, EPOCH_POINTER), _AUGMENT
        )
        if FLIP:
            column = tl.where((mirror >> 31) == 1, WIDTH - 1 - column, column)
        if PAD > 0:
            row = _reflect(row + (below(down, 2 * PAD + 1) - PAD).to(tl.int32), HEIGHT)
            column = _reflect(column + (below(right, 2 * PAD + 1) - PAD).to(tl.int32), WIDTH)

    image = images + index * size
    pixel = tl.load(image + (channel * HEIGHT + row) * WIDTH + column, mask=read, other=0).to(tl.int32)
    value = tl.load(table + channel * 256 + pixel, mask=read, other=float("nan"))
    tl.store(out + sample * size + at, value, mask=inside)


def gather_augment(args: GatherArguments) -> Tensor:
    """As the reference's; an index out of range makes its image NaN."""
    images, indices, out = args.images, args.indices.contiguous(), empty_batch(args)
    batch, channels, height, width = out.shape
    if batch == 0:
        return out
    with torch.cuda.device_of(images):
        _kernel[(batch, triton.cdiv(channels * height * width, BLOCK))](
            images,
            indices,
            normalization_of(args).table(args.dtype, images.device),
            out,
            len(images),
            *counter(args.seed, indices),
            *counter(args.epoch, indices),
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            PAD=args.pad,
            FLIP=args.flip,
            CHANNELS_LAST=args.channels_last,
            SEED_POINTER=isinstance(args.seed, Tensor),
            EPOCH_POINTER=isinstance(args.epoch, Tensor),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out
