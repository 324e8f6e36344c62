"""Results on disk: a file of JSON lines, one a measurement, that several processes may add to; and pictures of them."""

from __future__ import annotations

import fcntl
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows that a file holds, in order; what is no whole row is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # a kill came while it was written
            continue
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a line, on a line of its own, whatever other processes and kills have done to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def commit() -> str:
    """The commit of this folder in short, or ``"unknown"``: a row's stamp, beside ``seamfast.record.machine``."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def as_svg(draw: Callable[[Any], None], size: tuple[float, float], salt: str, *, math: bool = True) -> bytes:
    """What ``draw`` puts into a figure of so many inches; equal drawings give equal bytes, and text stays text.

    ``math=False``: where labels come from outside, in which ``$`` is a dollar.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "text.parse_math": math}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
