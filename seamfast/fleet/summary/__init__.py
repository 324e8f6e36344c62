"""What a fleet did, for people and for programs: each document is a function of the rows, which are read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from seamfast.fleet.summary.figures import Tally
from seamfast.fleet.summary.html import MOST_ROWS, as_html
from seamfast.fleet.summary.prometheus import as_prometheus
from seamfast.fleet.summary.table import csv_head, csv_line, json_line
from seamfast.fleet.summary.text import as_text
from seamfast.report import whole_file, write_atomically

__all__ = ["as_text", "write_summary"]


def write_summary(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    seconds: float | None = None,
    workers: int | None = None,
    n_waiting: int = 0,
    prometheus: bool = False,
) -> dict[str, int]:
    """Write ``summary.html``, ``summary.csv`` and ``summary.jsonl`` into ``folder``, each whole or not at all.

    Args:
        rows: of the jobs that are done or given up.
        seconds, workers: of the call, where there was one.
        n_waiting: jobs that are neither.
        prometheus: write ``fleet.prom`` too.

    Returns:
        The number of jobs of each outcome that there are any of.
    """
    now = datetime.now(timezone.utc)
    tally = Tally((), n_waiting=n_waiting, most=MOST_ROWS)
    with whole_file(folder / "summary.csv") as table, whole_file(folder / "summary.jsonl") as lines:
        table.write(csv_head())
        for row in rows:
            table.write(csv_line(row))
            lines.write(json_line(row))
            tally.add(row)
    created = now.isoformat(timespec="seconds")
    page = as_html(tally, name=folder.name, created=created, seconds=seconds, workers=workers)
    write_atomically(folder / "summary.html", page)
    if prometheus:
        write_atomically(folder / "fleet.prom", as_prometheus(tally, now.timestamp()))
    return tally.outcomes()
