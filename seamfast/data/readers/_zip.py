"""Zip archives, read with limits: nothing is extracted to disk, and no member is read past its declared size.

Source: PKWARE, ".ZIP File Format Specification" (APPNOTE), 6.3.10.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from seamfast.errors import DataFileError
from seamfast.untrusted import DEFLATE_RATIO, STREAM_FAULTS, PathLike, file_size, open_regular, printable, shown

_ENCRYPTED = 0x1


class _BoundedReads(io.RawIOBase):
    """A file that refuses any single read of more than ``limit``.

    ``zipfile`` reads the central directory in one read and makes an object of about 700 bytes for each entry of 46
    bytes or more. All other reads are of at most ``CHUNK`` bytes.
    """

    def __init__(self, file: io.BufferedReader, limit: int, where: str) -> None:
        self._file, self._limit, self._where = file, limit, where
        self._size = file_size(file)

    def read(self, n: int | None = -1, /) -> bytes:
        rest = max(self._size - self._file.tell(), 0)  # read allocates n bytes even if fewer remain
        n = rest if n is None or n < 0 else min(n, rest)
        if n > self._limit:
            raise DataFileError(f"{self._where}: its zip directory is larger than {self._limit:,} bytes")
        return self._file.read(n)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextmanager
def open_zip(path: PathLike, looked_for: str, *, max_directory: int) -> Iterator[zipfile.ZipFile]:
    """An archive with a checked directory: possible sizes, unique names, no overlapping members."""
    where = shown(path)
    with open_regular(path, looked_for) as raw:
        size = file_size(raw)
        try:
            archive = zipfile.ZipFile(_BoundedReads(raw, max_directory, where))
        except DataFileError:
            raise
        except STREAM_FAULTS as error:
            message = f"{where}: is not a zip archive that can be read ({error}); looked for {looked_for}"
            raise DataFileError(message) from error
        with archive:
            _check_directory(archive.infolist(), size, where)
            yield archive


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> IO[bytes]:
    """A member as a stream that yields at most ``info.file_size`` bytes and checks its CRC at the end."""
    try:
        return archive.open(info)
    except STREAM_FAULTS as error:
        raise DataFileError(f"{where}: cannot be read ({error})") from error


def _check_directory(members: list[zipfile.ZipInfo], archive_size: int, where: str) -> None:
    seen: set[str] = set()
    for info in members:
        name = f"{where}: member {printable(info.filename)}"
        if info.filename in seen:
            raise DataFileError(f"{name} occurs twice; expected unique names")
        seen.add(info.filename)
        if info.flag_bits & _ENCRYPTED:
            raise DataFileError(f"{name} is encrypted; expected plain members")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataFileError(f"{name} is a symbolic link; expected plain members")
        if info.compress_type == zipfile.ZIP_STORED:
            possible = info.file_size == info.compress_size
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            possible = info.file_size <= DEFLATE_RATIO * info.compress_size
        else:  # the dictionary of an LZMA stream may take 4 GiB
            message = f"{name} uses compression method {info.compress_type}; expected 0 (stored) or 8 (deflated)"
            raise DataFileError(message)
        if not possible:
            message = f"{name} declares {info.file_size:,} bytes from {info.compress_size:,}, which cannot be true"
            raise DataFileError(message)
    packed = sum(info.compress_size for info in members)
    if packed > archive_size:
        message = f"{where}: members take {packed:,} bytes of a file of {archive_size:,}; they overlap or lie"
        raise DataFileError(message)
