"""``TriggerTable``: several triggers as plain numbers, so that one launch can stamp a batch with many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.errors import InputError, ShapeError

__all__ = ["Kind", "Packed", "Row", "TriggerTable"]


class Kind(IntEnum):
    """How a row of the table changes pixels ``x`` (C, H, W); arithmetic is float64, one rounding an operation.

    The numbers of a row, in this order:

    - PASTE: ``keep`` (h, w), ``added`` (c, h, w): ``floor(keep * x + added)`` at (top, left), or at a place drawn for
      each sample where top is -1: down from word 0, right from word 1 of ``(seed, sample id, 0, STREAM_PLACE)``.
    - OFFSET: ``by`` (c, H, W), integers: ``clip(x + by, 0, 255)``.
    - LOOK_UP: 256 integers: ``table[x]``.
    - DITHER: none: Floyd-Steinberg to ``levels`` values, errors from above left, above, above right, left added in this
      order, ``round`` at the end.
    - WARP: ``places`` (H, W, 2), row and column, inside the image: bilinear, across first, ``round``.
    - FILTER: ``tone`` (256), ``matrix`` (c, c), ``bias`` (c), ``shade`` (H, W): ``clip(round((matrix @ tone[x] + bias)
      * shade * 255), 0, 255)``, the products of a channel added from the first on, the bias last.

    ``c`` is the row's channels: that of the images, or 1 for all channels alike. ``round`` is to the nearest, half to
    even, then clipped to 0..255.
    """

    PASTE = 0
    OFFSET = 1
    LOOK_UP = 2
    DITHER = 3
    WARP = 4
    FILTER = 5


class Row(IntEnum):
    """The columns of ``TriggerTable.rows``."""

    KIND = 0
    START = 1  # of the row's numbers; a multiple of 8
    CHANNELS = 2
    HEIGHT = 3  # of what is pasted
    WIDTH = 4
    TOP = 5  # where; -1 for a random place
    LEFT = 6
    LEVELS = 7


@dataclass(frozen=True)
class Packed:
    """One trigger as a row of the table, without its START."""

    kind: Kind
    numbers: Sequence[npt.NDArray[Any]] = ()
    channels: int = 1
    height: int = 0
    width: int = 0
    top: int = 0
    left: int = 0
    levels: int = 0


class Packable(Protocol):
    """What ``TriggerTable.of`` accepts: any ``seamfast.triggers.Trigger``."""

    def packed(self, image_shape: Sequence[int]) -> Packed: ...


@dataclass(frozen=True)
class TriggerTable:
    """Triggers as numbers, for images of one shape, on one device. Make it with :meth:`of`.

    Attributes:
        image_shape: ``(C, H, W)``.
        rows: ``(T, 8)`` int64 on the CPU; its columns are ``Row``.
        numbers: ``(M,)`` float64 on the device: the numbers of all rows, one after another.
        device_rows: ``rows`` on the device.
    """

    image_shape: tuple[int, int, int]
    rows: Tensor
    numbers: Tensor
    device_rows: Tensor = field(repr=False)

    @classmethod
    def of(
        cls, triggers: Sequence[Packable], image_shape: Sequence[int], device: str | torch.device = "cpu"
    ) -> TriggerTable:
        """The table of ``triggers``, row ``t`` being ``triggers[t]``.

        Args:
            triggers: of ``seamfast.triggers``; may be empty.
            image_shape: ``(C, H, W)``.
            device: that of the images to stamp.

        Raises:
            ShapeError: a trigger does not fit images of that shape.

        Example:
            >>> from seamfast.triggers import Patch
            >>> table = TriggerTable.of([Patch.square(size=3)], (1, 28, 28))
            >>> len(table), table.rows.tolist()
            (1, [[0, 0, 1, 3, 3, 24, 24, 0]])
        """
        shape = tuple(int(size) for size in image_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ShapeError(f"image shape is {shape}; expected (C, H, W), each at least 1")
        rows: list[list[int]] = []
        parts: list[npt.NDArray[np.float64]] = []
        start = 0
        for trigger in triggers:
            if not hasattr(trigger, "packed"):
                raise InputError(f"triggers hold a {type(trigger).__name__}; expected seamfast.triggers.Trigger")
            p = trigger.packed(shape)
            rows.append([p.kind, start, p.channels, p.height, p.width, p.top, p.left, p.levels])
            flat = [np.asarray(part, dtype=np.float64).reshape(-1) for part in p.numbers]
            size = sum(len(part) for part in flat)
            parts += [*flat, np.zeros(-size % 8)]
            start += size + -size % 8
        with torch.inference_mode(False):
            table = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), len(Row))
            numbers = torch.from_numpy(np.concatenate([*parts, np.zeros(8)]))  # never empty
            c, h, w = shape
            return cls((c, h, w), table, numbers.to(device), table.to(device))

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: str | torch.device) -> TriggerTable:
        """The table on ``device``; tensors that are there are not copied."""
        return TriggerTable(self.image_shape, self.rows, self.numbers.to(device), self.device_rows.to(device))
