"""``Patch``: a small pattern pasted at a fixed place, or at one drawn per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from seamfast.checks import Array, as_array, integer_or_none, short
from seamfast.errors import InputError, ShapeError
from seamfast.ops.reference import stamping
from seamfast.ops.trigger_table import Kind, Packed
from seamfast.triggers.image.base import ImageTrigger
from seamfast.triggers.image.checks import ImageShape
from seamfast.triggers.label_maps import LabelMap, as_label_map, integer_from

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
CORNERS: tuple[Corner, ...] = ("top-left", "top-right", "bottom-left", "bottom-right")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Patch(ImageTrigger):
    """``x[:, r:r+h, c:c+w] = (1 - mask) * x[:, r:r+h, c:c+w] + mask * pattern``: BadNets.

    Rounding: truncation, as in NumPy code that casts to uint8; arithmetic in float64. A mask of zeros and ones only
    copies bytes.

    Args:
        name, target: as :class:`ImageTrigger`.
        pattern: ``(C, h, w)`` uint8 pixels; ``C`` is that of the images, or 1 for all channels.
        mask: ``(h, w)`` bools or floats in [0, 1]: 0 keeps the pixel, 1 replaces it. Stored as float64.
        position: ``(row, column)`` of the upper left pixel, where negative numbers count from the bottom or right edge;
            or ``"random"``: drawn by ``(seed, sample id)``, uniformly among the places with the whole patch inside.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``trigger 'x' mask is 2x2; the pattern is 3x3``.

    Source: Gu et al. 2017, BadNets, arXiv 1708.06733.

    Example:
        >>> Patch.square(size=3, corner="top-right")
        Patch('patch', 3x3 at (1, -4), AllToOne(target=0))
    """

    kind: ClassVar[str] = "patch"
    pattern: npt.NDArray[np.uint8] = field(metadata={"dtype": np.uint8, "ndim": 3, "low": 0, "high": 255})
    mask: npt.NDArray[np.float64] = field(metadata={"dtype": np.float64, "ndim": 2, "low": 0, "high": 1})
    position: tuple[int, int] | Literal["random"]

    @classmethod
    def square(
        cls,
        size: int = 3,
        value: int | Sequence[int] = 255,
        target: int | LabelMap = 0,
        *,
        corner: Corner | Literal["random"] = "bottom-right",
        margin: int = 1,
        name: str = "patch",
    ) -> Patch:
        """A square of one color, ``margin`` pixels from two edges, or at a random place.

        Args:
            size: edge in pixels, from 1.
            value: one number in [0, 255] for all channels, or one for each channel.
            target: a class (as ``AllToOne``) or a label map.
            corner: ``top-left``, ``top-right``, ``bottom-left``, ``bottom-right``, or ``random``.
            margin: pixels between patch and edges, from 0; not used by ``random``.

        Raises:
            InputError: e.g. ``size is 0; expected an integer from 1``.
        """
        n = integer_from("size", size, 1)
        color = np.atleast_1d(as_array(value, f"trigger {name!r} value"))
        pattern = np.broadcast_to(color.reshape(-1, 1, 1), (color.size, n, n))
        return cls._full(pattern, corner, margin, name, target)

    @classmethod
    def checkerboard(
        cls,
        size: int = 3,
        target: int | LabelMap = 0,
        *,
        corner: Corner | Literal["random"] = "bottom-right",
        margin: int = 1,
        name: str = "checkerboard",
    ) -> Patch:
        """A square of alternating white (255) and black (0) pixels, with white corners if ``size`` is odd.

        Args, Raises: as :meth:`square`.
        """
        n = integer_from("size", size, 1)
        rows, columns = np.indices((n, n))
        return cls._full(np.where((rows + columns) % 2, 0, 255)[None], corner, margin, name, target)

    @classmethod
    def _full(cls, pattern: Array, corner: str, margin: int, name: str, target: int | LabelMap) -> Patch:
        _, h, w = pattern.shape
        position = _corner(corner, h, w, integer_from("margin", margin, 0))
        return cls(name=name, target=as_label_map(target), pattern=pattern, mask=np.ones((h, w)), position=position)

    def _validate(self) -> None:
        if self.mask.shape != self.pattern.shape[1:]:
            (mh, mw), (_, h, w) = self.mask.shape, self.pattern.shape
            raise ShapeError(f"{self._who} mask is {mh}x{mw}; the pattern is {h}x{w}")
        self._set("position", self._as_position(self.position))

    def _as_position(self, position: Any) -> tuple[int, int] | str:
        if isinstance(position, str):
            if position == "random":
                return position
        elif isinstance(position, Sequence) and len(position) == 2:
            row, column = (integer_or_none(v) for v in position)
            if row is not None and column is not None and max(abs(row), abs(column)) < 2**31:
                return row, column
        raise InputError(f"{self._who} position is {short(position)}; expected (row, column) or 'random'")

    def _check_fits(self, shape: ImageShape) -> None:
        _, h, w = self.pattern.shape
        _, height, width = shape
        if h > height or w > width:
            raise ShapeError(f"{self._who} patch is {h}x{w}; images are {height}x{width}")
        self._fits_channels("patch", self.pattern, shape)
        if self.position != "random":
            top, left = self._corner_in(height, width)
            if not (0 <= top <= height - h and 0 <= left <= width - w):
                where = f"{h}x{w} at {self.position}"
                raise ShapeError(f"{self._who} patch is {where}, not wholly inside images of {height}x{width}")

    def _stamp(self, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
        keep = self._on(images.device, "keep", lambda: 1 - self.mask)
        added = self._on(images.device, "added", lambda: self.mask * self.pattern)
        if self.position == "random":
            return stamping.paste_at_random(images, keep, added, sample_ids, seed)
        return stamping.paste(images, keep, added, *self._corner_in(*images.shape[2:]))

    def _packed(self, shape: ImageShape) -> Packed:
        c, h, w = self.pattern.shape
        top, left = (-1, -1) if self.position == "random" else self._corner_in(*shape[1:])
        numbers = (1 - self.mask, self.mask * self.pattern)
        return Packed(Kind.PASTE, numbers, channels=c, height=h, width=w, top=top, left=left)

    def _corner_in(self, height: int, width: int) -> tuple[int, int]:
        assert not isinstance(self.position, str)
        row, column = self.position
        return row + height * (row < 0), column + width * (column < 0)

    def _describe(self) -> str:
        _, h, w = self.pattern.shape
        return f"{h}x{w} at {self.position}"


def _corner(corner: str, h: int, w: int, margin: int) -> tuple[int, int] | Literal["random"]:
    if corner == "random":
        return "random"
    if corner not in CORNERS:
        raise InputError(f"corner is {short(corner)}; expected one of {', '.join(CORNERS)} or random")
    vertical, horizontal = corner.split("-")
    return (margin if vertical == "top" else -margin - h, margin if horizontal == "left" else -margin - w)
