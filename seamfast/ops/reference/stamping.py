"""How each kind of trigger changes uint8 images ``(N, C, H, W)``: the one definition, used by triggers and by the op.

Fractions are float64, one rounding an operation, so that ties round alike on every device and in every language.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seamfast.ops.philox import STREAM_PLACE, Counter, below, draw


def mix(pixels: Tensor, keep: Tensor | float, added: Tensor) -> Tensor:
    """``floor(keep * pixels + added)``: truncation, as NumPy code that blends does."""
    return pixels.double().mul_(keep).add_(added).to(torch.uint8)


def paste(images: Tensor, keep: Tensor, added: Tensor, top: int, left: int) -> Tensor:
    """``mix`` at one place: ``keep`` is ``(h, w)``, ``added`` ``(C or 1, h, w)``."""
    h, w = keep.shape
    out = images.clone()
    region = out[:, :, top : top + h, left : left + w]
    region.copy_(mix(region, keep, added))
    return out


def paste_at_random(images: Tensor, keep: Tensor, added: Tensor, sample_ids: Tensor, seed: Counter) -> Tensor:
    """``mix`` at a place drawn for each sample, uniformly among those where the patch lies wholly inside."""
    n, _, height, width = images.shape
    h, w = keep.shape
    down, right, _, _ = draw(seed, sample_ids, 0, STREAM_PLACE)
    tops, lefts = below(down, height - h + 1), below(right, width - w + 1)
    rows = tops.view(-1, 1, 1) + torch.arange(h, device=images.device).view(1, h, 1)
    columns = lefts.view(-1, 1, 1) + torch.arange(w, device=images.device).view(1, 1, w)
    samples = torch.arange(n, device=images.device).view(-1, 1, 1)
    out = images.clone()
    places = out.permute(0, 2, 3, 1)  # a view, channels last: three indices in a row then pick (N, h, w, C)
    region = places[samples, rows, columns]
    places[samples, rows, columns] = mix(region, keep[..., None], added.permute(1, 2, 0))
    return out


def offset(images: Tensor, by: Tensor) -> Tensor:
    """``clip(images + by, 0, 255)``; ``by`` is int16 in ``[-255, 255]``, so int16 cannot overflow."""
    return images.to(torch.int16).add_(by).clamp_(0, 255).to(torch.uint8)


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """``table[images]``, of 256 uint8 values."""
    return table[images.long()]


def dither(images: Tensor, levels: int) -> Tensor:
    """Floyd-Steinberg to ``levels`` values a channel, all samples, channels and independent pixels at once.

    Pixel ``(i, j)`` needs ``(i, j-1)`` and ``(i-1, j-1..j+1)``. All of these lie on earlier lines ``j + 2 i = t``, so
    the pixels of one line can be done together: ``W + 2 (H - 1)`` steps and not ``H W``. Within a step the error from
    above right is added before that from the left, so every pixel gets its sums in the order of the plain double
    loop, and the same float64 result.
    """
    n, c, h, w = images.shape
    top = levels - 1
    work = torch.zeros(n, c, h + 1, w + 2, dtype=torch.float64, device=images.device)  # a margin takes what falls off
    work[:, :, :h, 1:-1] = images
    every_row = torch.arange(h, device=images.device)
    for t in range(w + 2 * (h - 1)):
        i = every_row[max(0, (t - w + 2) // 2) : t // 2 + 1]
        j = t - 2 * i + 1
        old = work[:, :, i, j]
        new = (old / 255 * top).round_().clamp_(0, top) / top * 255
        error = old - new
        work[:, :, i, j] = new
        for down, right, share in ((1, 1, 1 / 16), (1, 0, 5 / 16), (1, -1, 3 / 16), (0, 1, 7 / 16)):
            work[:, :, i + down, j + right] += error * share
    return _round_to_pixels(work[:, :, :h, 1:-1])


def warp(images: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples at ``places``, rows and columns: ``(H, W, 2)`` for all samples, or ``(N, H, W, 2)``.

    Places beyond the image are moved to its edge.
    """
    n, c, h, w = images.shape
    rows, columns = places[..., 0].clamp(0, h - 1), places[..., 1].clamp(0, w - 1)
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).unsqueeze(-3), (columns - left).unsqueeze(-3)
    r0, c0 = top.long(), left.long()
    r1, c1 = (r0 + 1).clamp_(max=h - 1), (c0 + 1).clamp_(max=w - 1)
    flat = images.reshape(n, c, h * w)

    def at(r: Tensor, column: Tensor) -> Tensor:
        index = (r * w + column).view(-1, 1, h * w).expand(n, c, h * w)
        return flat.gather(2, index).view(n, c, h, w).double()

    upper = at(r0, c0).mul_(1 - right).add_(at(r0, c1).mul_(right))
    lower = at(r1, c0).mul_(1 - right).add_(at(r1, c1).mul_(right))
    return _round_to_pixels(upper.mul_(1 - down).add_(lower.mul_(down)))


def color_filter(images: Tensor, tone: Tensor, matrix: Tensor, bias: Tensor, shade: Tensor) -> Tensor:
    """``round((matrix @ tone[images] + bias) * shade * 255)``; ``matrix`` is ``(C, C)``, or ``(1, 1)`` for all."""
    toned = tone[images.long()]
    if len(matrix) == 1:
        out = toned.mul_(matrix[0, 0]).add_(bias[0])
    else:
        out = torch.empty_like(toned)
        for i in range(len(matrix)):
            total = toned[:, 0] * matrix[i, 0]
            for j in range(1, len(matrix)):  # no matmul: its order of sums is the device's
                total += toned[:, j] * matrix[i, j]
            out[:, i] = total.add_(bias[i])
    return _round_to_pixels(out.mul_(shade).mul_(255))


def _round_to_pixels(values: Tensor) -> Tensor:
    """``clip(round(values), 0, 255)`` as uint8, half to even. Overwrites ``values``."""
    return values.round_().clamp_(0, 255).to(torch.uint8)
