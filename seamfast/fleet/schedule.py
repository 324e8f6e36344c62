"""Which job goes to which worker, and what becomes of one whose worker ended: retried, then given up."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from seamfast.errors import InputError, SeamfastError
from seamfast.fleet.jobs import Job, Jobs
from seamfast.fleet.slot import START_S, Answer, Task
from seamfast.fleet.store import Store
from seamfast.untrusted import open_regular

ATTEMPTS = 3
"""How often a job is tried that ends in a crash, a lack of memory or the time limit."""
MOST_LOST = 10
"""How often a job is given to another worker because its worker was lost, which is hardly the job's fault."""
AHEAD = 2
"""Jobs that each worker has at a time, one of them waiting."""
_TICK_S = 0.5
_CHECK = -1  # in place of a job's number
_DESCRIPTIONS = ("model.json", "config.json")


class Workers(Protocol):
    """What runs tasks: processes of this machine, or actors of Ray."""

    def names(self) -> list[str]:
        """The workers that take tasks now."""

    def submit(self, worker: str, number: int, task: Task) -> None:
        """Give ``worker`` a task, to be done after those that it has."""

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        """The answers that are there within the time: who gave it, and to which task."""

    def close(self) -> None:
        """End all workers, whatever they are at."""


class WorkersLost(SeamfastError, RuntimeError):
    """Workers end again and again without an answer."""


class Schedule:
    """The jobs that wait, in groups of like architecture, by number; memory for a number each.

    Args:
        waiting: the numbers of the jobs to do, and the group of each.
    """

    def __init__(self, waiting: Iterable[tuple[int, str]]) -> None:
        groups: dict[str, array[int]] = {}
        for number, group in waiting:
            groups.setdefault(group, array("q")).append(number)
        self._groups = {name: deque(numbers) for name, numbers in groups.items()}
        self._of_worker: dict[str, str] = {}
        self._again: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._again) + sum(map(len, self._groups.values()))

    def next(self, worker: str) -> int | None:
        """A job for ``worker``: like its last one if there is any, else of the largest group that no other is at."""
        group = self._of_worker.get(worker)
        if group is None or not self._groups.get(group):
            taken = set(self._of_worker.values())
            left = [name for name, numbers in self._groups.items() if numbers]
            if not left:
                return self._again.popleft() if self._again else None
            group = max(left, key=lambda name: (name not in taken, len(self._groups[name])))
            self._of_worker[worker] = group
        return self._groups[group].popleft()

    def put_back(self, number: int) -> None:
        """A job to be tried again, after all others."""
        self._again.append(number)


def group_of(job: Job) -> str:
    """What models of one architecture have in common: the start of their description; its place says nothing."""
    for name in _DESCRIPTIONS:
        path = Path(job.settings["model"], name)
        if os.path.isfile(path):
            try:
                with open_regular(path, "the description of a model") as file:
                    return file.read(4096).decode("utf-8", "replace")
            except (SeamfastError, OSError):
                continue
    return ""


def check(workers: Workers, settings: Mapping[str, Any]) -> None:
    """Start all workers, and let one look at the fleet's settings, so that a mistake in them is one error, not many.

    Raises:
        InputError: ``ConfigError: rate is 'x'; expected a number``, as the worker has it.
        WorkersLost: workers end again and again as they start.
    """
    asked: set[str] = set()
    n_lost = 0
    while True:
        for worker in workers.names():
            if worker not in asked:
                asked.add(worker)
                workers.submit(worker, _CHECK, {"check": dict(settings), "time_s": START_S})
        for worker, _, answer in workers.wait(_TICK_S):
            if "lost" not in answer:
                if answer["error"] is not None:
                    raise InputError(answer["error"])
                return
            n_lost += 1
            asked.discard(worker)
            if n_lost >= MOST_LOST:
                raise WorkersLost(f"workers cannot be started: {answer['lost']}")


def do_all(
    jobs: Jobs,
    schedule: Schedule,
    workers: Workers,
    store: Store,
    as_task: Callable[[Job, int], Task],
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    """Do all jobs of ``schedule``; each ends in a row, in the order in which they end.

    Args:
        jobs, schedule: all, and those to do.
        workers: that do them.
        store: the fleet's folder.
        as_task: of a job and the number of its attempt, from 1.
        on_row: called with each row.

    Raises:
        WorkersLost: workers end again and again without having done a job.
    """
    at_work: dict[str, deque[int]] = {}
    reasons: dict[int, list[str]] = {}
    n_lost: dict[int, int] = {}
    lost_in_a_row = 0
    while len(schedule) or any(at_work.values()):
        for worker in workers.names():
            mine = at_work.setdefault(worker, deque())
            while len(mine) < AHEAD and (number := schedule.next(worker)) is not None:
                workers.submit(worker, number, as_task(jobs[number], len(reasons.get(number, ())) + 1))
                mine.append(number)
        for worker, number, answer in workers.wait(_TICK_S):
            if number == _CHECK:
                continue
            at_work[worker].remove(number)
            job = jobs[number]
            told = {"id": job.id, "worker": answer.get("worker", worker)}
            if "row" in answer:
                lost_in_a_row = 0
                reasons.pop(number, None)
                n_lost.pop(number, None)
                store.forget_quarantine(job)
                row = answer["row"]
                store.record("done", **told, outcome=row["outcome"], seconds=row["seconds"], attempt=row["attempts"])
                on_row(row)
                continue
            if "lost" in answer:
                lost_in_a_row += 1
                n_lost[number] = n_lost.get(number, 0) + 1
                store.record("lost", **told, reason=answer["lost"])
                if lost_in_a_row > MOST_LOST * max(1, len(workers.names())):
                    raise WorkersLost(f"workers were lost {lost_in_a_row} times without a job done: {answer['lost']}")
                if n_lost[number] < MOST_LOST:
                    schedule.put_back(number)
                    continue
                reasons.setdefault(number, []).append(f"its worker was lost {MOST_LOST} times: {answer['lost']}")
            else:
                lost_in_a_row = 0
                failed = reasons.setdefault(number, [])
                failed.append("\n".join(part for part in (answer["ended"], answer["errors"]) if part))
                store.record("ended", **told, reason=answer["ended"], attempt=len(failed))
                if len(failed) < ATTEMPTS:
                    schedule.put_back(number)
                    continue
            given_up = reasons.pop(number)
            row = store.quarantine(job, [reason.partition("\n")[0] for reason in given_up], given_up)
            store.record("quarantined", **told, reason=row["reason"])
            on_row(row)
