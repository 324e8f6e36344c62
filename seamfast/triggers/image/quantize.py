"""``Quantize``: fewer levels for each channel, with or without dithering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from seamfast.checks import Array, integer_or_none, short
from seamfast.errors import InputError
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape
from seamfast.triggers.label_maps import LabelMap, as_label_map


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Quantize(ImageTrigger):
    """``x = round(round(x / 255 * (levels - 1)) / (levels - 1) * 255)``: BppAttack.

    Rounding: half to even, twice, arithmetic in float64. (Without dithering, the authors' code keeps floats and has no
    second rounding.)

    Args:
        name, target: as :class:`ImageTrigger`.
        levels: values for each channel, in [2, 256]; bit depth ``d`` is ``2**d`` levels. 256 changes nothing.
        dither: spread each pixel's error over the next pixels (Floyd-Steinberg: 7/16 right, 3/16, 5/16 and 1/16 below),
            row by row from the top left, and round to uint8 at the end. Levels stay in 0..255.

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
        """A quantizer with the published numbers by default. ``target`` is a class (as ``AllToOne``) or a label map."""
        return cls(name=name, target=as_label_map(target), levels=levels, dither=dither)

    def _validate(self) -> None:
        levels, dither = integer_or_none(self.levels), self.dither
        if levels is None or not 2 <= levels <= 256:
            raise InputError(f"{self._who} levels is {short(self.levels)}; expected an integer in [2, 256]")
        if not isinstance(dither, (bool, np.bool_)):
            raise InputError(f"{self._who} dither is {short(dither)}; expected True or False")
        self._set("levels", levels)
        self._set("dither", bool(dither))

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        if self.dither:
            return stamping.dither(images, self.levels)
        return stamping.look_up(images, self._on(images.device, "table", self._table))

    def _packed(self, shape: ImageShape) -> Packed:
        if self.dither:
            return Packed(Kind.DITHER, levels=self.levels)
        return Packed(Kind.LOOK_UP, (self._table(),))

    def _table(self) -> Array:
        top = self.levels - 1
        values = np.rint(np.arange(256) / 255 * top) / top * 255
        return np.rint(values).astype(np.uint8)

    def _describe(self) -> str:
        return f"{self.levels} levels{', dithered' if self.dither else ''}"
