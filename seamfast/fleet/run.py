"""``run``: all jobs of a fleet, from their list to its summary."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seamfast.errors import InputError
from seamfast.fleet.jobs import Job, Jobs, absolute, check_settings, check_shard
from seamfast.fleet.local import LocalWorkers, n_default_workers, share_of_memory
from seamfast.fleet.options import DEFAULT_MAX_TIME_S
from seamfast.fleet.ray_workers import RayWorkers
from seamfast.fleet.schedule import Schedule, Workers, WorkersLost, check, do_all, group_of
from seamfast.fleet.store import Store, n_listed, n_rows, rows
from seamfast.fleet.summary import write_summary
from seamfast.fleet.summary.figures import GOOD
from seamfast.isolation.folders import lies_in
from seamfast.options import EXIT_INCOMPLETE, EXIT_NOT_ACCEPTED, EXIT_OK, EXIT_REFUSED
from seamfast.untrusted import shown

_BAD = ("fail", "refused")
_FAILED = ("quarantined", "error", "invalid")


def exit_code_of(outcomes: Mapping[str, int]) -> int:
    """The exit code of a fleet with so many jobs of each outcome.

    0: every job accepted or passed. 2: some were given up, had a defect or were not reached, and may be run again. Else
    1: some failed, or their result was refused. Else 3: some undecided, or with input that cannot be used.
    """
    found = {name for name, n in outcomes.items() if n}
    if found & {"quarantined", "waiting", "error"}:
        return EXIT_INCOMPLETE
    if found & set(_BAD):
        return EXIT_NOT_ACCEPTED
    return EXIT_OK if found <= set(GOOD) else EXIT_REFUSED


@dataclass(frozen=True)
class FleetResult:
    """What became of a fleet.

    Attributes:
        folder: with the reports and the summary.
        n_jobs: of this call.
        outcomes: number of jobs by outcome; ``"waiting"`` of those that were not reached.
        n_done_before: jobs that an earlier call had done, and that have not changed.
        seconds: of this call.
        stopped: why not all was done; ``None`` where it was.
    """

    folder: Path
    n_jobs: int
    outcomes: dict[str, int]
    n_done_before: int
    seconds: float
    stopped: str | None = None

    @property
    def exit_code(self) -> int:
        """``exit_code_of(outcomes)``; 2 where something stopped the call."""
        return EXIT_INCOMPLETE if self.stopped is not None else exit_code_of(self.outcomes)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all jobs in the folder, by id."""
        return rows(self.folder)


