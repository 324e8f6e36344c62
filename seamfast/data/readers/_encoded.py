"""JPEG and PNG without what no pixel depends on, so that a decoder neither unpacks nor parses it.

Pillow inflates compressed text and color profiles of a PNG as it opens it, up to 64 MiB for a file of 64 KB, and reads
Exif and multi-picture segments of a JPEG. None of it is used here.

Source: W3C, "Portable Network Graphics", third edition, sections 5.3 and 5.4; ITU-T T.81, annex B (JPEG markers).
"""

from __future__ import annotations

import re

from seamfast.errors import DataFileError

MAX_PARTS = 1 << 14  # chunks or segments; an encoder writes one for each 8 KB
MAX_SCANS = 100
"""Of a JPEG. Each costs a pass over the image; encoders write about ten."""

_PNG = b"\x89PNG\r\n\x1a\n"
_ANCILLARY = 0x20  # the bit that makes the first letter of a chunk's name lower case
_TRANSPARENCY, _END = b"tRNS", b"IEND"
_JPEG = b"\xff\xd8"
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_FILL, _END_OF_IMAGE, _SCAN = 0xFF, 0xD9, 0xDA
_DROPPED = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 to APP13, APP15, comments; JFIF and Adobe's APP14 tell the colors
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def without_extras(data: bytes, where: str) -> bytes:
    """The image with its pixels alone: a PNG's critical chunks and ``tRNS``, a JPEG's tables and scans.

    What is cut short or out of order stays as it is from there on, for the decoder to judge.

    Raises:
        DataFileError: e.g. ``a/1.png: has more than 16,384 chunks``, ``a/1.jpg: has 999 scans; expected at most 100``.
    """
    if data.startswith(_PNG):
        return _plain_png(data, where)
    return _plain_jpeg(data, where) if data.startswith(_JPEG) else data


def _plain_png(data: bytes, where: str) -> bytes:
    parts, at = [_PNG], len(_PNG)
    for _ in range(MAX_PARTS):
        name = data[at + 4 : at + 8]
        if len(name) < 4:
            break
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if not name[0] & _ANCILLARY or name == _TRANSPARENCY:
            parts.append(data[at:end])
        at = end
        if name == _END or at >= len(data):
            break
    else:
        raise DataFileError(f"{where}: has more than {MAX_PARTS:,} chunks")
    return b"".join(parts)


def _plain_jpeg(data: bytes, where: str) -> bytes:
    parts, at = [_JPEG], len(_JPEG)
    for _ in range(MAX_PARTS):
        marker = data[at + 1 : at + 2]
        if data[at : at + 1] != b"\xff" or not marker:
            parts.append(data[at:])
            break
        if marker[0] == _FILL:
            at = _after_fill(data, at)
            continue
        if marker[0] in _ALONE or marker[0] == _END_OF_IMAGE:
            parts.append(data[at : at + 2])
            at += 2
            if marker[0] == _END_OF_IMAGE:
                break
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            parts.append(data[at:])
            break
        if marker[0] == _SCAN:
            following = _NEXT_MARKER.search(data, end)
            end = following.start() if following else len(data)
        if marker[0] not in _DROPPED:
            parts.append(data[at:end])
        at = end
    else:
        raise DataFileError(f"{where}: has more than {MAX_PARTS:,} segments")
    plain = b"".join(parts)
    n_scans = plain.count(bytes((_FILL, _SCAN)))
    if n_scans > MAX_SCANS:
        raise DataFileError(f"{where}: has {n_scans:,} scans; expected at most {MAX_SCANS}")
    return plain


def _after_fill(data: bytes, at: int) -> int:
    """Where the last of a run of fill bytes is, which begins a marker."""
    run = re.compile(rb"\xff+").match(data, at)
    assert run is not None
    return run.end() - 1
