"""A row as a line of CSV and of JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from seamfast.fleet.store import COLUMNS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_head() -> bytes:
    """The first line of the CSV file."""
    return _csv_line(COLUMNS)


def csv_line(row: Mapping[str, Any]) -> bytes:
    """RFC 4180, UTF-8; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    return _csv_line([_cell(row[name]) for name in COLUMNS])


def json_line(row: Mapping[str, Any]) -> bytes:
    """A JSON object with all columns."""
    return f"{json.dumps({name: row[name] for name in COLUMNS}, allow_nan=False)}\n".encode()


def _csv_line(cells: Sequence[Any]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue().encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
