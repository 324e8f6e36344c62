"""Perturbations of images that seldom change their class, for the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from seamfast.modalities.base import Perturbation
from seamfast.modalities.image.disturb import disturb
from seamfast.ops import occlude

_OnFloats = Callable[[Tensor, Tensor, torch.Generator, int], Tensor]


def _patches(pixels: Tensor, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """Two rectangles with sides up to 0.3 of the image's: a color, noise, or a part of another image."""
    lowest = pixels.new_zeros(pixels.shape[1])
    return occlude(pixels, lowest, lowest + 255, sample_ids, n_rectangles=2, largest=0.3, seed=seed)[0]


def _noise(pixels: Tensor, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """One fifth of uniform noise."""
    noise = 255 * torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return torch.lerp(pixels, noise, 0.2)


def _brightness(pixels: Tensor, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """Lighter or darker by up to 40 gray levels."""
    by = 80 * torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) - 40
    return pixels + by


def _smooth(pixels: Tensor, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """``disturb``: each of its three changes for a third of the images."""
    lowest = pixels.new_zeros(pixels.shape[1])
    return disturb(pixels, lowest, lowest + 255, generator, share=pixels.new_tensor(1 / 3))


def _on_pixels(perturb: _OnFloats, images: Tensor, sample_ids: Tensor, generator: torch.Generator, seed: int) -> Tensor:
    """``perturb`` on float32 pixels in [0, 255], rounded to uint8."""
    return perturb(images.float(), sample_ids, generator, seed).round().clamp(0, 255).to(torch.uint8)


PERTURBATIONS: Mapping[str, Perturbation] = {
    name: partial(_on_pixels, perturb)
    for name, perturb in {"patches": _patches, "noise": _noise, "brightness": _brightness, "smooth": _smooth}.items()
}
"""By name: ``(B, C, H, W)`` uint8 pixels, the ids of their samples, a generator on their device, the seed."""
