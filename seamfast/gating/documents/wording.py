"""Numbers, names and verdicts as the documents for people print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

from seamfast.documents.markup import visible
from seamfast.gating.decision import not_finite
from seamfast.gating.policy import METRICS

T = TypeVar("T")

TITLES = {
    "pass": "Passed",
    "fail": "Failed",
    "inconclusive": "Inconclusive",
    "refused": "Refused",
    "incomplete": "Incomplete",
}
MEANINGS = {
    "pass": "Every rule of the policy was evaluated, and passed at its confidence bound.",
    "fail": "At least one rule of the policy failed. No sanitized model was written.",
    "inconclusive": "No rule failed, but at least one could not be decided. This is not a pass: no sanitized model was "
    "written.",
    "refused": "The input was refused: no rule was evaluated, and no sanitized model was written.",
    "incomplete": "The gate could not complete: nothing was decided, and no sanitized model was written. Trying again "
    "may help.",
}
SYMBOLS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "refused": "⊘", "incomplete": "…"}
PASSED = {True: "passed", False: "failed", None: "not tested"}
NOT_KNOWN = "n/a"
_LEAST = 0.0001
"""Shares below it are printed alike."""

LONGEST_NAME = 200  # characters


def first(items: Sequence[T], limit: int) -> tuple[Sequence[T], list[str]]:
    """At most ``limit`` items, and a sentence on those left out, if any."""
    rest = len(items) - limit
    return items[:limit], [f"{rest:,} more are in report.json."] if rest > 0 else []


def by_urgency(rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rules that failed, then those not decided, then the rest, each in the policy's order."""
    return sorted(rules, key=lambda rule: ("fail", "inconclusive", "pass").index(rule["outcome"]))


def limits(report: Mapping[str, Any]) -> list[str]:
    """The limits of the evidence: none where nothing was measured."""
    sentences: list[str] = report["limits"] if report["statements"] or report["audit"]["before"] else []
    return sentences


def percent(value: float | None, *apart: float) -> str:
    """A share to 0.1 %, or finer where rounding would put it on or beyond 0, 1 or one of ``apart``; ``<0.01%`` below
    that."""
    if value is None:
        return NOT_KNOWN
    if 0 < value < _LEAST and not any(0 <= other <= _LEAST for other in apart):
        return f"<{_LEAST:.2%}"
    digits = _decimals(value, 3, (0.0, 1.0, *apart))
    return f"{round(value, digits):.{digits - 2}%}".replace("-", "−")


def amount(metric: str, value: float | None, *apart: float) -> str:
    """A value of a metric that a policy may name: a share as ``percent``, any other to two decimals or finer."""
    if value is None or _is_share(metric):
        return percent(value, *apart)
    digits = _decimals(value, 2, apart)
    return f"{value:.{digits}f}".replace("-", "−")


def requirement(rule: Mapping[str, Any]) -> str:
    """What a rule requires, to all digits of its threshold: ``at most 5%``."""
    threshold = rule["threshold"]
    if isinstance(threshold, bool):
        return _truth(threshold)
    number = f"{100 * threshold:.12g}%" if _is_share(rule["metric"]) else f"{threshold:.12g}"
    return f"at {'least' if rule['greater_is_better'] else 'most'} {number}".replace("-", "−")


def measured(rule: Mapping[str, Any], key: str) -> str:
    """``rule[key]``, its ``value`` or ``bound``, with enough digits to differ from the threshold."""
    if isinstance(rule["threshold"], bool):
        return NOT_KNOWN if rule[key] is None else _truth(bool(rule[key]))
    return amount(rule["metric"], rule[key], rule["threshold"])


def interval(rule: Mapping[str, Any]) -> str:
    """``95.9% to 98.7%``; ``n/a`` where there is none."""
    low, high = rule["low"], rule["high"]
    if low is None or high is None or low == high:
        return NOT_KNOWN
    return f"{amount(rule['metric'], low)} to {amount(rule['metric'], high)}"


def samples(rule: Mapping[str, Any]) -> str:
    """How many samples a rule was decided on."""
    return NOT_KNOWN if rule["n"] is None else f"{rule['n']:,}"


def rate_with_bounds(rate: Mapping[str, Any]) -> str:
    """``97.6% (95.9% to 98.6%)``."""
    if rate["value"] is None:
        return f"{NOT_KNOWN} (no samples)"
    return f"{percent(rate['value'])} ({percent(rate['low'])} to {percent(rate['high'])})"


def most_not_finite(report: Mapping[str, Any], when: str) -> str:
    """``70.0% of samples, at most``: the largest share of samples of an audit without a finite answer, or ``none``."""
    lost = not_finite(report, when)
    if not lost:
        return "none"
    largest = max(one.share for one in lost)
    return f"{percent(largest)} of samples, at most" if largest else "in the inversion alone"


def not_finite_counts(counts: Sequence[int | None], n: int) -> str | None:
    """``no finite answer: 2 of 500 as received, 350 of 500 sanitized``; ``None`` where all have one."""
    names = ("as received", "sanitized")
    parts = [f"{k:,} of {n:,} {name}" for k, name in zip(counts, names, strict=True) if k]
    return f"no finite answer: {', '.join(parts)}" if parts else None


def class_label(report: Mapping[str, Any], label: int) -> str:
    """``3 (stop sign)``, or ``3`` where classes have no names or are named by their numbers."""
    names = (report["data"] or {}).get("class_names") or []
    known = names[label] if 0 <= label < len(names) else str(label)
    return str(label) if known == str(label) else f"{label} ({visible(known, 60)})"


def size(n_bytes: int) -> str:
    """``214 bytes``, ``55.7 kB``: in powers of 1000."""
    number = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(number, 1) < 1000:
            return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def duration(seconds: float) -> str:
    """``0.04 s``, ``3.3 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def moment(created: str) -> str:
    """``2026-03-14 09:26 UTC`` of a time in ISO 8601; any other text unchanged."""
    try:
        when = datetime.fromisoformat(created.replace("Z", "+00:00"))  # Python 3.10 knows no Z
        return f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return created


def _is_share(metric: str) -> bool:
    return metric not in METRICS or METRICS[metric].kind != "number"


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _decimals(value: float, fewest: int, apart: Sequence[float]) -> int:
    """How many decimals keep ``value`` on its side of each of ``apart``; at most 9."""

    def side(number: float, of: float) -> int:
        return (number > of) - (number < of)

    return next((n for n in range(fewest, 9) if all(side(round(value, n), x) == side(value, x) for x in apart)), 9)
