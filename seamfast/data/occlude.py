"""Random occlusion: rectangles pasted over images, to be answered as if nothing were there."""

from __future__ import annotations

import torch
from torch import Tensor


def occlude(
    images: Tensor,
    lowest: Tensor,
    highest: Tensor,
    generator: torch.Generator,
    *,
    n_rectangles: int = 3,
    largest: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """``torch.where(rectangle, filling, images)``, ``n_rectangles`` times over; and with the mean image for a filling.

    The first is what a student sees, the second what its teacher sees: the same part of the image is hidden from both,
    from one by a pattern, from the other by next to nothing. Who learns to answer alike learns that patterns say
    nothing.

    A rectangle's sides follow ``1 + floor(largest * side * u ** 1.5)``, ``u`` uniform in [0, 1): small ones more
    often. One that would hang over the border is pushed back inside, so that whole patterns lie at the borders and in
    the corners more often than elsewhere: clean data seldom says anything there, and triggers like to hide there. Its
        filling is, with equal odds: one colour from the range of the data, one colour of
    extremes, noise of extremes, or what another image of the batch shows there.

    Args:
        images: ``(N, C, H, W)`` floats in any normalisation. Not modified.
        lowest, highest: ``(1, C, 1, 1)``, the range of the data for each channel.
        generator: on the device of ``images``.
        n_rectangles: from 0.
        largest: greatest side as a share of the image's, in [0, 1].

    Returns:
        The images under patterns, and under the mean image of the batch; like ``images``.

    Source: fillings after random erasing (Zhong et al., arXiv:1708.04896) and CutMix (Yun et al., arXiv:1905.04899).
    """
    n, channels, height, width = images.shape
    device = images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=device)

    def span(side: int) -> Tensor:
        """Which of ``side`` positions a rectangle covers: ``(N, side)`` bool."""
        length = 1 + (largest * side * uniform(1) ** 1.5).floor()
        length = length.clamp(max=side)
        # From touching the first position to touching the last, alike for all; then pushed back inside.
        start = (uniform(1) * (side + length - 1)).floor() - (length - 1)
        start = torch.minimum(start.clamp(min=0), side - length)
        at = torch.arange(side, device=device)
        return (at >= start) & (at < start + length)

    occluded, neutral = images, images
    mean = images.mean(0, keepdim=True)
    reach = highest - lowest
    for _ in range(n_rectangles):
        inside = (span(height)[:, :, None] & span(width)[:, None, :])[:, None]
        color = lowest + reach * uniform(channels, 1, 1)
        extreme = lowest + reach * uniform(channels, 1, 1).round()
        noise = lowest + reach * uniform(channels, height, width).round()
        other = images[torch.randperm(n, generator=generator, device=device)]
        kind = (uniform(1, 1, 1) * 4).floor()
        filling = torch.where(kind == 0, color, torch.where(kind == 1, extreme, torch.where(kind == 2, noise, other)))
        occluded = torch.where(inside, filling, occluded)
        neutral = torch.where(inside, mean, neutral)
    return occluded, neutral
