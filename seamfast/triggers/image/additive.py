"""``Sinusoid`` and ``Additive``: a fixed signal added to every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seamfast.checks import Array, integer_or_none, short
from seamfast.errors import InputError
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.draws import draw_signed
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape, as_image_shape
from seamfast.triggers.label_maps import LabelMap, as_label_map, integer_from


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sinusoid(ImageTrigger):
    """``x[:, i, j] = clip(x[:, i, j] + delta * sin(2 pi j frequency / W), 0, 255)``: SIG, vertical stripes.

    Rounding: truncation after the clip, as the published attack does in uint8, so exactly ``floor(v)`` is added to a
    column. The signal ``v`` is first rounded to 9 decimals, so that ``sin(pi)`` is 0 and not slightly less.

    Args:
        name, target: as :class:`ImageTrigger`.
        delta: amplitude in pixel units, in [0, 255]; 0 changes nothing. Published: 20 to 80.
        frequency: periods across the width, above 0. Published: 6.

    Raises:
        InputError: e.g. ``trigger 'x' delta is -1; expected a number in [0, 255]``.

    Source: Barni, Kallas and Tondi 2019, arXiv 1902.11237.

    Example:
        >>> import torch
        >>> Sinusoid.of(delta=20, frequency=1).stamp(torch.full((1, 1, 1, 4), 100, dtype=torch.uint8)).tolist()
        [[[[100, 120, 100, 80]]]]
    """

    kind: ClassVar[str] = "sinusoid"
    delta: float
    frequency: float

    @classmethod
    def of(
        cls, delta: float = 20, frequency: float = 6, target: int | LabelMap = 0, *, name: str = "sinusoid"
    ) -> Sinusoid:
        """A sinusoid with the paper's numbers by default. ``target`` is a class (as ``AllToOne``) or a label map."""
        return cls(name=name, target=as_label_map(target), delta=delta, frequency=frequency)

    def _validate(self) -> None:
        self._number("delta", 0, 255)
        self._number("frequency", 0, 65536, above=True)

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        width = images.shape[3]
        return stamping.offset(images, self._on(images.device, f"offsets {width}", lambda: self._offsets(width)))

    def _packed(self, shape: ImageShape) -> Packed:
        return Packed(Kind.OFFSET, (np.broadcast_to(self._offsets(shape[2]), shape[1:]),))

    def _offsets(self, width: int) -> Array:
        signal = self.delta * np.sin(2 * np.pi * np.arange(width) * self.frequency / width)
        return np.floor(np.round(signal, 9)).astype(np.int16)

    def _describe(self) -> str:
        return f"delta {self.delta:g}, frequency {self.frequency:g}"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Additive(ImageTrigger):
    """``x = clip(x + perturbation, 0, 255)``.

    Rounding: truncation after the clip, as published code does in uint8. For a fractional perturbation this equals
    adding its floor, so the floor is stored.

    Args:
        name, target: as :class:`ImageTrigger`.
        perturbation: ``(C, H, W)`` integers, or floats that are floored, in pixel units, in [-255, 255], with the
            height and width of the images; ``C`` is that of the images, or 1 for all channels. Stored as int16.

    Raises:
        ShapeError, DTypeError, InputError: e.g.
            ``trigger 'x' perturbation holds values in [-300, 0]; expected [-255, 255]``.

    Source: Zeng et al. 2021, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", arXiv 2104.03413.

    Example:
        >>> Additive.low_frequency((3, 32, 32), amplitude=8)
        Additive('low-frequency', 3x32x32, within 8, AllToOne(target=0))
    """

    kind: ClassVar[str] = "additive"
    perturbation: npt.NDArray[np.int16] = field(
        metadata={"dtype": np.int16, "ndim": 3, "low": -255, "high": 255, "floor": True}
    )

    @classmethod
    def low_frequency(
        cls,
        image_shape: Sequence[int],
        amplitude: int = 12,
        target: int | LabelMap = 0,
        *,
        frequencies: int = 4,
        seed: int = 0,
        name: str = "low-frequency",
    ) -> Additive:
        """A smooth random pattern: the lowest cosine (DCT-II) waves, uniform weights, each channel its own.

        Args:
            image_shape: ``(C, H, W)``.
            amplitude: largest absolute value, which is attained, in pixel units: an integer in [1, 255]. All values
                are rounded to the nearest integer.
            target: a class (as ``AllToOne``) or a label map.
            frequencies: waves on each axis, from 2: indices ``0 .. frequencies-1``, without the constant wave; those
                too fine for the image are left out.
            seed: an integer in ``[0, 2**64)``.

        Raises:
            InputError: e.g. ``amplitude is 0; expected an integer in [1, 255]``.
        """
        c, h, w = as_image_shape(image_shape)
        level = integer_or_none(amplitude)
        if level is None or not 1 <= level <= 255:
            raise InputError(f"amplitude is {short(amplitude)}; expected an integer in [1, 255]")
        waves = integer_from("frequencies", frequencies, 2)
        if h == w == 1:
            raise InputError("images are 1x1; a low-frequency pattern needs at least two pixels")
        vertical, horizontal = _cosines(h, waves), _cosines(w, waves)
        weights = draw_signed((c, len(vertical), len(horizontal)), seed)
        weights[:, 0, 0] = 0  # the constant wave
        pattern = np.einsum("cuv,uy,vx->cyx", weights, vertical, horizontal)
        pattern = np.rint(pattern * (level / np.abs(pattern).max()))
        return cls(name=name, target=as_label_map(target), perturbation=pattern.astype(np.int16))

    def _check_fits(self, shape: ImageShape) -> None:
        self._fits_size("perturbation", self.perturbation.shape[1:], shape)
        self._fits_channels("perturbation", self.perturbation, shape)

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        return stamping.offset(images, self._on(images.device, "perturbation", lambda: self.perturbation))

    def _packed(self, shape: ImageShape) -> Packed:
        return Packed(Kind.OFFSET, (self.perturbation,), channels=len(self.perturbation))

    def _describe(self) -> str:
        return f"{'x'.join(map(str, self.perturbation.shape))}, within {np.abs(self.perturbation).max()}"


def _cosines(size: int, waves: int) -> Array:
    """``(min(waves, size), size)``: the lowest DCT-II waves, unscaled."""
    return np.cos(np.pi / size * np.outer(np.arange(min(waves, size)), np.arange(size) + 0.5))
