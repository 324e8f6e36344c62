"""PNG files of 8-bit images, with the standard library's zlib."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from seamfast.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}  # channels: greyscale, truecolor
_LARGEST = 4096  # pixels a side
_NO_FILTER, _BEST = 0, 9


def as_png(image: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of ``image``, equal for equal images under one zlib.

    Args:
        image: uint8 ``(H, W, C)`` of 1 (grey) or 3 (RGB) channels, each side in [1, 4096].

    Raises:
        InputError: e.g. ``image is int64 of shape (8, 8, 4); expected uint8 (H, W, C) with C of 1 or 3``.

    Source: W3C, Portable Network Graphics (PNG) Specification, second edition, sections 5, 9 and 11.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in _COLOUR_TYPES:
        raise InputError(f"image is {image.dtype} of shape {image.shape}; expected uint8 (H, W, C) with C of 1 or 3")
    height, width, channels = image.shape
    if not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST):
        raise InputError(f"image has {height} x {width} pixels; expected each side in [1, {_LARGEST}]")
    rows = np.full((height, 1 + width * channels), _NO_FILTER, dtype=np.uint8)  # each row begins with its filter
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), _BEST)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
