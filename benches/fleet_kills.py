"""Ten processes of a fleet killed at random moments, with ``kill -9``: what is left, and is it what it would have been?

    python benches/fleet_kills.py [--where local ray] [--kills 10] [--seed 0]

Forty jobs: four small models of digits with a backdoor, ten seeds each, two at a time. The first run is undisturbed,
on processes of this machine. Then, for each place, a fleet is run and, again and again, one of its processes is killed
within three times the seconds of a job after its workers are at work: the kind by turns, in an order drawn once, the
process and the moment at random. A driver that ended is started again by the same command, as an operator or a
scheduler would. On Ray there are two raylets on this machine; one that was killed is replaced, and the whole cluster is
started anew where its head node was.

After the last kill the fleet runs to its end. Checked, and written to ``results/fleet_kills.jsonl``: that every job has
one result, that no job was done twice, that rows and models equal the undisturbed ones bit by bit, that nothing is
half-written, and that no process is left. A driver that does not end within three minutes of a kill is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches.fleet import stamp  # noqa: E402
from benches.rows import append_row  # noqa: E402
from seamfast.fleet.store import JOBS, STAGING, rows  # noqa: E402

RESULTS = ROOT / "benches" / "results" / "fleet_kills.jsonl"
N_MODELS, N_SEEDS = 4, 10
VARIES = ("seconds", "peak_memory_bytes", "attempts")
KINDS = {
    "local": ("driver", "worker", "job"),
    "ray": ("driver", "connection", "actor", "worker", "job", "raylet", "head node"),
}
DONE = (0, 1, 3)
"""Exit codes of a fleet that did all: models may be refused."""
_END_S = 180.0  # for a driver to end
_GONE_S = 30.0  # for processes whose driver was killed
_OBJECT_STORE = {"object_store_memory": 100 << 20}
Row = dict[str, Any]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="fleet-kills") as folder:
        place = Path(folder)
        jobs = listed(place)
        print("undisturbed", flush=True)
        undisturbed = Fleet(jobs, place / "undisturbed", None)
        undisturbed.start()
        assert undisturbed.ended(_END_S * 10) in DONE
        wanted = results(place / "undisturbed")
        assert len(wanted) == N_MODELS * N_SEEDS
        job_s = statistics.median(row["seconds"] for row in rows(place / "undisturbed"))
        for where in arguments.where:
            row = {"what": "kills", "where": where, "seed": arguments.seed}
            row |= series(where, jobs, place / where, arguments.kills, arguments.seed, wanted, job_s)
            append_row(RESULTS, row | stamp())
            print(json.dumps(row), flush=True)
    return 0


def listed(place: Path) -> Path:
    """The list of the jobs, and their models."""
    jobs = place / "jobs.jsonl"
    lines = []
    for number in range(N_MODELS):
        model = place / "models" / f"m{number}"
        command = [sys.executable, "-m", "seamfast", "plant", "--data", "digits", "--seed", str(number)]
        subprocess.run([*command, "--out", str(model)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        given = {"model": str(model), "data": "digits", "fraction": 0.1, "holdout_split": "test"}
        given["triggers"] = str(model / "triggers.npz")
        lines += [{**given, "id": f"m{number}-{seed}", "seed": seed} for seed in range(N_SEEDS)]
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return jobs


def series(where: str, jobs: Path, out: Path, n_kills: int, seed: int, wanted: Row, job_s: float) -> Row:
    """One fleet, of jobs of so many seconds, killed again and again, and what it left."""
    draw = random.Random(seed)
    kinds = list(KINDS[where])
    draw.shuffle(kinds)
    kills: list[Row] = []
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(contextlib.closing(Cluster())) if where == "ray" else None
        fleet = Fleet(jobs, out, cluster)
        for number in range(n_kills):
            awaited(lambda: fleet.start() or processes(out)["job"], "a job")
            time.sleep(delay := draw.uniform(0.0, 3 * job_s))
            kind = kinds[number % len(kinds)]
            n_before = n_results(out)
            if kind in ("raylet", "head node"):
                assert cluster is not None
                cluster.kill(kind)
            else:
                victims = awaited(lambda: [fleet.pid] if kind == "driver" else processes(out)[kind], kind)  # noqa: B023
                os.kill(draw.choice(victims), signal.SIGKILL)
            if kind in ("driver", "connection", "head node"):
                fleet.ended(_END_S)
            kills.append({"killed": kind, "after_s": round(delay, 2), "n_done": n_before})
            print(kills[-1], flush=True)
            if kind == "driver":
                awaited(lambda: not any(processes(out).values()), "the end of its workers", _GONE_S)
            if cluster is not None:
                cluster.mend()
        fleet.start()
        assert fleet.ended(_END_S * 10) in DONE, "the last call did not do all"
        awaited(lambda: not any(processes(out).values()), "the end of all processes", _GONE_S)
    return {"n_jobs": len(wanted), "kills": kills, "exit_codes": fleet.codes, **what_is_left(out, wanted)}


def what_is_left(out: Path, wanted: Row) -> Row:
    """Counts, all of which should be ``len(wanted)`` or 0."""
    found = results(out)
    done = Counter(event["id"] for event in events(out) if event["event"] == "done")
    staged = [entry.name for entry in (out / STAGING).iterdir() if not entry.name.startswith("lock")]
    return {
        "n_results": len(found),
        "n_equal": sum(found.get(name) == value for name, value in wanted.items()),
        "n_done_twice": sum(n > 1 for n in done.values()),
        "n_quarantined": len(list((out / "quarantine").glob("*"))),
        "n_left_in_staging": len(staged),
        "n_lost": sum(event["event"] == "lost" for event in events(out)),
    }


class Fleet:
    """``seamfast fleet`` as a command, started again where it ended."""

    def __init__(self, jobs: Path, out: Path, cluster: Cluster | None) -> None:
        self._command = [sys.executable, "-m", "seamfast", "fleet", str(jobs), "--out", str(out), "--workers", "2"]
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self.out = out
        self.codes: list[int] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Unless it runs."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self.codes.append(code)
        if self._process is None or code is not None:
            where = [] if self._cluster is None else ["--ray", self._cluster.address]
            with self.out.with_suffix(".log").open("ab") as log:
                self._process = subprocess.Popen([*self._command, *where], cwd=ROOT, stdout=log, stderr=log)

    def ended(self, seconds: float) -> int:
        """The exit code, below 0 by a signal, of a driver that ends in time."""
        assert self._process is not None
        return self._process.wait(seconds)


class Cluster:
    """Two raylets on this machine, with a token of its own."""

    def __init__(self) -> None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster as TwoNodes

        head = {"num_cpus": 1, "include_dashboard": False, **_OBJECT_STORE}
        self._nodes = TwoNodes(initialize_head=True, head_node_args=head)
        self._other = self._nodes.add_node(num_cpus=1, **_OBJECT_STORE)
        self._nodes.wait_for_nodes()
        self._killed: str | None = None
        self.address = str(self._nodes.address)

    def kill(self, kind: str) -> None:
        node = self._nodes.head_node if kind == "head node" else self._other
        if kind == "head node":
            os.kill(node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._killed = kind

    def mend(self) -> None:
        """As it was before the last kill."""
        if self._killed == "head node":
            self._nodes.shutdown()
            self._start()
        elif self._killed == "raylet":
            self._nodes.remove_node(self._other, allow_graceful=False)
            self._other = self._nodes.add_node(num_cpus=1, **_OBJECT_STORE)
            self._killed = None

    def close(self) -> None:
        self._nodes.shutdown()


# ---- What a fleet left. ----


def results(out: Path) -> Row:
    """By id: all of a job's row that does not depend on when and where it ran, and the digest of its model."""
    found = {}
    for row in rows(out):
        weights = out / JOBS / row["id"] / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        found[row["id"]] = [{name: value for name, value in row.items() if name not in VARIES}, digest]
    return found


def n_results(out: Path) -> int:
    return len(list((out / JOBS).glob("*/job.json")))


def events(out: Path) -> list[Row]:
    found = []
    for line in (out / "manifest.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):  # a kill can tear one
            found.append(json.loads(line))
    return found


def processes(out: Path) -> dict[str, list[int]]:
    """The numbers of the fleet's processes but for the driver, by kind."""
    kinds: dict[str, list[int]] = {"connection": [], "actor": [], "worker": [], "job": []}
    parents = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            command = Path("/proc", entry, "cmdline").read_bytes()
            state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            if command.startswith(b"ray::SlotActor"):
                kinds["actor"].append(int(entry))
            elif str(out).encode() in command and b"seamfast.fleet.ray_actors" in command:
                kinds["connection"].append(int(entry))
            elif str(out).encode() in command and b"seamfast.fleet.nursery" in command:
                parents[int(entry)] = int(parent)
    for pid, parent in parents.items():
        kinds["job" if parent in parents else "worker"].append(pid)
    return kinds


def awaited(found: Callable[[], Any], what: str, seconds: float = _END_S) -> Any:
    """The first value of ``found()`` that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")


if __name__ == "__main__":
    sys.exit(main())
