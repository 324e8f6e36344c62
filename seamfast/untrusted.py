"""Reading untrusted files: open regular files, allocate within a budget, read exact sizes, print names safely."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from seamfast.errors import DataFileError

PathLike = str | os.PathLike[str]
Bytes = npt.NDArray[np.uint8]

MAX_BYTES = 8 << 30
"""Default limit on the allocations of one reader: 8 GiB."""

FREE_BYTES, MOST_EXPANSION = 64 << 20, 100
"""What packed data may unpack to: 64 MiB, or a hundred times their size. Images seldom shrink to a twentieth."""

DEFLATE_RATIO = 1032
"""Largest expansion of a deflate stream: its shortest code, 2 bits, yields at most 258 bytes (RFC 1951, 3.2.5)."""

CHUNK = 1 << 20


STREAM_FAULTS = (
    EOFError,
    OSError,  # includes gzip.BadGzipFile
    OverflowError,
    RuntimeError,  # zipfile: encrypted members; NotImplementedError: unknown methods
    ValueError,  # includes names that are not Unicode
    struct.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
"""Exceptions that the standard library's decompressors raise on malformed bytes."""


class Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


def open_regular(
    path: PathLike, looked_for: str, *, follow: bool = True, where: str | None = None
) -> io.BufferedReader:
    """Open a regular file for reading; a folder, pipe, socket or device is refused without blocking.

    ``looked_for`` ends the error message, ``where`` begins it (default: ``shown(path)``). ``follow=False`` refuses a
    symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    where = shown(path) if where is None else where
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise DataFileError(f"{where}: no such file; looked for {looked_for}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataFileError(f"{where}: cannot be opened ({reason}); looked for {looked_for}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataFileError(f"{where}: is not a regular file; looked for {looked_for}")
    return os.fdopen(descriptor, "rb")


def file_size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def existing_folder(root: PathLike, looked_for: str) -> Path:
    """``root`` as a path. Raises ``DataFileError`` if it is no folder."""
    if not os.path.isdir(root):  # Path.is_dir raises on some names and permissions
        raise DataFileError(f"{shown(root)}: no such folder; looked for {looked_for}")
    return Path(root)


def printable(name: object, limit: int = 200) -> str:
    """``name`` for a message: terminal escapes are escaped, long names are cut."""
    try:
        text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    except ValueError:  # Python prints no integer of thousands of digits
        text = f"of type {type(name).__name__}, too long to print"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def shown(path: PathLike) -> str:
    """``path`` for a message, ``printable``: as it was given, but of an absolute path the last part alone.

    Messages reach reports and logs that others read, and where a file lies on this machine is none of their business.
    """
    text = os.fspath(path)
    return printable((os.path.basename(text.rstrip("/")) or "/") if os.path.isabs(text) else text)


def printable_value(value: object) -> str:
    """``repr(value)`` for a message, as ``printable``."""
    try:
        return printable(repr(value), 80)
    except (ValueError, RecursionError):  # Python prints no integer of thousands of digits
        return f"a {type(value).__name__} too long to print"


def listed(names: list[str], limit: int = 12) -> str:
    """The first ``limit`` names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name, 60) for name in names[:limit]) + rest


class ImageSizeError(DataFileError):
    """Images have another size than is wanted; ``sizes`` are those that were found, (H, W), as far as was looked."""

    def __init__(self, message: str, sizes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(message)
        self.sizes = sizes


def check_budget(n_bytes: int, max_bytes: int, where: str) -> None:
    if n_bytes > max_bytes:
        raise DataFileError(f"{where}: would take {n_bytes:,} bytes; the limit is max_bytes={max_bytes:,}")


def check_expansion(n_bytes: int, packed: int, where: str) -> None:
    """Raise ``DataFileError`` if ``packed`` bytes unpack to more than they are allowed."""
    most = max(FREE_BYTES, MOST_EXPANSION * packed)
    if n_bytes > most:
        raise DataFileError(f"{where}: {packed:,} bytes would unpack to {n_bytes:,}; expected at most {most:,}")


def check_sample_shape(found: tuple[int, ...], expected: tuple[int, ...] | None, where: str) -> None:
    """Raise ``DataFileError`` unless images of ``found`` ``(C, H, W)`` are as ``expected``; ``None``: any."""
    if expected is not None and found != expected:
        message = f"{where}: the images are {found}; expected {expected} (C, H, W), as the model takes them"
        if found[-2:] == expected[-2:]:
            raise DataFileError(message)
        raise ImageSizeError(message, (found[-2:],))


def allocate(shape: tuple[int, ...], where: str) -> Bytes:
    """Uninitialized bytes. Raises ``DataFileError`` if the size, which the file declares, cannot be allocated."""
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        n_bytes = math.prod(shape)
        raise DataFileError(f"{where}: would take {n_bytes:,} bytes, more than can be allocated here") from error


def fill(stream: Readable, out: Bytes, where: str) -> None:
    """Read exactly ``out.size`` bytes into ``out``, in chunks."""
    view = out.reshape(-1).data
    done = 0
    while done < len(view):
        part = read_some(stream, min(CHUNK, len(view) - done), where)
        if not part:
            raise DataFileError(f"{where}: ends after {done:,} of {len(view):,} bytes")
        view[done : done + len(part)] = part
        done += len(part)


def read_bytes(stream: Readable, shape: tuple[int, ...], where: str) -> Bytes:
    """The next bytes of ``stream`` as an array of ``shape``: ``allocate`` and ``fill``."""
    data = allocate(shape, where)
    fill(stream, data, where)
    return data


def read_some(stream: Readable, n: int, where: str) -> bytes:
    """At most ``n`` bytes. Raises ``DataFileError`` on corrupt, truncated or encrypted streams."""
    try:
        return stream.read(n)
    except STREAM_FAULTS as error:
        raise DataFileError(f"{where}: data is truncated or corrupt ({error})") from error
