"""The PNG encoder, against a decoder of its own and against Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seamfast.errors import InputError
from seamfast.gating.documents.png import as_png

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from((1, 3))))


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and data; lengths and check sums hold, and nothing is left over."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        data = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        at += 12 + length
    assert at == len(content)
    return found


@settings(max_examples=100, deadline=None)
@given(IMAGES)
def test_every_pixel_comes_back(image: np.ndarray) -> None:
    (header_kind, header), (data_kind, data), end = chunks(as_png(image))
    height, width, channels = image.shape
    assert (header_kind, data_kind, end) == (b"IHDR", b"IDAT", (b"IEND", b""))
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:].reshape(image.shape), image)


@settings(max_examples=50, deadline=None)
@given(IMAGES)
def test_pillow_reads_the_same(image: np.ndarray) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow reads the files again")
    read = pillow.open(io.BytesIO(as_png(image)))
    assert read.mode == ("L" if image.shape[2] == 1 else "RGB")
    assert np.array_equal(np.asarray(read).reshape(image.shape), image)


def test_strides_do_not_matter() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert as_png(image[::2, ::-1]) == as_png(image[::2, ::-1].copy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((8, 8, 4), np.int64),
            r"^image is int64 of shape \(8, 8, 4\); expected uint8 \(H, W, C\) with C of 1 or",
        ),
        (np.zeros((8, 8, 4), np.uint8), r"^image is uint8 of shape \(8, 8, 4\); expected"),
        (np.zeros((8, 8), np.uint8), r"^image is uint8 of shape \(8, 8\); expected"),
        (np.zeros((8, 8, 1), np.float32), r"^image is float32 of shape"),
        (np.zeros((0, 8, 1), np.uint8), r"^image has 0 x 8 pixels; expected each side in \[1, 4096\]$"),
        (np.zeros((1, 4097, 1), np.uint8), r"^image has 1 x 4097 pixels; expected"),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_png(image)
