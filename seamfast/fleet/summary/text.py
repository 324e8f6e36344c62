"""What a fleet did, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from seamfast.fleet.summary.figures import GOOD, Compact, Row, by_urgency, column, counts, quantile
from seamfast.terminal import printable

_MOST_LISTED = 10
_SHARES = (
    ("accuracy lost", "accuracy_lost"),
    ("ASR as received", "asr_before"),
    ("ASR after", "asr_after"),
    ("battery as received", "battery_before"),
    ("battery after", "battery_after"),
    ("disagreement", "disagreement"),
)


def as_text(rows: Iterable[Row], *, n_waiting: int = 0) -> str:
    """Counts by outcome, medians and worst, and up to ten jobs that need a look; ends with a newline."""
    known = [Compact(row) for row in rows]
    found = counts(known, n_waiting)
    lines = [f"{len(known) + n_waiting:,} jobs: " + ", ".join(f"{n:,} {outcome}" for outcome, n in found.items())]
    measured = [(label, values) for label, name in _SHARES if (values := column(known, name))]
    if measured:
        lines += ["", f"{'':<21}{'n':>8}{'median':>10}{'95th':>10}{'largest':>10}"]
        for label, values in measured:
            shares = "".join(f"{quantile(values, share):>10.1%}" for share in (0.5, 0.95, 1.0))
            lines.append(f"{label:<21}{len(values):>8,}{shares}")
    if seconds := column(known, "seconds"):
        times = "".join(f"{quantile(seconds, share):>9.1f}s" for share in (0.5, 0.95, 1.0))
        lines.append(f"{'seconds':<21}{len(seconds):>8,}{times}")
    urgent = [row for row in by_urgency(known) if row["outcome"] not in GOOD]
    if urgent:
        lines.append("")
        lines += [
            f"{row['outcome']}: {printable(row['id'])}: {printable(row['reason'] or '')}"
            for row in urgent[:_MOST_LISTED]
        ]
        if len(urgent) > _MOST_LISTED:
            lines.append(f"and {len(urgent) - _MOST_LISTED:,} more: summary.html lists them")
    return "\n".join(lines) + "\n"
