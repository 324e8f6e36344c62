"""What a fleet did, for people and for programs: each document is a function of the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from seamfast.fleet.summary.figures import Compact
from seamfast.fleet.summary.html import as_html
from seamfast.fleet.summary.prometheus import as_prometheus
from seamfast.fleet.summary.table import csv_lines, json_lines
from seamfast.fleet.summary.text import as_text
from seamfast.report import write_atomically

__all__ = ["as_text", "write_summary"]


def write_summary(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    seconds: float | None = None,
    workers: int | None = None,
    n_waiting: int = 0,
    prometheus: bool = False,
) -> None:
    """Write ``summary.html``, ``summary.csv`` and ``summary.jsonl`` into ``folder``, each whole or not at all.

    Args:
        rows: of the jobs that are done or given up.
        seconds, workers: of the call, where there was one.
        n_waiting: jobs that are neither.
        prometheus: write ``fleet.prom`` too.
    """
    found = [Compact(row) for row in rows]
    now = datetime.now(timezone.utc)
    write_atomically(folder / "summary.csv", csv_lines(found))
    write_atomically(folder / "summary.jsonl", json_lines(found))
    page = as_html(
        found,
        name=folder.name,
        created=now.isoformat(timespec="seconds"),
        seconds=seconds,
        workers=workers,
        n_waiting=n_waiting,
    )
    write_atomically(folder / "summary.html", page)
    if prometheus:
        write_atomically(folder / "fleet.prom", as_prometheus(found, now.timestamp(), n_waiting))
