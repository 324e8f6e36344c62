"""The rows as CSV and as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from seamfast.fleet.store import COLUMNS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """RFC 4180, UTF-8, with a head; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in rows)
    return buffer.getvalue().encode()


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line, with all columns."""
    return "".join(f"{json.dumps({name: row[name] for name in COLUMNS}, allow_nan=False)}\n" for row in rows).encode()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
