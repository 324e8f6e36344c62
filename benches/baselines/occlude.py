"""The pasted patterns by tensor operations, as a good engineer writes them; ``seamfast.ops.occlude`` defines them.

One field of noise and one other image serve all rectangles of an image; the op draws anew for each.
"""

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
    """The images under patterns, and under the mean image; ``lowest`` and ``highest`` are ``(1, C, 1, 1)``.

    All of them, and the generator, on one device.
    """
    n, channels, height, width = images.shape
    device = images.device
    u = torch.rand(n, n_rectangles, 5 + 2 * channels, generator=generator, device=device)

    def span(side: int, length_u: Tensor, place_u: Tensor) -> Tensor:
        length = (1 + (largest * side * length_u**1.5).floor()).clamp(max=side)
        start = (place_u * (side + length - 1)).floor() - (length - 1)
        start = torch.minimum(start.clamp(min=0), side - length)[..., None]
        at = torch.arange(side, device=device)
        return (at >= start) & (at < start + length[..., None])

    rows, columns = span(height, u[..., 0], u[..., 1]), span(width, u[..., 2], u[..., 3])
    kind = (u[..., 4] * 4).floor()
    low, reach = lowest.view(1, 1, -1), (highest - lowest).view(1, 1, -1)
    color = low + reach * torch.where(kind[..., None] == 0, u[..., 5 : 5 + channels], u[..., 5 + channels :].round())
    noise = lowest + (highest - lowest) * torch.rand(images.shape, generator=generator, device=device).round()
    other = images[torch.randperm(n, generator=generator, device=device)]
    occluded, hidden = images, torch.zeros(1, dtype=torch.bool, device=device)
    for k in range(n_rectangles):
        inside = (rows[:, k, :, None] & columns[:, k, None, :])[:, None]
        which = kind[:, k].view(n, 1, 1, 1)
        filling = torch.where(which == 2, noise, color[:, k, :, None, None])
        filling = torch.where(which == 3, other, filling)
        occluded = torch.where(inside, filling, occluded)
        hidden = hidden | inside
    return occluded, torch.where(hidden, images.mean(0, keepdim=True), images)
