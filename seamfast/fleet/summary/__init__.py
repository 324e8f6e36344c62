"""What a fleet did, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seamfast.report import write_atomically


def as_text(rows: Iterable[Mapping[str, Any]], *, n_waiting: int = 0) -> str:
    return f"{dict(Counter(row['outcome'] for row in rows))} {n_waiting}\n"


def write_summary(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    seconds: float | None = None,
    workers: int | None = None,
    n_waiting: int = 0,
    prometheus: bool = False,
) -> None:
    write_atomically(folder / "summary.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
