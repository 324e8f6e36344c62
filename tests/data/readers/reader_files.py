"""Makes the small files, honest and hostile, that the reader tests read."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


def idx_bytes(array: np.ndarray, shape: tuple[int, ...] | None = None, element: int = 0x08) -> bytes:
    """An IDX file; ``shape`` is what the header claims, where that is not the truth."""
    shape = array.shape if shape is None else shape
    return bytes((0, 0, element, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def npy_bytes(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0), pad: bool = True) -> bytes:
    """An ``.npy`` file with any header text at all."""
    text = header.encode("latin-1") + (b" \n" if pad else b"")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def npy_header(shape: Any, descr: Any = "|u1", fortran: Any = False) -> str:
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape})


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def forge_size(path: Path, declared: int) -> None:
    """Overwrite the uncompressed size of a zip's first member, in the central directory and in the local header."""
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", declared)
    data[22:26] = struct.pack("<I", declared)
    path.write_bytes(data)


def image_bytes(array: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@contextlib.contextmanager
def allocating_at_most(limit: int) -> Iterator[None]:
    """Fails if the block allocates more than ``limit`` bytes at once; NumPy reports to ``tracemalloc`` too."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= limit, f"{peak:,} bytes at the peak; expected at most {limit:,}"
