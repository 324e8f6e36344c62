"""What the isolation of ``seamfast gate`` costs, and what kills at random moments leave behind.

    python benches/isolation.py cost [--turns 7] [--out FILE]
    python benches/isolation.py kills [--n 50] [--seed 0]

``cost``: by turns, the command (which starts a process of its own) and the same run in one process, of a model of
100 MB (a net of linear layers, trained for some steps on digits). Wall clock of the whole command; memory as the sum,
over the processes of the command, of the greatest resident set of each, which counts what they share more than once.
Medians over turns, least and greatest beside them; ratios are taken within a turn.

``kills``: SIGKILL at a random moment of a run, for the process that the user started, the one that runs the gate, the
one that cleans up, or all of them. Afterwards, nothing may be half-written, nothing may run, and nothing may be left,
except where all were killed: what is left then must be gone after the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benches.rows import append_row, commit  # noqa: E402

SIDE = 4_950  # 24.5 million weights between two layers

NET = f"""
import torch
from torch import nn

def build():
    middle = nn.Linear({SIDE}, {SIDE})
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {SIDE}), nn.ReLU(), middle, nn.ReLU(), nn.Linear({SIDE}, 10))
"""
MAKE = """
import sys
sys.path.insert(0, "code")
import torch, seamfast, net
from safetensors.torch import save_file
torch.manual_seed(0)
model, data = net.build(), seamfast.load("digits")
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(60):
    at = torch.randint(0, len(data), (128,))
    loss = torch.nn.functional.cross_entropy(model(data.inputs[at].float() / 255), data.labels[at])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
