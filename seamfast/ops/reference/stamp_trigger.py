"""``stamp_trigger`` as its definition: gather, stamp trigger by trigger, normalise."""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops._check import check_in_range
from seamfast.ops.normalization import Normalization
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind


def stamp_trigger(
    images: Tensor,
    indices: Tensor,
    trigger_ids: Tensor,
    sample_ids: Tensor,
    *,
    rows: Tensor,
    device_rows: Tensor,
    numbers: Tensor,
    normalization: Normalization,
    seed: int | Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,
    out: Tensor | None,
) -> Tensor:
    """Of checked arguments, ``seamfast.ops.stamp_trigger``. ``threads`` is PyTorch's own affair."""
    if images.device.type == "cpu":
        check_in_range("indices", indices, len(images))
        check_in_range("trigger_ids", trigger_ids, len(rows), low=-1)
    pixels = images[indices].contiguous()
    for number, row in enumerate(rows.tolist()):
        here = trigger_ids == number
        if images.device.type == "cpu":
            chosen = here.nonzero()[:, 0]
            if len(chosen):
                pixels[chosen] = _stamped(pixels[chosen], row, numbers, sample_ids[chosen], seed)
        else:  # choosing would wait for the device
            pixels = torch.where(here.view(-1, 1, 1, 1), _stamped(pixels, row, numbers, sample_ids, seed), pixels)

    channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
    values = normalization.table(dtype, images.device)[channel, pixels.long()]
    if out is None and channels_last:
        out = torch.empty_like(values, memory_format=torch.channels_last)
    return values if out is None else out.copy_(values)


def _stamped(pixels: Tensor, row: list[int], numbers: Tensor, sample_ids: Tensor, seed: int | Tensor) -> Tensor:
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
