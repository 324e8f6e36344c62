"""``sanitize`` against the same schedule driven by others, and against training from scratch; by turns, one thread.

    python benches/bench_engine.py --data mnist --turns 5 [--baselines naive resident] [--out FILE]

Rows: ``naive``, ``authors``, ``resident`` and ``compiled`` (see ``benches/baselines/``) do the very steps that
``sanitize`` does beside them: 15 of forgetting, ``--steps`` of recovery, all evaluations; nothing stops early.
``authors`` has the authors' settings on both sides (batch 32, Adam, no distillation), 20 and 100 steps.
``scratch`` trains such a model with seamfast's own engine, data path and precision on all of the training set, by the
recipe of ``seamfast plant`` (MNIST ten epochs, CIFAR-10 thirty), against ``sanitize`` with its defaults.

A turn runs ours, then each baseline; ratios are medians over turns of quotients within a turn. ACC and ASR on the test
set stand beside every row. ``compiled`` is cold in its first turn, whose quotient stands apart; warm in the others.
Data are read from ``SEAMFAST_DATA`` or ``../shared/data``; the planted models are those of ``fidelity.py``'s cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.baselines import naive, resident  # noqa: E402
from benches.baselines.schedule import Schedule, seamfast_run  # noqa: E402
from benches.fidelity import FRACTION, read, trained  # noqa: E402
from seamfast import SeamConfig, attacks  # noqa: E402
from seamfast.engine.precision import _chosen  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.triggers import Patch  # noqa: E402

BASELINES = ("naive", "authors", "resident", "compiled", "scratch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=("digits", "mnist", "fashion-mnist", "cifar10"))
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of recovery")
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("SEAMFAST_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--out", type=Path, help="a file to which rows are added, one JSON document a line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads

    train_set, test_set = (read(arguments.data, arguments.root, split) for split in ("train", "test"))
    trigger = Patch.square(size=3, target=0)
    planted = ROOT / "benches" / ".cache" / f"{arguments.data}-0" / "planted"
    model, _ = trained(planted, arguments.data, attacks.poison(train_set, trigger, 0.05, seed=0), 0)
    clean = train_set.draw(FRACTION, seed=0)
    full = Schedule.of(clean, 15, arguments.steps)
    authors = Schedule.of(clean, 20, 100, SeamConfig.authors_cifar10(len(clean)))
    seamfast_run(Schedule.of(clean, 1, 1), model)  # imports, first calls, the probe
    (probed,) = _chosen.values()

    recipe = attacks.RECIPES[arguments.data]

    def scratch() -> nn.Module:
        torch.manual_seed(0)
        channels, side, _ = train_set.image_shape
        fresh = attacks.build(recipe.architecture, num_classes=10, in_channels=channels, image_size=side)
        return attacks.train(fresh, train_set, recipe.training, precision="auto", progress=False)

    runs: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
        "naive": (lambda: seamfast_run(full, model), lambda: naive.run(full, model)),
        "authors": (lambda: seamfast_run(authors, model), lambda: naive.run(authors, model)),
        "resident": (lambda: seamfast_run(full, model), lambda: resident.run(full, model, probed)),
        "compiled": (lambda: seamfast_run(full, model), lambda: resident.run(full, model, probed, compiles=True)),
        "scratch": (lambda: seamfast.sanitize(model, clean, progress=False).model, scratch),
    }
    for name in arguments.baselines:
        row = race(name, *runs[name], arguments.turns, test_set, trigger)
        row |= {"data": arguments.data, "n_clean": len(clean), "architecture": recipe.architecture}
        row |= {"steps": arguments.steps, "precision": probed.name, "machine": machine(), "commit": _commit()}
        print(json.dumps({k: v for k, v in row.items() if k not in ("machine", "commit")}), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


def race(
    name: str,
    ours: Callable[[], nn.Module],
    baseline: Callable[[], nn.Module],
    turns: int,
    test_set: seamfast.CleanSet,
    trigger: Patch,
) -> dict[str, Any]:
    """Both by turns, ours first; their seconds, quotients, and what became of the models."""
    times: dict[str, list[float]] = {"ours": [], "baseline": []}
    models: dict[str, nn.Module] = {}
    for _ in range(turns):
        for who, call in (("ours", ours), ("baseline", baseline)):
            start = time.perf_counter()
            models[who] = call()
            times[who].append(time.perf_counter() - start)
    quotients = [b / o for b, o in zip(times["baseline"], times["ours"], strict=True)]
    warm = quotients[1:] if name == "compiled" and turns > 1 else quotients
    row: dict[str, Any] = {
        "baseline": name,
        "turns": turns,
        "ours_s": round(statistics.median(times["ours"]), 3),
        "baseline_s": round(statistics.median(times["baseline"][1:] or times["baseline"]), 3),
        "ratio": round(statistics.median(warm), 2),
        "ratio_range": [round(min(warm), 2), round(max(warm), 2)],
    }
    if name == "compiled":
        row["ratio_cold"] = round(quotients[0], 2)
    for who, model in models.items():
        found = seamfast.evaluate(model, test_set, triggers=[trigger], progress=False)
        row[f"acc_{who}"], row[f"asr_{who}"] = found.clean_accuracy.value, found.worst_attack_success_rate
    return row


def _commit() -> str:
    import subprocess

    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
