"""``disturb`` and ``add_plane_waves``: random changes of whole images, which no label depends on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BEND = 1.5
"""Largest root mean square displacement, in pixels."""
_BENDS = 5
"""Waves per axis of a bend: few, so that images stay legible."""
_TONE = 0.9
"""Largest bow of the tone curve; at 1 its slope reaches 0."""
_VEIL = 0.4
"""Largest share of the waves."""
_AMPLITUDE = 0.15
"""Largest amplitude of a plane wave, as a share of the range of the data."""
_GREY = 0.7
"""Share of the plane waves that are equal in all channels."""

_Draw = Callable[..., Tensor]
"""``draw(*shape)``: uniform in [0, 1)."""


def disturb(
    images: Tensor, lowest: Tensor, highest: Tensor, generator: torch.Generator, *, share: Tensor, most: float = 1.0
) -> Tensor:
    """``veil(tone(bend(images)))``, each for an independently drawn ``share`` of the images, with random strength.

    - *Bend*: pixels are displaced by a smooth random field, bilinear, by up to 1.5 pixels on average.
    - *Tone*: ``x + c * x * (1 - x)`` on the data's range for each channel, ``c`` in (-0.9, 0.9).
    - *Veil*: up to 0.4 of a pattern of random cosines is mixed in, grey or in color, with wavelengths down to single
      pixels. The highest frequency is drawn for each image, uniformly in octaves.

    A label does not depend on these changes; a trigger that covers the image does. Nothing here synchronizes.

    Args:
        images: ``(N, C, H, W)`` float32 in any normalization. Not modified.
        lowest, highest: ``(C,)`` float32, the range of the data for each channel.
        generator: on the device of ``images``.
        share: 0-d float on the device, in [0, ``most``].
        most: what ``share`` can be at most, in (0, 1]. Only so many images are computed, rounded up.

    Returns:
        New images, ``(N, C, H, W)``; where ``share`` is 0, the same ones up to rounding.
    """
    n, channels, height, width = images.shape
    low, reach = lowest.view(1, -1, 1, 1), (highest - lowest).clamp(min=1e-12).view(1, -1, 1, 1)
    draw, k = _drawing(generator, images.device), math.ceil(most * n)

    def strength() -> Tensor:
        """Of ``k`` images: uniform in [0, 1) for a share of them, 0 for the others."""
        u = draw(2, k, 1, 1, 1)
        return u[0] * (u[1] < share * (n / k))

    at = _some(n, k, draw)
    changed = images.index_copy(0, at, _bent(images[at], _BEND * strength(), draw))
    at = _some(n, k, draw)
    level = ((changed[at] - low) / reach).clamp(0, 1)  # a constant channel has almost no reach
    bow = _TONE * strength() * (2 * draw(k, channels, 1, 1) - 1)
    changed.index_add_(0, at, reach * bow * level * (1 - level))
    at = _some(n, k, draw)
    waves = low + reach * _waves(k, channels, height, width, draw)
    return changed.index_copy_(0, at, torch.lerp(changed[at], waves, _VEIL * strength()))


def add_plane_waves(
    images: Tensor, lowest: Tensor, highest: Tensor, generator: torch.Generator, *, share: Tensor, most: float = 1.0
) -> Tensor:
    """``images + a * tint * sin(2 pi (k . place + phase))`` for a ``share`` of the images.

    Each wave has a random direction, phase and tint, an amplitude of up to 0.15 of the range of the data, and a
    wavelength from 2 pixels to twice the longer edge, uniform in octaves. A veil spreads over many frequencies; these
    have one, as many smooth triggers do. Nothing here synchronizes.

    Args:
        images, lowest, highest, generator, share, most: see ``disturb``.

    Returns:
        New images, ``(N, C, H, W)``.
    """
    n, channels, height, width = images.shape
    reach = (highest - lowest).view(1, -1, 1, 1)
    draw, k = _drawing(generator, images.device), math.ceil(most * n)
    octave, turn, phase, strength, drawn = draw(5, k, 1, 1, 1)
    side = max(height, width)
    cycles = torch.exp(octave * math.log(side)) / (2 * side)  # a pixel
    angle = math.pi * turn
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    wave = torch.sin(2 * math.pi * (cycles * (angle.cos() * rows + angle.sin() * columns) + phase))
    tint = torch.where(draw(k, 1, 1, 1) < _GREY, 1.0, 2 * draw(k, channels, 1, 1) - 1)
    amplitude = reach * (_AMPLITUDE * strength * (drawn < share * (n / k)))
    return images.index_add(0, _some(n, k, draw), amplitude * tint * wave)


def _drawing(generator: torch.Generator, device: torch.device) -> _Draw:
    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    return draw


def _some(n: int, k: int, draw: _Draw) -> Tensor:
    """Indices of ``k`` of ``n``, each set of them as likely; not by ``randperm``, which a CUDA graph cannot capture."""
    return draw(n).argsort()[:k]


def _waves(n: int, channels: int, height: int, width: int, draw: _Draw) -> Tensor:
    """``(N, C, H, W)`` in [0, 1], mean one half."""
    u = draw(n, 2, 1, 1)
    top = torch.exp(u[:, :1] * math.log(max(height, width)))  # of the frequencies; 1 is half a period an image
    rows = torch.arange(height, device=u.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=u.device).view(1, 1, 1, -1)
    weights = 2 * draw(n, channels, height, width) - 1
    weights = torch.where(u[:, 1:] < 0.5, weights[:, :1], weights)  # grey, or color
    weights = weights * ((rows <= top) & (columns <= top) & (rows + columns > 0))
    return (0.5 + 0.35 * _summed(weights, height, width)).clamp(0, 1)


def _bent(images: Tensor, pixels: Tensor, draw: _Draw) -> Tensor:
    """Images displaced by ``pixels`` ``(N, 1, 1, 1)`` root mean square, bilinear, with repeated edges."""
    n, _, height, width = images.shape
    moved = _summed(2 * draw(n, 2, min(_BENDS, height), min(_BENDS, width)) - 1, height, width) * pixels
    # Coordinates of grid_sample: -1 and 1 are the centers of the outermost pixels.
    down = torch.linspace(-1, 1, height, device=images.device).view(1, -1, 1) + moved[:, 0] * (2 / max(height - 1, 1))
    right = torch.linspace(-1, 1, width, device=images.device).view(1, 1, -1) + moved[:, 1] * (2 / max(width - 1, 1))
    places = torch.stack([right, down], -1)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=True)


def _summed(weights: Tensor, height: int, width: int) -> Tensor:
    """Sum of cosines (DCT-II) with ``(N, K, rows, columns)`` weights, lowest first; root mean square 1 per sample."""
    down = _cosines(height, str(weights.device))[: weights.shape[2]]
    right = _cosines(width, str(weights.device))[: weights.shape[3]]
    field = down.T @ weights @ right
    return field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)


@functools.lru_cache(maxsize=16)
def _cosines(size: int, device: str) -> Tensor:
    """``(size, size)``: row ``k`` has ``k`` half periods."""
    at = torch.arange(size, dtype=torch.float64)
    return torch.cos(math.pi / size * torch.outer(at, at + 0.5)).float().to(device)
