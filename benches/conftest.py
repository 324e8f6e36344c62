"""What the benches share: races of two things by turns in one process, and the table at the end.

What pytest-benchmark records of a race is a quotient, not a time: how long ours took over how long its baseline took
in the same turn. Quotients of two runs can be compared where their times cannot (another machine, another load), so

    pytest-benchmark compare benches/results/bench_ops.json NEW.json --columns=median,iqr

tracks regressions by ratio: a row that grew became slower against its baseline. The unit that it prints is to be
ignored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benches.rows import commit
from seamfast.ops import backends
from seamfast.record import machine


class QuotientClock:
    """A clock for pytest-benchmark that shows quotients: a turn moves it on by ours over baseline."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


_CLOCK = QuotientClock()
_ROWS: list[dict[str, Any]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=_CLOCK))
        item.add_marker(pytest.mark.timeout(900))  # the suite's limit is for tests


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads pinned to one; our kernels are told ``threads=1`` where they take it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


Race = Callable[..., dict[str, Any]]


@pytest.fixture
def race(benchmark: Any) -> Race:
    """``race(what, ours, baseline_name, baseline, ...)``: one row of the table."""

    def run(
        what: str,
        ours: Callable[[], object],
        against: str,
        baseline: Callable[[], object],
        *,
        match: bool,
        target: float | None = None,
        turns: int = 15,
        turn_seconds: float = 0.05,
        **more: Any,
    ) -> dict[str, Any]:
        """Time both by turns.

        Args:
            what, against: the names in the table.
            ours, baseline: called without arguments.
            match: whether both give the same result (to the tolerance that the bench states).
            target: how many times as long the baseline should take at least.
            turns: how often each has its turn.
            turn_seconds: about how long a turn lasts; quick calls are repeated to fill it.
            more: what else the row should hold.
        """
        calls = (baseline, ours)
        repeats = [max(1, round(turn_seconds / max(seconds(call), seconds(call)))) for call in calls]
        times: list[tuple[float, float]] = []

        def turn() -> None:
            slow, fast = (seconds(call, n) for call, n in zip(calls, repeats, strict=True))
            times.append((slow, fast))
            _CLOCK.now += fast / slow

        benchmark.pedantic(turn, rounds=turns, iterations=1)
        ratios = sorted(slow / fast for slow, fast in times)
        row = {
            "what": what,
            "ours_us": min(fast for _, fast in times) * 1e6,
            "against": against,
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[0],
            "ratio_high": ratios[-1],
            "turns": turns,
            "target": target,
            "match": match,
            **more,
        }
        benchmark.extra_info |= row
        _ROWS.append(row)
        assert match, f"{what} does not give what {against} gives"
        return row

    return run


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    isa = next((row["isa"] for row in backends() if row["backend"] == "cpp" and row["isa"]), None)
    machine_info["seamfast"] = {**machine(), "isa": isa, "threads": 1, "commit": commit()}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _ROWS:
        return
    write = terminalreporter.write_line
    isa = next((row["isa"] for row in backends() if row["backend"] == "cpp" and row["isa"]), "no extension")
    terminalreporter.section("seamfast: ratios to baselines, medians over turns")
    write(f"torch {torch.__version__}, {isa}, one thread everywhere; commit {commit()}")
    write(f"{'what':<52} {'ours':>10}  {'against':<40} {'ratio':>7} {'(range)':>15} {'target':>7}  match")
    for row in _ROWS:
        target = "" if row["target"] is None else f"{row['target']:g}x"
        mark = "" if row["target"] is None or row["ratio"] >= row["target"] else "  MISSED"
        span = f"({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        time_ = f"{row['ours_us']:.1f} us" if row["ours_us"] < 1e4 else f"{row['ours_us'] / 1e3:.1f} ms"
        yes = "yes" if row["match"] else "NO"
        ratio = f"{row['ratio']:.2f}x"
        write(f"{row['what']:<52} {time_:>10}  {row['against']:<40} {ratio:>7} {span:>15} {target:>7}  {yes}{mark}")
