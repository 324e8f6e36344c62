"""What a first run costs: imports in fresh processes, and the first ``sanitize`` of a process against a later one.

    python benches/bench_cold.py [--turns 7] [--steps 20] [--device cpu] [--out FILE]

A turn starts fresh processes, one after the other: ``import torch``; ``import seamfast`` with its ``sanitize``; one
that sanitizes twice (the first run is cold, the second warm); and one that calls ``seamfast.warmup`` with its model and
data before it sanitizes.
Wall clock and, for the imports, CPU time of the whole process, interpreter included. Medians over turns, least and
greatest beside them; differences and quotients are taken within a turn. Bytecode is there, as after an install; each
process begins with an empty cache of Triton kernels.

The run: ``small_cnn`` on 1,000 random images of 28x28, one thread, ``--steps`` of each phase, one attempt.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

RUN = """
import json, sys, time
begin = time.perf_counter()
import torch, seamfast
from seamfast import SeamConfig, attacks
torch.set_num_threads(1)
torch.manual_seed(0)
n_steps, device, warms_up = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "warmup"
data = seamfast.CleanSet(torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8), torch.arange(1000) % 10)
model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=28)
steady = {"forget_growth": 1.0, "forget_until": 0.0}
config = SeamConfig(**steady, forget_max_steps=n_steps, recover_max_steps=n_steps, strengths=(1.0,))
seconds = {"imports": time.perf_counter() - begin}

def timed(name, call):
    begin = time.perf_counter()
    call()
    seconds[name] = time.perf_counter() - begin

if warms_up:
    timed("warmup", lambda: seamfast.warmup(model, data, config=config, device=device))
for name in ("first", "second"):
    timed(name, lambda: seamfast.sanitize(model, data, config=config, device=device, progress=False))
print(json.dumps(seconds))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of each phase")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a file to which the row is added, one JSON document a line")
    arguments = parser.parse_args()
    run = [RUN, str(arguments.steps), arguments.device]
    turns = []
    fresh("import seamfast.attacks")  # writes the bytecode, and reads all files once
    for _ in range(arguments.turns):
        torch_wall, torch_cpu, _ = fresh("import torch")
        wall, cpu, _ = fresh("import seamfast; seamfast.sanitize")
        _, _, cold = fresh(*run, "cold")
        _, _, warmed = fresh(*run, "warmup")
        turns.append(
            {
                "import_torch_s": torch_wall,
                "import_torch_cpu_s": torch_cpu,
                "import_seamfast_s": wall,
                "import_seamfast_cpu_s": cpu,
                "import_ours_s": wall - torch_wall,
                "import_ours_cpu_s": cpu - torch_cpu,
                "first_run_s": cold["first"],
                "second_run_s": cold["second"],
                "first_run_extra_s": cold["first"] - cold["second"],
                "first_by_second": cold["first"] / cold["second"],
                "warmup_s": warmed["warmup"],
                "first_run_after_warmup_s": warmed["first"],
                "first_by_second_after_warmup": warmed["first"] / warmed["second"],
            }
        )
    row: dict[str, Any] = {"bench": "cold", "device": arguments.device, "steps": arguments.steps, "turns": len(turns)}
    for name in turns[0]:
        values = [turn[name] for turn in turns]
        row[name] = round(statistics.median(values), 4)
        row[name + "_range"] = [round(min(values), 4), round(max(values), 4)]
        print(f"{name:<30} {row[name]:8.3f}   ({min(values):.3f} to {max(values):.3f})", flush=True)

    sys.path.insert(0, str(ROOT))
    from benches.rows import commit
    from seamfast.record import machine

    row |= {"machine": machine(), "commit": commit()}
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return 0


def fresh(code: str, *arguments: str) -> tuple[float, float, dict[str, float]]:
    """Wall-clock and CPU seconds of a fresh process that runs ``code``, and what it says of itself."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        environment["TRITON_CACHE_DIR"] = folder
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(done.stdout) if done.stdout else {}


if __name__ == "__main__":
    sys.exit(main())
