"""What the series of kills counts in a fleet's folder, and what stands in for a job in the growth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benches import fleet_growth, fleet_kills
from seamfast.fleet.store import JOBS, STAGING, Store, as_row, publish, rows, write_job

IDS = ("a", "b")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Of a fleet whose two jobs are done."""
    opened = Store(tmp_path / "out", {"seed": 0}, (0, 1))
    for name in IDS:
        staged = opened.folder / STAGING / name
        staged.mkdir()
        (staged / "model.safetensors").write_bytes(name.encode())
        row = as_row({"id": name, "outcome": "accepted", "accuracy_after": 0.5, "seconds": 1.0, "attempts": 1})
        write_job(staged, name, {}, None, row)
        publish(staged, opened.folder / JOBS / name)
        opened.record("done", id=name)
    yield opened
    opened.close()


NOTHING = {"n_done_twice": 0, "n_quarantined": 0, "n_left_in_staging": 0, "n_lost": 0}


def test_an_undisturbed_fleet_has_nothing_to_count(store: Store) -> None:
    wanted = fleet_kills.results(store.folder)
    assert fleet_kills.what_is_left(store.folder, wanted) == {"n_results": 2, "n_equal": 2, **NOTHING}


def test_every_disturbance_is_counted(store: Store) -> None:
    out, wanted = store.folder, fleet_kills.results(store.folder)
    (out / JOBS / "a" / "model.safetensors").write_bytes(b"another")
    assert fleet_kills.what_is_left(out, wanted)["n_equal"] == 1
    document = json.loads((out / JOBS / "b" / "job.json").read_text())
    document["row"]["seconds"] = 9.0  # which varies
    (out / JOBS / "b" / "job.json").write_text(json.dumps(document))
    assert fleet_kills.what_is_left(out, wanted)["n_equal"] == 1
    document["row"]["accuracy_after"] = 0.6
    (out / JOBS / "b" / "job.json").write_text(json.dumps(document))
    assert fleet_kills.what_is_left(out, wanted)["n_equal"] == 0
    store.record("done", id="a")
    store.record("lost", id="b", reason="killed")
    (out / STAGING / "worker-0-abc").mkdir()
    (out / "quarantine" / "c").mkdir()
    found = fleet_kills.what_is_left(out, wanted)
    assert {name: found[name] for name in NOTHING} == dict.fromkeys(NOTHING, 1)


def test_what_sleeps_leaves_what_a_job_does(store: Store) -> None:
    sleeper = fleet_growth.Sleeper(json.dumps({"out": str(store.folder), "seconds": 0.0}), "7")
    answer = json.loads(sleeper.run(json.dumps({"id": "c", "attempt": 1, "digests": {"version": "1"}})))
    assert answer["row"]["outcome"] == "accepted"
    assert [row["id"] for row in rows(store.folder)] == ["a", "b", "c"]


def test_slots_divide_the_time_until_the_driver_is_full() -> None:
    assert fleet_growth.predicted(100, 10, 2.0, 0.001) == 20.0
    assert fleet_growth.predicted(100, 1000, 2.0, 0.5) == 50.0
