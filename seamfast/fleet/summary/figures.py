"""What the documents of a fleet have in common: outcomes in their order, figures of a column, buckets."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from seamfast.fleet.store import COLUMNS

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

_PLACES = {name: place for place, name in enumerate(COLUMNS)}
_REPEATED = ("kind", "outcome", "reason", "architecture")


class Compact(Mapping[str, Any]):
    """A row in half a dict's memory; a text that many rows have is held once."""

    __slots__ = ("_values",)

    def __init__(self, row: Row) -> None:
        repeated = {name: sys.intern(row[name]) for name in _REPEATED if row[name] is not None}
        self._values = tuple(repeated.get(name, row[name]) for name in COLUMNS)

    def __getitem__(self, name: str) -> Any:
        return self._values[_PLACES[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)


def by_urgency(rows: Iterable[Row]) -> list[Row]:
    """What needs a look first; of one outcome, those that lost most accuracy first, then by id."""
    return sorted(rows, key=lambda row: (URGENCY.index(row["outcome"]), -(row["accuracy_lost"] or 0.0), row["id"]))


def counts(rows: Iterable[Row], n_waiting: int = 0) -> dict[str, int]:
    """Jobs by outcome, in the order of ``URGENCY``, without those that have none."""
    found = dict.fromkeys(URGENCY, 0)
    for row in rows:
        found[row["outcome"]] += 1
    found["waiting"] += n_waiting
    return {outcome: n for outcome, n in found.items() if n}


def column(rows: Iterable[Row], name: str) -> list[float]:
    """The known values of a column, in ascending order."""
    return sorted(row[name] for row in rows if row[name] is not None)


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
