"""Gzip streams, inflated piece by piece. A header, padding or an empty member costs no more than its bytes.

Source: RFC 1952, "GZIP file format specification version 4.3".
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

_PACKED = 128 << 10  # bytes read at a time
_GZIP = 16 + zlib.MAX_WBITS  # zlib reads the header, checks the CRC and the length
_FEW_MEMBERS, _BYTES_A_MEMBER = 16, 4096  # members that hold almost nothing cost more than they are worth


class Gunzip:
    """``gzip.GzipFile(fileobj=raw)``, of which only ``read`` is needed; ``raw`` is at the start of a member."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._packed = b""
        self._member: zlib._Decompress | None = None
        self._n_members = self._n_bytes = 0

    def read(self, n: int, /) -> bytes:
        """At least one and at most ``n`` bytes; none at the end. Raises ``EOFError``, ``OSError`` or ``zlib.error``."""
        while n > 0:
            if self._member is None and not self._begin_member():
                return b""
            assert self._member is not None
            self._packed = self._packed or self._raw.read(_PACKED)
            starved = not self._packed
            data = self._member.decompress(self._packed, n)
            self._packed = self._member.unconsumed_tail
            if self._member.eof:
                self._packed, self._member = self._member.unused_data, None
            elif starved and not data:
                raise EOFError("the compressed stream has no end")
            self._n_bytes += len(data)
            if data:
                return data
        return b""

    def _begin_member(self) -> bool:
        """Whether another member begins; zeros between members are padding."""
        while True:
            self._packed = self._packed or self._raw.read(_PACKED)
            if not self._packed:
                return False
            if self._n_members:
                self._packed = self._packed.lstrip(b"\0")
            if self._packed:
                break
        self._n_members += 1
        most = _FEW_MEMBERS + self._n_bytes // _BYTES_A_MEMBER
        if self._n_members > most:
            raise OSError(f"more than {most} gzip members for {self._n_bytes:,} bytes")
        self._member = zlib.decompressobj(_GZIP)
        return True
