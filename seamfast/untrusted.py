"""What reads files of strangers: open a regular file, allocate within a budget, fill to the byte, print safely."""

from __future__ import annotations

import gzip
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
"""Default budget for what one reader allocates: 8 GiB."""

DEFLATE_RATIO = 1032
"""No deflate stream grows by more: its shortest code, 2 bits, yields at most 258 bytes (RFC 1951, 3.2.5)."""

CHUNK = 1 << 20

STREAM_FAULTS = (
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # zipfile: encrypted members; NotImplementedError: unknown methods
    ValueError,  # includes names that are not Unicode
    gzip.BadGzipFile,
    struct.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
"""What the standard library's decompressors raise on hostile bytes."""


class Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


def open_regular(path: PathLike, looked_for: str, *, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; a folder, pipe, socket or device is refused without blocking on it.

    ``looked_for`` ends the message where there is no such file. ``follow=False`` refuses a symbolic link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    where = printable(path)
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
    """``root`` as a path, or a ``DataFileError`` where it is no folder."""
    if not os.path.isdir(root):  # Path.is_dir raises on some names and rights
        raise DataFileError(f"{printable(root)}: no such folder; looked for {looked_for}")
    return Path(root)


def printable(name: object, limit: int = 200) -> str:
    """A name fit for a message: file names may carry terminal escapes, or be very long."""
    try:
        text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    except ValueError:  # Python prints no integer of thousands of digits
        text = f"of type {type(name).__name__}, too long to print"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def printable_value(value: object) -> str:
    """``repr(value)`` of a value from a file, fit for a message."""
    try:
        return printable(repr(value), 80)
    except (ValueError, RecursionError):  # Python prints no integer of thousands of digits
        return f"a {type(value).__name__} too long to print"


def listed(names: list[str], limit: int = 12) -> str:
    """Names for a message, shortened."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name, 60) for name in names[:limit]) + rest


def check_budget(n_bytes: int, max_bytes: int, where: str) -> None:
    if n_bytes > max_bytes:
        raise DataFileError(f"{where}: would take {n_bytes:,} bytes; the limit is max_bytes={max_bytes:,}")


def allocate(shape: tuple[int, ...], where: str) -> Bytes:
    """Uninitialized bytes; what the machine cannot give is the file's fault, since the file asked for it."""
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        message = f"{where}: would take {math.prod(shape):,} bytes, more than can be allocated here"
        raise DataFileError(message) from error


def fill(stream: Readable, out: Bytes, where: str) -> None:
    """Read exactly ``out.size`` bytes into ``out``, a chunk at a time."""
    view = out.reshape(-1).data
    done = 0
    while done < len(view):
        part = read_some(stream, min(CHUNK, len(view) - done), where)
        if not part:
            raise DataFileError(f"{where}: ends after {done:,} of {len(view):,} bytes")
        view[done : done + len(part)] = part
        done += len(part)


def read_some(stream: Readable, n: int, where: str) -> bytes:
    """At most ``n`` bytes; corrupt, cut or encrypted streams become a ``DataFileError``."""
    try:
        return stream.read(n)
    except STREAM_FAULTS as error:
        raise DataFileError(f"{where}: data is truncated or corrupt ({error})") from error
