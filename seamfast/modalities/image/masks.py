"""``MaskedPatterns``: inverted triggers of images, each a mask and a pattern."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seamfast.triggers.image.checks import ImageShape


class MaskedPatterns:
    """``K`` masks ``(K, 1, H, W)`` and patterns ``(K, C, H, W)``: ``x + (pattern - x) * mask``.

    Masks and patterns are sigmoids of the parameters, so they stay in [0, 1]. All classes begin with the same ones.
    """

    def __init__(self, shape: ImageShape, n_classes: int, generator: torch.Generator, device: torch.device) -> None:
        channels, height, width = shape
        shapes = (1, 1, height, width), (1, channels, height, width)
        drawn = [torch.randn(size, generator=generator) for size in shapes]
        self.parameters = [nn.Parameter(value.repeat(n_classes, 1, 1, 1).to(device)) for value in drawn]

    def values(self) -> list[Tensor]:
        return [raw.detach().sigmoid() for raw in self.parameters]

    def sizes(self, values: list[Tensor]) -> Tensor:
        return values[0].mean((1, 2, 3))

    def prepared(self, samples: Tensor) -> Tensor:
        """``(N, C, H, W)`` floats in [0, 1]."""
        return samples.float() / 255

    def stamp(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        mask, pattern = (raw.sigmoid() for raw in self.parameters)
        return torch.lerp(samples, pattern[:, None], mask[:, None]).flatten(0, 1), mask.mean((1, 2, 3))

    def stamp_found(self, values: list[Tensor], row: int, samples: Tensor) -> Tensor:
        mask, pattern = values[0][row], self._pixels(values, row)
        return ((1 - mask) * samples + mask * pattern).round().to(torch.uint8)

    def found(self, values: list[Tensor], row: int) -> tuple[Tensor, Tensor]:
        """``(H, W)`` float32 mask in [0, 1] and ``(C, H, W)`` uint8 pattern."""
        return values[0][row, 0].cpu(), self._pixels(values, row).cpu()

    def _pixels(self, values: list[Tensor], row: int) -> Tensor:
        return (values[1][row] * 255).round().to(torch.uint8)
