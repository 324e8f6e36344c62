"""The rows as CSV and as JSON lines, line by line: a fleet's files may be larger than its memory should be."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from seamfast.fleet.store import COLUMNS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """RFC 4180, UTF-8, with a head; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    return b"".join(csv_lines(rows))


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line, with all columns."""
    return b"".join(json_lines(rows))


def csv_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The records of ``as_csv``, the head first."""
    writer = csv.writer(_Encoder())
    yield writer.writerow(COLUMNS)
    for row in rows:
        yield writer.writerow(_cell(row[name]) for name in COLUMNS)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The lines of ``as_jsonl``."""
    for row in rows:
        yield f"{json.dumps({name: row[name] for name in COLUMNS}, allow_nan=False)}\n".encode()


class _Encoder:
    """A file to ``csv.writer``, whose ``writerow`` returns what ``write`` returns."""

    def write(self, record: str) -> Any:
        return record.encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
