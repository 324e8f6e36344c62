"""``stamp_trigger`` as its definition: gather, stamp trigger by trigger, normalize."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.checks import check_in_range
from seamfast.ops.arguments import StampArguments
from seamfast.ops.philox import Counter
from seamfast.ops.reference import stamping
from seamfast.ops.reference.pixels import normalized
from seamfast.ops.trigger_table import Kind


def stamp_trigger(args: StampArguments) -> Tensor:
    """``seamfast.ops.stamp_trigger`` of checked arguments."""
    images, trigger_ids, sample_ids = args.images, args.trigger_ids, args.sample_ids
    if images.device.type == "cpu":
        check_in_range("indices", args.indices, len(images))
        check_in_range("trigger_ids", trigger_ids, len(args.rows), low=-1)
    pixels = images[args.indices]
    for number, row in enumerate(args.rows.tolist()):
        here = trigger_ids == number
        if images.device.type == "cpu":
            chosen = here.nonzero()[:, 0]
            if len(chosen):
                pixels[chosen] = _stamped(pixels[chosen], row, args.numbers, sample_ids[chosen], args.seed)
        else:  # choosing would wait for the device
            stamped = _stamped(pixels, row, args.numbers, sample_ids, args.seed)
            pixels = torch.where(here.view(-1, 1, 1, 1), stamped, pixels)
    return normalized(pixels, args)


def _stamped(pixels: Tensor, row: list[int], numbers: Tensor, sample_ids: Tensor, seed: Counter) -> Tensor:
    kind, start, c, h, w, top, left, levels = row
    _, _, height, width = pixels.shape

    def take(*shape: int) -> Tensor:
        nonlocal start
        size = torch.Size(shape).numel()
        start += size
        return numbers[start - size : start].view(shape)

    if kind == Kind.PASTE:
        keep, added = take(h, w), take(c, h, w)
        if top < 0:
            return stamping.paste_at_random(pixels, keep, added, sample_ids, seed)
        return stamping.paste(pixels, keep, added, top, left)
    if kind == Kind.OFFSET:
        return stamping.offset(pixels, take(c, height, width).to(torch.int16))
    if kind == Kind.LOOK_UP:
        return stamping.look_up(pixels, take(256).to(torch.uint8))
    if kind == Kind.DITHER:
        return stamping.dither(pixels, levels)
    if kind == Kind.WARP:
        return stamping.warp(pixels, take(height, width, 2))
    return stamping.color_filter(pixels, take(256), take(c, c), take(c), take(height, width))
