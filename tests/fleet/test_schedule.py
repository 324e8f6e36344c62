"""Which job goes to which worker, and what becomes of jobs whose worker ends."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import InputError
from seamfast.fleet.jobs import Job, Jobs
from seamfast.fleet.schedule import AHEAD, ATTEMPTS, MOST_LOST, Schedule, WorkersLost, check, do_all, group_of
from seamfast.fleet.store import Store, as_row

Answer = dict[str, Any]


class Scripted:
    """Workers that answer at once, as a function says; each keeps its order."""

    def __init__(self, names: list[str], answer: Callable[[str, dict[str, Any]], Answer]) -> None:
        self._names, self._answer = names, answer
        self._waiting: dict[str, deque[tuple[int, dict[str, Any]]]] = {name: deque() for name in names}
        self.most_waiting = 0
        self.given: list[tuple[str, str]] = []

    def names(self) -> list[str]:
        return self._names

    def submit(self, worker: str, number: int, task: dict[str, Any]) -> None:
        self._waiting[worker].append((number, task))
        self.given.append((worker, task.get("id", "check")))
        self.most_waiting = max(self.most_waiting, len(self._waiting[worker]))

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        for worker, tasks in self._waiting.items():
            if tasks:
                number, task = tasks.popleft()
                return [(worker, number, self._answer(worker, task))]
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Six jobs, of two architectures by turns."""
    for number in range(6):
        model = tmp_path / "models" / f"m{number}"
        model.mkdir(parents=True)
        (model / "model.json").write_text(json.dumps({"architecture": "ab"[number % 2]}))
    return Jobs(tmp_path / "models", {"data": "digits", "seed": 0})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "out", {"seed": 0}, (0, 1))) as opened:
        yield opened


def done(_: str, task: dict[str, Any]) -> Answer:
    return {"row": as_row({"id": task["id"], "outcome": "accepted", "seconds": 1.0, "attempts": task["attempt"]})}


def all_done(jobs: Jobs, store: Store, workers: Scripted) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    schedule = Schedule([(number, group_of(job)) for number, job in enumerate(jobs)])
    do_all(
        jobs,
        schedule,
        workers,
        store,
        lambda job, attempt: {"id": job.id, "attempt": attempt},
        lambda row: rows.update({row["id"]: row}),
    )
    return rows


def test_like_goes_to_like_and_few_wait(jobs: Jobs, store: Store) -> None:
    workers = Scripted(["x", "y"], done)
    assert len(all_done(jobs, store, workers)) == 6
    kinds = {worker: [int(job[1]) % 2 for given, job in workers.given if given == worker] for worker in ("x", "y")}
    assert kinds["x"][:2] == [0, 0]
    assert kinds["y"][:2] == [1, 1]
    assert workers.most_waiting == AHEAD


def test_a_job_that_crashes_is_tried_three_times_after_the_others(jobs: Jobs, store: Store) -> None:
    def answer(worker: str, task: dict[str, Any]) -> Answer:
        if task["id"] == "m0":
            return {"ended": f"crash {task['attempt']}", "errors": "the end of stderr"}
        return done(worker, task)

    workers = Scripted(["x"], answer)
    rows = all_done(jobs, store, workers)
    assert [job for _, job in workers.given].count("m0") == ATTEMPTS
    assert [job for _, job in workers.given][-1] == "m0"
    assert rows["m0"]["outcome"] == "quarantined"
    assert rows["m0"]["reason"] == "crash 3"
    assert {row["outcome"] for name, row in rows.items() if name != "m0"} == {"accepted"}
    document = json.loads((store.folder / "quarantine" / "m0" / "job.json").read_text())
    assert document["reasons"][0] == "crash 1\nthe end of stderr"


def test_a_job_that_recovers_is_no_failure(jobs: Jobs, store: Store) -> None:
    def answer(worker: str, task: dict[str, Any]) -> Answer:
        return {"ended": "crash", "errors": ""} if task["attempt"] < ATTEMPTS else done(worker, task)

    rows = all_done(jobs, store, Scripted(["x", "y"], answer))
    assert {(row["outcome"], row["attempts"]) for row in rows.values()} == {("accepted", ATTEMPTS)}


def test_a_lost_worker_is_not_the_jobs_fault(jobs: Jobs, store: Store) -> None:
    left = {"m1": MOST_LOST - 1, "m2": MOST_LOST}

    def answer(worker: str, task: dict[str, Any]) -> Answer:
        if left.get(task["id"], 0):
            left[task["id"]] -= 1
            return {"lost": "killed"}
        return done(worker, task)

    rows = all_done(jobs, store, Scripted(["x", "y"], answer))
    assert (rows["m1"]["outcome"], rows["m1"]["attempts"]) == ("accepted", 1)
    assert rows["m2"]["outcome"] == "quarantined"
    assert rows["m2"]["reason"] == "its worker was lost 10 times: killed"


def test_workers_that_only_end_end_the_fleet(jobs: Jobs, store: Store) -> None:
    with pytest.raises(WorkersLost, match="workers were lost 11 times without a job done: no memory"):
        all_done(jobs, store, Scripted(["x"], lambda worker, task: {"lost": "no memory"}))
    with pytest.raises(WorkersLost, match="workers cannot be started: no memory"):
        check(Scripted(["x"], lambda worker, task: {"lost": "no memory"}), {})


def test_settings_are_checked_by_the_first_worker_that_answers() -> None:
    answers = iter([{"lost": "killed"}, {"error": None}])
    check(Scripted(["x"], lambda worker, task: next(answers)), {"seed": 0})
    with pytest.raises(InputError, match="ConfigError: method is 'x'"):
        check(Scripted(["x"], lambda worker, task: {"error": "ConfigError: method is 'x'"}), {})


def test_an_answer_to_the_check_that_comes_late_is_passed_over(jobs: Jobs, store: Store) -> None:
    workers = Scripted(["x", "y"], lambda worker, task: {"error": None} if "check" in task else done(worker, task))
    check(workers, {"seed": 0})
    assert len(all_done(jobs, store, workers)) == 6


def test_groups_of_hostile_folders(tmp_path: Path) -> None:
    def group(name: str) -> str:
        return group_of(Job(name, {"model": str(tmp_path / name)}))

    for name in ("pipe", "folder", "huge", "config"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "model.json")
    (tmp_path / "folder" / "model.json").mkdir()
    (tmp_path / "huge" / "model.json").write_bytes(b"\xff" * 100_000)
    (tmp_path / "config" / "config.json").write_text('{"model_type": "bert"}')
    assert group("pipe") == group("folder") == group("missing") == ""
    assert 0 < len(group("huge")) <= 4096
    assert group("config") == '{"model_type": "bert"}'