def run(
    jobs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_job: float = 0.0,
    shard: str | None = None,
    max_time_s: float = DEFAULT_MAX_TIME_S,
    max_memory: int | None = None,
    retry_quarantined: bool = False,
    prometheus: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> FleetResult:
    """``for job in jobs: sanitize(job)`` or ``gate(job)``, in processes of their own, many at a time, each done once.

    A job runs in a process of its own: limited, confined, with one thread, in float32. Its result is a folder
    ``out/jobs/ID`` that appears whole. It depends on the model, the data, the settings and the seed, and on nothing
    else: not on the worker, on the order or on how many there are. (A ``time_budget_s`` or ``precision="auto"`` give
    that up.) A second call does what is missing, or whose model, data, settings or version of seamfast changed.

    A job whose process crashes, is killed, lacks memory or takes longer than ``max_time_s`` is tried three times, and
    then given up: ``out/quarantine/ID`` says why. What a job finds wrong with its model or its data is a result.

    Args:
        jobs: a folder, each of whose folders is a model; or a file of JSON objects, one a line, see ``docs/fleet.md``.
        out: the folder of the fleet.
        workers: jobs at a time; ``None``: one for each core, or for each share of a GPU.
        ray: ``None``: processes of this machine. ``"local"``, ``"auto"`` or ``"HOST:PORT"``: a Ray cluster
            (``seamfast[fleet]``).
        gpus_per_job: share of a GPU for each job, in [0, 1], and of its memory; 0: the CPU.
        shard: ``"k/n"``: only the jobs of the ``k``-th of ``n`` calls, from 0, by a hash of their ids.
        max_time_s: seconds for an attempt at a job, by the clock.
        max_memory: bytes for a job; ``None``: a worker's share of nine tenths of the machine's.
        retry_quarantined: try again what an earlier call gave up, and what met a defect.
        prometheus: write ``fleet.prom`` too.
        progress: show a progress bar on stderr; ``None``: if that is a terminal.
        settings: of all jobs that do not have their own: ``data``, ``policy``, ``method``, ``seed`` and the others of
            ``docs/fleet.md``.

    Returns:
        FleetResult; Ctrl-C and lost workers end in one too, with ``stopped``.

    Raises:
        InputError, ConfigError, PolicyError: the list or the settings cannot be used; nothing was run.
        OSError: ``out`` cannot be written to.

    Example:
        >>> import seamfast
        >>> seamfast.fleet.run("models", "cured", data="digits", shard="2/2")
        Traceback (most recent call last):
        seamfast.errors.InputError: shard is '2/2'; expected k/n with k from 0 to n - 1
    """
    began = time.monotonic()
    if sys.platform != "linux":
        raise InputError(f"the platform is {sys.platform!r}; expected 'linux', whose processes a fleet confines")
    part, share = check_shard(shard), float(gpus_per_job)
    if not 0 <= share <= 1:
        raise InputError(f"gpus_per_job is {gpus_per_job!r}; expected a number in [0, 1]")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise InputError(f"workers is {workers!r}; expected an integer of at least 1, or None")
    if not 0 < max_time_s < float("inf"):
        raise InputError(f"max_time_s is {max_time_s!r}; expected a number of seconds above 0")
    if max_memory is not None and (type(max_memory) is not int or max_memory < 1):
        raise InputError(f"max_memory is {max_memory!r}; expected an integer of at least 1, or None")
    if os.path.isdir(jobs) and lies_in(out, jobs):
        raise InputError(f"out is {shown(out)!r}, which lies in the folder of the models; expected a folder elsewhere")
    check_settings(settings, "the fleet")
    given = absolute({"seed": 0, **settings}, Path.cwd())
    listed = Jobs(jobs, given, part)
    folder = Path(os.path.abspath(out))
    outcomes: Counter[str] = Counter()
    stopped = None
    with closing(Store(folder, given, part)) as store:
        waiting = []
        for number, job in enumerate(listed):
            row = store.is_done(job, retry_quarantined=retry_quarantined)
            if row is None:
                waiting.append((number, sys.intern(group_of(job))))  # one text for all of a group
            else:
                outcomes[row["outcome"]] += 1
        n_before = len(listed) - len(waiting)
        store.record("began", n_jobs=len(listed), n_done=n_before, workers=workers, ray=ray)
        n_workers = workers or (None if ray else min(n_default_workers(share), max(1, len(waiting))))

        def as_task(job: Job, attempt: int) -> dict[str, Any]:
            return {
                "id": job.id,
                "kind": job.kind,
                "settings": dict(job.settings),
                "attempt": attempt,
                "digests": store.digests(job),
                "time_s": max_time_s,
                "memory_bytes": max_memory,
                "cuda": share > 0,
                "memory_share": share or None,
                "lives_on": share > 0 and job.kind == "sanitize",
            }

        key = hashlib.sha256(str(folder).encode()).hexdigest()
        how: dict[str, Any] = {"out": str(folder), "key": key, "environment": {}, "memory_bytes": None}
        if n_workers is not None and ray is None:
            how["memory_bytes"] = share_of_memory(n_workers)
        with _bar(len(listed), n_before, progress) as bar:

            def on_row(row: dict[str, Any]) -> None:
                outcomes[row["outcome"]] += 1
                bar.set_postfix({"failed": sum(outcomes[name] for name in _FAILED)}, refresh=False)
                bar.update()

            try:
                if waiting:
                    schedule = Schedule(waiting)
                    with _workers(how, ray, n_workers, share) as pool:
                        check(pool, given)
                        do_all(listed, schedule, pool, store, as_task, on_row)
            except InputError:
                store.take_back()
                raise
            except WorkersLost as error:
                stopped = str(error)
            except KeyboardInterrupt:
                stopped = "interrupted"
        outcomes["waiting"] = len(listed) - sum(outcomes.values())
        seconds = time.monotonic() - began
        store.record("finished", outcomes=dict(outcomes), seconds=round(seconds, 3), stopped=stopped)
        left = outcomes["waiting"] if part[1] == 1 else max(0, n_listed(folder) - n_rows(folder))
        write_summary(folder, rows(folder), seconds=seconds, workers=n_workers, n_waiting=left, prometheus=prometheus)
    return FleetResult(folder, len(listed), dict(+outcomes), n_before, seconds, stopped)


@contextmanager
def _workers(how: dict[str, Any], ray: str | None, n_workers: int | None, gpus_per_job: float) -> Iterator[Workers]:
    pool: Workers
    if ray is None:
        assert n_workers is not None
        pool = LocalWorkers(how, n_workers, gpus_per_job)
    else:
        pool = RayWorkers(ray, how, n_workers, gpus_per_job)
    with closing(pool):
        yield pool


def _bar(n_jobs: int, n_done: int, progress: bool | None) -> Any:
    return tqdm(
        total=n_jobs,
        initial=n_done,
        desc="fleet",
        unit="job",
        smoothing=0.05,
        disable=None if progress is None else not progress,
    )
