"""``sanitize`` against the same schedule driven by others, and against training from scratch; by turns, one thread.

    python benches/bench_engine.py --data mnist --turns 5 [--baselines naive resident] [--out FILE]

Rows: ``naive``, ``authors``, ``resident`` and ``compiled`` (see ``benches/baselines/``) do the very steps that
``sanitize`` does beside them: 15 of forgetting, ``--steps`` of recovery, all evaluations; the radius is given, and
nothing stops early.
``fp32`` is ``resident`` in plain float32, so that one sees what the probe of precision is good for.
``authors`` has the authors' settings on both sides (batch 32, Adam, no distillation), 20 and 100 steps.
``scratch`` trains such a model with seamfast's own engine, data path and precision on all of the training set that is
there, by the recipe of ``seamfast plant`` but longer (MNIST and Fashion-MNIST ten epochs, CIFAR-10 thirty), against
``sanitize`` with its defaults, and against the preset ``fast``. ``ratio_equal`` is against the same training, had it
stopped after the first epoch that reaches the sanitized model's ACC on the test set (looking is not timed).

A turn runs ours, then each baseline; ratios are medians over turns of quotients within a turn. ACC and ASR on the test
set stand beside every row. ``compiled`` is cold in its first turn, whose quotient stands apart; warm in the others.
Data are read from ``SEAMFAST_DATA`` or ``../shared/data``; the planted models are those of ``fidelity.py``'s cache.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from benches.rows import append_row, commit  # noqa: E402
from benches.zoo import clean_part, read  # noqa: E402
from seamfast import SeamAuthorsConfig, SeamConfig, attacks  # noqa: E402
from seamfast.engine.precision import Precision, _chosen  # noqa: E402
from seamfast.models.architectures import IMAGE_ARCHITECTURES  # noqa: E402
from seamfast.models.folder import ModelDescription, load_model, save_model  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.triggers import Patch  # noqa: E402

EPOCHS = {"mnist": 10, "fashion-mnist": 10, "cifar10": 30}
BASELINES = ("naive", "authors", "resident", "fp32", "compiled", "scratch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=("digits", "mnist", "fashion-mnist", "cifar10"))
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of recovery")
    parser.add_argument("--architecture", choices=sorted(IMAGE_ARCHITECTURES), help="untrained, for its speed alone")
    parser.add_argument("--batch", type=int, default=128, help="samples a step, but for authors and scratch")
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("SEAMFAST_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--out", type=Path, help="a file to which rows are added, one JSON document a line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads

    train_set, test_set = (read(arguments.data, arguments.root, split) for split in ("train", "test"))
    trigger = Patch.square(size=3, target=0)
    planted = ROOT / "benches" / ".cache" / f"{arguments.data}-0" / "planted"
    model, _ = trained(planted, arguments.data, attacks.poison(train_set, trigger, 0.05, seed=0), 0)
    if arguments.architecture:
        torch.manual_seed(0)
        channels, side, _ = train_set.image_shape
        model = attacks.build(arguments.architecture, num_classes=10, in_channels=channels, image_size=side)
    clean = clean_part(arguments.data, train_set, 0.05, 0)
    full = Schedule.of(clean, 15, arguments.steps, SeamConfig(batch_size=arguments.batch))
    authors = Schedule.of(clean, 20, 100, SeamAuthorsConfig())
    first = dataclasses.replace(full.config, recover_max_steps=1)  # imports, first calls, the probe
    seamfast_run(dataclasses.replace(full, config=first), model)
    probed = list(_chosen.values())[-1]

    torch.optim.AdamW([torch.zeros(1)])  # the baselines' import of the compiler is not held against them

    recipe = attacks.RECIPES[arguments.data]
    runs: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
        "naive": (lambda: seamfast_run(full, model), lambda: naive.run(full, model)),
        "authors": (lambda: seamfast_run(authors, model), lambda: naive.run(authors, model)),
        "resident": (lambda: seamfast_run(full, model), lambda: resident.run(full, model, probed)),
        "fp32": (lambda: seamfast_run(full, model), lambda: resident.run(full, model, Precision())),
        "compiled": (lambda: seamfast_run(full, model), lambda: resident.run(full, model, probed, compiles=True)),
    }
    shared = {
        "data": arguments.data,
        "n_clean": len(clean),
        "architecture": arguments.architecture or recipe.architecture,
    }
    shared |= {"steps": arguments.steps, "batch": arguments.batch, "precision": probed.name}
    for name in arguments.baselines:
        if name == "scratch":
            rows = race_scratch(arguments.data, recipe, model, clean, train_set, test_set, arguments.turns, trigger)
        else:
            rows = [race(name, *runs[name], arguments.turns, test_set, trigger)]
        for row in rows:
            print(json.dumps(row | shared), flush=True)
            if arguments.out:
                append_row(arguments.out, row | shared | {"machine": machine(), "commit": commit()})
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


def race_scratch(
    data: str,
    recipe: attacks.Recipe,
    model: nn.Module,
    clean: seamfast.CleanSet,
    train_set: seamfast.CleanSet,
    test_set: seamfast.CleanSet,
    turns: int,
    trigger: Patch,
) -> list[dict[str, Any]]:
    """Training from scratch against ``sanitize``, with its defaults and fast; by turns."""
    training = dataclasses.replace(recipe.training, epochs=EPOCHS.get(data, recipe.training.epochs))
    configs = {"scratch": SeamConfig(), "scratch, fast": SeamConfig.preset("fast")}
    ours: dict[str, list[float]] = {name: [] for name in configs}
    cured: dict[str, seamfast.SanitizeResult] = {}
    scratch_s: list[float] = []
    epoch_ends: list[list[tuple[float, float]]] = []  # seconds, ACC
    for _ in range(turns):
        for name, config in configs.items():
            start = time.perf_counter()
            cured[name] = seamfast.sanitize(model, clean, config=config, progress=False)
            ours[name].append(time.perf_counter() - start)
        torch.manual_seed(0)
        channels, side, _ = train_set.image_shape
        fresh = attacks.build(recipe.architecture, num_classes=10, in_channels=channels, image_size=side)
        ends: list[tuple[float, float]] = []
        looking = 0.0
        start = time.perf_counter()

        def look(epoch: int, loss: float, fresh: nn.Module = fresh, ends: Any = ends, start: float = start) -> None:
            nonlocal looking
            before = time.perf_counter()
            accuracy = seamfast.evaluate(fresh, test_set, progress=False).clean_accuracy.value
            ends.append((before - start - looking, accuracy or 0.0))
            looking += time.perf_counter() - before

        attacks.train(fresh, train_set, training, precision="auto", progress=False, on_epoch=look)
        scratch_s.append(ends[-1][0])
        epoch_ends.append(ends)
    rows = []
    made = seamfast.evaluate(fresh, test_set, triggers=[trigger], progress=False)
    for name, seconds in ours.items():
        found = seamfast.evaluate(cured[name].model, test_set, triggers=[trigger], progress=False)
        accuracy = found.clean_accuracy.value or 0.0
        quotients = [b / o for b, o in zip(scratch_s, seconds, strict=True)]
        equal = [next((s for s, a in ends if a >= accuracy), ends[-1][0]) for ends in epoch_ends]
        rows.append(
            {
                "baseline": name,
                "turns": turns,
                "ours_s": round(statistics.median(seconds), 3),
                "baseline_s": round(statistics.median(scratch_s), 3),
                "ratio": round(statistics.median(quotients), 2),
                "ratio_range": [round(min(quotients), 2), round(max(quotients), 2)],
                "ratio_equal": round(statistics.median(e / o for e, o in zip(equal, seconds, strict=True)), 2),
                "epochs": training.epochs,
                "steps_taken": cured[name].report["run"]["steps"],
                "accepted": cured[name].accepted,
                "acc_ours": accuracy,
                "asr_ours": found.worst_attack_success_rate,
                "acc_baseline": made.clean_accuracy.value,
                "asr_baseline": made.worst_attack_success_rate,
            }
        )
    return rows


def trained(folder: Path, name: str, data: seamfast.CleanSet, seed: int) -> tuple[nn.Module, float]:
    """The model trained on ``data`` by the recipe of ``name``, and the seconds; from ``folder`` if there."""
    seconds = folder / "seconds"
    if seconds.is_file():
        return load_model(folder)[0], float(seconds.read_text())
    recipe = attacks.RECIPES[name]
    channels, side, _ = data.image_shape
    description = ModelDescription(recipe.architecture, data.num_classes or 10, channels, side, recipe.mean, recipe.std)
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = attacks.train(description.build(), data, recipe.training, seed=seed, precision="auto")
    taken = time.perf_counter() - start
    save_model(folder, model, description)
    seconds.write_text(str(taken))
    return model, taken


if __name__ == "__main__":
    sys.exit(main())
