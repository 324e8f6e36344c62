"""``ColorFilter``: the effect of a photo filter, as numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seamfast.checks import Array, integer_or_none, short
from seamfast.errors import InputError, ShapeError
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape
from seamfast.triggers.label_maps import LabelMap, as_label_map

LIMIT = 1000.0


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ColorFilter(ImageTrigger):
    """``y = vignette_map * (matrix @ tone(x / 255) + bias)``, with ``tone(u) = contrast * (u ** gamma - 0.5) + 0.5``.

    Rounding: ``round(clip(255 * y, 0, 255))``, half to even, arithmetic in float64. Published attacks of this kind
    call different image libraries; none is reproduced bit by bit.

    Args:
        name, target: as :class:`ImageTrigger`.
        matrix: ``(C, C)`` floats, output channel first; or 1x1, applied to each channel of any images.
        bias: ``(C,)`` floats, on the [0, 1] pixel scale, one for each row of the matrix.
        gamma: exponent, in (0, 100]; 1 changes nothing.
        contrast: slope about mid-grey, in [0, 100]; 1 changes nothing.
        vignette: how much darker the corners are, in [0, 1]:
            ``vignette_map = 1 - vignette * (distance to center / largest distance) ** 2``; 0 changes nothing.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``trigger 'x' matrix is for 3 channels; images have 1``.

    Source: Liu et al. 2019, ABS (CCS 2019), which uses Nashville, Gotham and other filters as triggers; the numbers
    here are our own.

    Example:
        >>> ColorFilter.gotham(channels=1)
        ColorFilter('gotham', 1 channel, gamma 1.1, contrast 1.3, vignette 0.3, AllToOne(target=0))
    """

    kind: ClassVar[str] = "color_filter"
    matrix: npt.NDArray[np.float64] = field(metadata={"dtype": np.float64, "ndim": 2, "low": -LIMIT, "high": LIMIT})
    bias: npt.NDArray[np.float64] = field(metadata={"dtype": np.float64, "ndim": 1, "low": -LIMIT, "high": LIMIT})
    gamma: float
    contrast: float
    vignette: float

    @classmethod
    def nashville(cls, channels: int = 3, target: int | LabelMap = 0, *, name: str = "nashville") -> ColorFilter:
        """Warm and faded: raised blacks, less blue. On one channel: faded only.

        Args:
            channels: 1 or 3 (RGB).
            target: a class (as ``AllToOne``) or a label map.

        Raises:
            InputError: ``channels is 2; expected 1 or 3``.
        """
        rgb = [[0.98, 0.06, 0.00], [0.04, 0.88, 0.04], [0.04, 0.10, 0.58]]
        matrix, bias = _for_channels(channels, rgb, [0.06, 0.03, 0.16], [[0.84]], [0.09])
        return cls(
            name=name, target=as_label_map(target), matrix=matrix, bias=bias, gamma=0.9, contrast=1.05, vignette=0.0
        )

    @classmethod
    def gotham(cls, channels: int = 3, target: int | LabelMap = 0, *, name: str = "gotham") -> ColorFilter:
        """High contrast, near grey and bluish, with dark corners. On one channel: high contrast, with dark corners.

        Args, Raises: as :meth:`nashville`.
        """
        rgb = [[0.37, 0.48, 0.10], [0.24, 0.62, 0.10], [0.24, 0.48, 0.26]]
        matrix, bias = _for_channels(channels, rgb, [-0.02, -0.01, 0.05], [[0.96]], [0.0])
        return cls(
            name=name, target=as_label_map(target), matrix=matrix, bias=bias, gamma=1.1, contrast=1.3, vignette=0.3
        )

    def _validate(self) -> None:
        rows, columns = self.matrix.shape
        if rows != columns:
            raise ShapeError(f"{self._who} matrix is {rows}x{columns}; expected one of C x C")
        if self.bias.shape != (rows,):
            raise ShapeError(f"{self._who} bias has shape {self.bias.shape}; the matrix asks for ({rows},)")
        self._number("gamma", 0, 100, above=True)
        self._number("contrast", 0, 100)
        self._number("vignette", 0, 1)

    def _check_fits(self, shape: ImageShape) -> None:
        if len(self.matrix) not in (1, shape[0]):
            raise ShapeError(f"{self._who} matrix is for {len(self.matrix)} channels; images have {shape[0]}")

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        _, _, h, w = images.shape
        # The tone is a table of 256 float64 numbers, so that the result does not depend on a device's pow().
        tables: tuple[tuple[str, Callable[[], Array]], ...] = (
            ("tone", self._tone),
            ("matrix", lambda: self.matrix),
            ("bias", lambda: self.bias),
            (f"shade {h}x{w}", lambda: self._shade(h, w)),
        )
        return stamping.color_filter(images, *(self._on(images.device, name, make) for name, make in tables))

    def _packed(self, shape: ImageShape) -> Packed:
        numbers = (self._tone(), self.matrix, self.bias, self._shade(*shape[1:]))
        return Packed(Kind.FILTER, numbers, channels=len(self.matrix))

    def _tone(self) -> Array:
        tone: Array = self.contrast * ((np.arange(256) / 255) ** self.gamma - 0.5) + 0.5
        return tone

    def _shade(self, h: int, w: int) -> Array:
        down, right = (np.arange(n) - (n - 1) / 2 for n in (h, w))
        squared = down[:, None] ** 2 + right**2
        darker: Array = 1 - self.vignette * squared / (squared.max() or 1)
        return darker

    def _describe(self) -> str:
        n = len(self.matrix)
        tone = f"gamma {self.gamma:g}, contrast {self.contrast:g}"
        return f"{n} channel{'s' if n > 1 else ''}, {tone}, vignette {self.vignette:g}"


def _for_channels(
    channels: int, rgb: list[list[float]], rgb_bias: list[float], grey: list[list[float]], grey_bias: list[float]
) -> tuple[Array, Array]:
    n = integer_or_none(channels)
    if n not in (1, 3):
        raise InputError(f"channels is {short(channels)}; expected 1 or 3")
    return (np.array(rgb), np.array(rgb_bias)) if n == 3 else (np.array(grey), np.array(grey_bias))
