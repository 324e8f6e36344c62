"""What the documents of a fleet have in common: outcomes in their order, figures of a column, buckets."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

URGENCY = (
    *("quarantined", "error", "refused", "fail", "invalid", "undecided", "inconclusive", "accepted", "pass"),
    "waiting",
)
"""Outcomes, what needs a look first."""
MEANINGS = {
    "quarantined": "given up: each attempt ended in a crash, a lack of memory or the time limit",
    "error": "a defect of seamfast or of what it called",
    "refused": "sanitized, and the result is not good enough",
    "fail": "a rule of the policy failed",
    "invalid": "the model or the data cannot be used",
    "undecided": "too few samples to tell whether the result is good enough",
    "inconclusive": "no rule of the policy failed, and one could not be decided",
    "accepted": "sanitized, and accepted",
    "pass": "every rule of the policy passed",
    "waiting": "not reached yet",
}
GOOD = ("accepted", "pass")
MEASURED = (
    *("accuracy_lost", "asr_before", "asr_after", "battery_before", "battery_after", "disagreement", "seconds"),
    "attempts",
)
"""Columns whose distribution is told."""
_SLACK = 500  # rows beyond those that are kept, between two times that they are sorted


class Tally:
    """What the documents need of the rows, in memory that hardly grows with their number.

    Args:
        rows: of all jobs, in any order.
        n_waiting: jobs that have no row yet.
        most: rows that are kept, those that need a look first.
    """

    def __init__(self, rows: Iterable[Row], *, n_waiting: int = 0, most: int) -> None:
        self.n_rows = 0
        self._outcomes = dict.fromkeys(URGENCY, 0)
        self._outcomes["waiting"] = n_waiting
        self._columns = {name: array("d") for name in MEASURED}
        self._first: list[Row] = []
        self._most = most
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Count one row more."""
        self.n_rows += 1
        self._outcomes[row["outcome"]] += 1
        for name, values in self._columns.items():
            if row[name] is not None:
                values.append(row[name])
        self._first.append(row)
        if len(self._first) > self._most + _SLACK:
            self._first = by_urgency(self._first)[: self._most]

    @property
    def n_jobs(self) -> int:
        """Those with a row, and those that wait."""
        return self.n_rows + self._outcomes["waiting"]

    def outcomes(self) -> dict[str, int]:
        """Jobs by outcome, in the order of ``URGENCY``, without those that have none."""
        return {outcome: n for outcome, n in self._outcomes.items() if n}

    def column(self, name: str) -> list[float]:
        """The known values of a column of ``MEASURED``, in ascending order."""
        return sorted(self._columns[name])

    def first(self) -> list[Row]:
        """At most ``most`` rows, by urgency."""
        return by_urgency(self._first)[: self._most]


def by_urgency(rows: Iterable[Row]) -> list[Row]:
    """What needs a look first; of one outcome, those that lost most accuracy first, then by id."""
    return sorted(rows, key=lambda row: (URGENCY.index(row["outcome"]), -(row["accuracy_lost"] or 0.0), row["id"]))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ascending ``values`` lie, linearly between two of them."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many ``values`` lie in ``[edges[i], edges[i + 1])``; those outside are in the first and last."""
    found = [0] * (len(edges) - 1)
    for value in values:
        bucket = sum(value >= edge for edge in edges[1:-1])
        found[bucket] += 1
    return found
