"""``fleet.py`` with two models: runs, rows, and what the report makes of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benches import fleet, fleet_zoo
from benches.fleet import auc, bounded, by_attack, cured, evidence, found_at, took, worst
from benches.fleet_zoo import Group
from benches.rows import read_rows
from seamfast.attacks import TrainConfig


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a backdoor, one without, and their jobs."""
    folder = tmp_path_factory.mktemp("zoo")
    few = (Group("digits-table", "mlp", ("feature_beyond",), 1, TrainConfig(epochs=2, batch_size=64, rate=0.03)),)
    few += (Group("digits", "small_cnn", ("badnets", "tact"), 1, TrainConfig(epochs=2, batch_size=64, rate=0.03)),)
    given = ["--zoo", str(folder), "--root", "nowhere", "--jobs", str(folder / "jobs.jsonl")]
    assert fleet_zoo.main(given, few) == 0
    return folder


def test_models_are_sanitized_once_and_have_a_row(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "MODELS", tmp_path / "models.jsonl")
    monkeypatch.setattr(fleet, "WHOLE", tmp_path / "whole.jsonl")
    for _ in range(2):
        assert fleet.main(["--zoo", str(zoo), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    first, again = read_rows(tmp_path / "whole.jsonl")
    n_jobs = len((zoo / "jobs.jsonl").read_text().splitlines())
    assert (first["n_jobs"], first["n_done_before"], again["n_done_before"]) == (n_jobs, 0, n_jobs)
    assert first["commit"]
    rows = read_rows(tmp_path / "models.jsonl")
    assert [row["id"] for row in rows] == sorted(job["id"] for job in read_rows(zoo / "jobs.jsonl"))
    assert all(row["asr_before"] is not None and row["disagreement"] is not None for row in rows)


def row(attack: str, before: float, after: float, score: float, outcome: str = "accepted") -> dict[str, Any]:
    return {
        "id": f"{attack}-{score}",
        "attack": attack,
        "data": "d",
        "architecture": "a",
        "outcome": outcome,
        "asr_before": before,
        "asr_after": after,
        "test_accuracy_before": 0.9,
        "test_accuracy_after": 0.89,
        "battery_before": score,
        "disagreement": score,
        "fidelity": 0.9,
    }


ROWS = [row("x", 0.95, 0.3, 0.5 + n / 100) for n in range(10)] + [row("clean", 0.02, 0.01, n / 100) for n in range(10)]


def test_tables_tell_what_took_and_what_is_left() -> None:
    weak, refused = row("x", 0.5, 0.01, 0.1), row("x", 0.99, 0.9, 0.1, "refused")
    assert took(ROWS[0])
    assert not took(weak)
    assert not took(ROWS[-1])
    table = cured([*ROWS, weak, refused])
    assert "| backdoored, took | 11 | 10 | 0 | 1 | 1.0, 1.0, 1.0 | 30.0, 30.0, 90.0 |" in table
    assert "| d | a | x | 12 | 11 |" in by_attack([*ROWS, weak, refused])
    assert "0.1 |" not in worst([*ROWS, weak, refused])
    assert worst([*ROWS, refused]).count("\n") == 11


def test_roc_of_what_is_told_apart_and_of_what_is_not() -> None:
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert auc([1.0, 1.0], [1.0, 1.0]) == 0.5
    assert auc([0.0], [0.0, 1.0]) == 0.25
    assert found_at([5.0, 15.0, 19.5, 25.0], [float(n) for n in range(20)]) == 0.5
    value, low, high = bounded(auc, [0.5, 1.5, 2.5, 3.5] * 5, [0.0, 1.0, 2.0, 3.0] * 5)
    assert low < value < high
    assert "| d, a | 10 / 10 | battery before | 1.000 [1.000, 1.000] | 100.0%" in evidence(ROWS)
    assert evidence(ROWS[:12]).count("\n") == 1  # too few clean ones


def test_dispatch_counts_jobs_that_end_at_once(tmp_path: Path) -> None:
    found = fleet.dispatch(tmp_path / "dispatch", 3, 1)
    assert found["outcomes"] == {"invalid": 3}
    assert 0 < found["nothing_to_do_s"] < found["wall_s"]
    assert list(tmp_path.iterdir()) == []