save_file(model.state_dict(), "model/model.safetensors")
"""
POLICY = """
version = 1
name = "cost"
[sanitize]
method = "fine_tune"
[sanitize.settings]
max_steps = 20
[audit]
inversion = false
[[rule]]
id = "task"
metric = "after.clean_accuracy"
threshold = 0.5
greater_is_better = true
min_samples = 100
"""
IN_ONE_PROCESS = "import sys; from seamfast.cli import main; sys.exit(main())"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost")
    cost.add_argument("--turns", type=int, default=7)
    cost.add_argument("--out", type=Path, help="file of JSON lines that gets the row too")
    kills = commands.add_parser("kills")
    kills.add_argument("--n", type=int, default=50)
    kills.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("model", "code", "tmp"):
            (here / name).mkdir()
        (here / "gate.toml").write_text(POLICY)
        if arguments.command == "kills":
            return count_leftovers(here, arguments.n, random.Random(arguments.seed))
        row = cost_of_isolation(here, arguments.turns)
        print(json.dumps(row, indent=2))
        if arguments.out is not None:
            append_row(arguments.out, row)
    return 0


def environment(here: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(here / "tmp"), "PYTHONPATH": str(ROOT)}


# What it costs


def cost_of_isolation(here: Path, turns: int) -> dict[str, Any]:
    from seamfast.isolation.confine import available
    from seamfast.record import machine

    (here / "code" / "net.py").write_text(NET)
    subprocess.run([sys.executable, "-c", MAKE], cwd=here, env=environment(here), check=True)
    arguments = ["gate", "model", "--data", "digits", "--policy", "gate.toml", "--out", "out", "--device", "cpu"]
    arguments += ["--architecture", "net:build", "--architecture-path", "code"]
    kinds = {"isolated": ["-m", "seamfast"], "in one process": ["-c", IN_ONE_PROCESS]}
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in kinds}
    for turn in range(turns + 1):  # the first fills the caches
        for name in sorted(kinds, reverse=bool(turn % 2)):  # neither always goes first
            measured = measure([sys.executable, *kinds[name], *arguments], here)
            report = json.loads((here / "out" / "report.json").read_text())
            assert report["sanitize"]["verdict"]["accepted"] is not None
            assert report["isolation"]["isolated"] is (name == "isolated")
            shutil.rmtree(here / "out")
            if turn:
                found[name].append(measured)
    isolated, alone = found["isolated"], found["in one process"]
    return {
        "bench": "isolation",
        "model_bytes": (here / "model" / "model.safetensors").stat().st_size,
        "turns": turns,
        "isolated_s": spread([seconds for seconds, _ in isolated]),
        "in_one_process_s": spread([seconds for seconds, _ in alone]),
        "added_s": spread([a - b for (a, _), (b, _) in zip(isolated, alone, strict=True)]),
        "time_ratio": spread([a / b for (a, _), (b, _) in zip(isolated, alone, strict=True)]),
        "memory_ratio": spread([a / b for (_, a), (_, b) in zip(isolated, alone, strict=True)]),
        "in_one_process_bytes": spread([n_bytes for _, n_bytes in alone]),
        "isolation": available(),
        "machine": machine(),
        "commit": commit(),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(f(values), 4) for name, f in (("median", statistics.median), ("least", min), ("most", max))}


def measure(command: list[str], here: Path) -> tuple[float, int]:
    """Seconds, and bytes."""
    begin = time.perf_counter()
    run = subprocess.Popen(command, cwd=here, env=environment(here), stdout=subprocess.DEVNULL)
    most: dict[int, int] = {}
    while run.poll() is None:
        for process in family(run.pid):
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{process}/status").read_text().splitlines()
                line = next(line for line in lines if line.startswith("VmHWM"))
                most[process] = int(line.split()[1]) * 1024
        time.sleep(0.02)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}")
    return time.perf_counter() - begin, sum(most.values())


def family(process: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for member in found:
        found += parents.get(member, [])
    return found


# What kills leave


def count_leftovers(here: Path, n: int, rng: random.Random) -> int:
    subprocess.run(
        [sys.executable, "-m", "seamfast", "plant", "--data", "digits", "--epochs", "8", "--out", "model"],
        cwd=here,
        env=environment(here),
        check=True,
        capture_output=True,
    )
    command = [sys.executable, "-m", "seamfast", "gate", "model", "--data", "digits", "--policy", "gate.toml"]
    command += ["--out", "out", "--device", "cpu"]
    usual = timed(command, here)
    shutil.rmtree(here / "out")
    faults = 0
    for number in range(n):
        who = rng.choice(("supervisor", "worker", "janitor", "all"))
        run = subprocess.Popen(
            command, cwd=here, env=environment(here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        after = rng.uniform(0, usual)
        time.sleep(after)
        members = family(run.pid)
        victims = {"supervisor": [run.pid], "all": members}.get(who) or [m for m in members if role(m, run.pid) == who]
        for signum in (signal.SIGSTOP, signal.SIGKILL) if who == "all" else (signal.SIGKILL,):
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signum)
        code = run.wait()
        fault = fault_of(here, members, code, who)
        faults += fault is not None
        print(f"{number:3} {who:<10} after {after:5.2f} s: exit code {code:3} {fault or 'nothing left'}", flush=True)
        shutil.rmtree(here / "out", ignore_errors=True)
    timed(command, here)
    left = leftovers(here) - {"out"}
    print(f"{n} kills, {faults} with a fault; after one more run, left: {sorted(left) or 'nothing'}")
    return 1 if faults or left else 0


def timed(command: list[str], here: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=here, env=environment(here), capture_output=True, check=False)
    return time.perf_counter() - begin


def role(process: int, supervisor: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return "gone"
    return "worker" if b"seamfast.worker" in words else "supervisor" if process == supervisor else "janitor"


def fault_of(here: Path, members: list[int], code: int, who: str) -> str | None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        running = [member for member in members if role(member, 0) != "gone" and not is_zombie(member)]
        left = leftovers(here) - {"out"}
        if not running and (not left or who == "all"):
            break
        time.sleep(0.05)
    else:
        return f"FAULT: still running {running}, left {sorted(left)}"
    if (here / "out").exists():
        names = {path.name for path in (here / "out").iterdir()}
        if not {"report.json", "report.html", "summary.md", "report.sarif", "bom.json"} <= names:
            return f"FAULT: half-written: {sorted(names)}"
        verdict = json.loads((here / "out" / "report.json").read_text())["verdict"]
        if code not in (verdict["exit_code"], -signal.SIGKILL) or (
            (verdict["exit_code"] == 0) != ("sanitized" in names)
        ):
            return f"FAULT: exit code {code}, verdict {verdict['outcome']}, {sorted(names)}"
    elif code == 0:
        return "FAULT: exit code 0 without an output"
    return None


def is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def leftovers(here: Path) -> set[str]:
    names = {path.name for path in (*here.iterdir(), *(here / "tmp").iterdir())}
    return names - {"model", "code", "tmp", "gate.toml"}


if __name__ == "__main__":
    sys.exit(main())
