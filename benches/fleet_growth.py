"""How a fleet on Ray grows with its workers: a formula, fitted to one worker and two, against raylets on one machine.

    python benches/fleet_growth.py [--seconds-per-job 2] [--raylets 1 1 2 4 8] [--slots 1 2 8 16 64]

The cores of this machine would decide a fleet of real jobs. So a job here sleeps for as long as a real one works, and
leaves what a real one does: a folder, written and renamed on the fleet's file system. All else is the fleet's own: its
list, its schedule, its manifest, and Ray, on as many raylets as told, each with its share of the slots. Actors are at
work before the clock runs, since nodes of their own would start them side by side.

    seconds = max(jobs * (job + beside) / slots, jobs * driver)

``beside`` is what passes between two jobs of a slot, fitted to one slot and two; ``driver`` is the processor time of
the driver for a job, of a run of jobs that take no time. Rows go to ``results/fleet_growth.jsonl``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from seamfast.fleet.jobs import Job, Jobs  # noqa: E402
from seamfast.fleet.ray_actors import RayActors, connected  # noqa: E402
from seamfast.fleet.schedule import Schedule, do_all, group_of  # noqa: E402
from seamfast.fleet.store import JOBS, STAGING, Store, as_row, publish, write_job  # noqa: E402

RESULTS = ROOT / "benches" / "results" / "fleet_growth.jsonl"
_OBJECT_STORE = {"object_store_memory": 80 << 20}
Row = dict[str, Any]


class Sleeper:
    """In place of a slot: sleeps, and leaves what a job does."""

    def __init__(self, how: str, name: str) -> None:
        given = json.loads(how)
        self._name, self._out, self._seconds = name, Path(given["out"]), given["seconds"]

    def ready(self) -> bool:
        return True

    def run(self, task: str) -> str:
        given = json.loads(task)
        time.sleep(self._seconds)
        place = self._out / STAGING / f"{self._name}-{given['id']}"
        place.mkdir()
        made = {"id": given["id"], "outcome": "accepted", "seconds": self._seconds, "attempts": given["attempt"]}
        row = as_row(made)
        write_job(place, given["id"], {**given["digests"], "model": "0"}, None, row)
        publish(place, self._out / JOBS / given["id"])
        return json.dumps({"row": row, "worker": self._name})

    def close(self) -> None:
        pass


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds-per-job", type=float, default=2.0)
    parser.add_argument("--raylets", type=int, nargs="+", default=[1, 1, 2, 4, 8])
    parser.add_argument(
        "--slots", type=int, nargs="+", default=[1, 2, 8, 16, 64], help="in all; the first two are fitted"
    )
    parser.add_argument("--jobs-per-slot", type=int, default=15)
    arguments = parser.parse_args(given)
    from benches.fleet import stamp  # here, since actors import this module, and need no torch
    from benches.rows import append_row

    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    beside: list[float] = []
    driver: float | None = None
    for raylets, slots in zip(arguments.raylets, arguments.slots, strict=True):
        n_jobs, job = slots * arguments.jobs_per_slot, arguments.seconds_per_job
        with simulated(raylets, slots) as ray:
            row = measured(ray, slots, n_jobs, job)
            at_once = measured(ray, slots, max(200, n_jobs), 0.0)
        if len(beside) < 2:
            beside.append(row["wall_s"] * slots / n_jobs - job)
            driver = at_once["driver_cpu_s"] / at_once["n_jobs"]
        else:
            assert driver is not None
            wanted = predicted(n_jobs, slots, job + statistics.mean(beside), driver)
            row |= {"predicted_s": round(wanted, 2), "off": round(row["wall_s"] / wanted - 1, 4)}
        row |= {"at_once_per_s": round(at_once["n_jobs"] / at_once["wall_s"], 1)}
        row |= {"at_once_driver_ms": round(1000 * at_once["driver_cpu_s"] / at_once["n_jobs"], 3)}
        row = {"what": "growth", "raylets": raylets, **row, **stamp()}
        append_row(RESULTS, row)
        print(json.dumps(row), flush=True)
    return 0


def predicted(n_jobs: int, slots: int, job_s: float, driver_s: float) -> float:
    """Seconds for jobs of ``job_s`` each, with what passes between two; ``driver_s`` of each is the driver's."""
    return max(n_jobs * job_s / slots, n_jobs * driver_s)


@contextlib.contextmanager
def simulated(raylets: int, slots: int) -> Any:
    """Ray, connected to so many raylets on this machine, with so many slots in all."""
    from ray.cluster_utils import Cluster

    shares = [slots // raylets + (number < slots % raylets) for number in range(raylets)]
    head = {"num_cpus": shares[0], "include_dashboard": False, **_OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for share in shares[1:]:
            cluster.add_node(num_cpus=share, **_OBJECT_STORE)
        cluster.wait_for_nodes()
        ray = connected(cluster.address, None)
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        cluster.shutdown()


def measured(ray: Any, slots: int, n_jobs: int, seconds: float) -> Row:
    """So many jobs that sleep, once all actors are there."""
    with tempfile.TemporaryDirectory(prefix="fleet-growth") as folder:
        for number in range(n_jobs):
            model = Path(folder, "models", f"m{number:06}")
            model.mkdir(parents=True)
            (model / "model.json").write_text("{}")
        out = Path(folder, "out")
        given: dict[str, Any] = {"seed": 0, "data": "digits"}
        jobs = Jobs(Path(folder, "models"), given, (0, 1))
        with contextlib.closing(Store(out, given, (0, 1))) as store:

            def as_task(job: Job, attempt: int) -> dict[str, Any]:
                return {"id": job.id, "settings": dict(job.settings), "attempt": attempt, "digests": store.digests(job)}

            schedule = Schedule((number, group_of(job)) for number, job in enumerate(jobs))
            how = {"out": str(out), "seconds": seconds}
            actors = RayActors(ray, how, slots, 0.0, print, actor=Sleeper)
            began = time.monotonic()
            while len(actors.names()) < slots:
                time.sleep(0.1)
            start_s = time.monotonic() - began
            found: list[Row] = []
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            do_all(jobs, schedule, actors, store, as_task, found.append)
            wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
            actors.close()
    assert len(found) == n_jobs
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "slots": slots,
        "n_jobs": n_jobs,
        "job_s": seconds,
        "start_s": round(start_s, 1),
        "wall_s": round(wall_s, 3),
        "driver_cpu_s": round(cpu, 3),
    }


if __name__ == "__main__":
    # So that actors find the class by the module's name, not in what was started as a script.
    from benches import fleet_growth

    sys.exit(fleet_growth.main())
