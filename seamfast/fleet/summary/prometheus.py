"""The state of a fleet in Prometheus' text format, for the textfile collector of node_exporter."""

from __future__ import annotations

from collections.abc import Sequence

from seamfast.fleet.summary.figures import URGENCY, Tally

_SECONDS = (1, 2, 5, 10, 30, 60, 300, 1800)
_LOST = (-0.05, 0.0, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2)


def as_prometheus(tally: Tally, now: float) -> bytes:
    """Counts by outcome, attempts, histograms of seconds and of accuracy lost, and the time of the last update.

    Args:
        now: in seconds since the epoch.
    """
    found = tally.outcomes()
    lines = _head("jobs", "gauge", "Jobs by outcome.")
    lines += [f'seamfast_fleet_jobs{{outcome="{outcome}"}} {found.get(outcome, 0)}' for outcome in URGENCY]
    lines += _head("attempts", "gauge", "Attempts at the jobs that are done or given up.")
    lines.append(f"seamfast_fleet_attempts {int(sum(tally.column('attempts')))}")
    lines += _histogram("job_seconds", "Seconds of a job.", tally.column("seconds"), _SECONDS)
    lines += _histogram(
        "accuracy_lost", "Accuracy lost on held-out samples, as a share.", tally.column("accuracy_lost"), _LOST
    )
    lines += _head("updated_timestamp_seconds", "gauge", "When this was written.")
    lines.append(f"seamfast_fleet_updated_timestamp_seconds {now:.3f}")
    return ("\n".join(lines) + "\n").encode()


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP seamfast_fleet_{name} {text}", f"# TYPE seamfast_fleet_{name} {kind}"]


def _histogram(name: str, text: str, values: Sequence[float], bounds: Sequence[float]) -> list[str]:
    lines = _head(name, "histogram", text)
    for bound in bounds:
        n = sum(value <= bound for value in values)
        lines.append(f'seamfast_fleet_{name}_bucket{{le="{bound:g}"}} {n}')
    lines.append(f'seamfast_fleet_{name}_bucket{{le="+Inf"}} {len(values)}')
    return [*lines, f"seamfast_fleet_{name}_sum {sum(values):.6g}", f"seamfast_fleet_{name}_count {len(values)}"]
