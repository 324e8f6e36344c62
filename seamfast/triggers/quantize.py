"""``Quantize``: fewer levels a channel, with or without dithering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from seamfast.errors import InputError
from seamfast.triggers.base import Trigger, round_to_pixels
from seamfast.triggers.checks import Array, ImageShape, as_integer, short
from seamfast.triggers.label_maps import LabelMap, as_label_map

__all__ = ["Quantize"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Quantize(Trigger):
    """``x = round(round(x / 255 * (levels - 1)) / (levels - 1) * 255)``: BppAttack.

    Rounding: half to even, twice, arithmetic in float64. (The authors' code leaves the second one out when it does
    not dither, as it keeps floats.)

    Args:
        name, target: as :class:`Trigger`.
        levels: values a channel, in [2, 256]; bit depth ``d`` is ``2**d`` levels. 256 changes nothing.
        dither: spread each pixel's error over its neighbours to come (Floyd-Steinberg: 7/16 right, 3/16, 5/16 and
            1/16 below), rows from the top, each from the left, and round to uint8 at the end. A level is never beyond
            0..255.

    Raises:
        InputError: e.g. ``trigger 'x' levels is 1; expected an integer in [2, 256]``.

    Source: Wang, Zhai and Ma 2022, BppAttack, arXiv 2205.13383; Floyd and Steinberg 1976 for the dithering.

    Example:
        >>> import torch
        >>> Quantize.of(levels=2).stamp(torch.tensor([[[[0, 127, 128, 255]]]], dtype=torch.uint8)).tolist()
        [[[[0, 0, 255, 255]]]]
    """

    kind: ClassVar[str] = "quantize"
    levels: int
    dither: bool

    @classmethod
    def of(
        cls, levels: int = 8, dither: bool = True, target: int | LabelMap = 0, *, name: str = "quantize"
    ) -> Quantize:
        """A quantiser with the published numbers by default. ``target`` is a class (as ``AllToOne``) or a label map."""
        return cls(name=name, target=as_label_map(target), levels=levels, dither=dither)

    def _validate(self) -> None:
        levels, dither = as_integer(self.levels), self.dither
        if levels is None or not 2 <= levels <= 256:
            raise InputError(f"{self._who} levels is {short(self.levels)}; expected an integer in [2, 256]")
        if not isinstance(dither, (bool, np.bool_)):
            raise InputError(f"{self._who} dither is {short(dither)}; expected True or False")
        self._set("levels", levels)
        self._set("dither", bool(dither))

    def _check_fits(self, shape: ImageShape) -> None:
        pass

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        if self.dither:
            return _floyd_steinberg(images, self.levels)
        return self._on(images.device, "table", self._table)[images.long()]

    def _table(self) -> Array:
        top = self.levels - 1
        values = np.rint(np.arange(256) / 255 * top) / top * 255
        return np.rint(values).astype(np.uint8)

    def _describe(self) -> str:
        return f"{self.levels} levels{', dithered' if self.dither else ''}"


def _floyd_steinberg(images: Tensor, levels: int) -> Tensor:
    """Dithered quantisation, all samples, channels and independent pixels at once.

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
    return round_to_pixels(work[:, :, :h, 1:-1])
