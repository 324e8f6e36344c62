"""Does a patch go, and does the task stay? Methods on planted models, by data set and seed; resumable. Other attacks,
defences and budgets are ``study.py``'s.

    python benches/fidelity.py --data digits mnist fashion-mnist --seeds 0 1 2 --out benches/results/fidelity.jsonl

For each data set and seed: a model is planted by the recipe of ``seamfast plant`` (3x3 white patch, class 0, 5 %
poison), beside it one is trained on clean data by the same recipe, and every method gets the planted one with 5 % of
the training set, drawn by class, and nothing else. ACC and ASR are measured on the whole test set, before and after;
nothing is chosen by them. Trained models are kept under ``--cache``; a row that is in ``--out`` already is not run
again, so a killed run goes on where it was. Threads are pinned to one. Seconds are of one run each, on a machine that
may have other load.

Methods: ``seam`` (the defaults), ``seam, no forgetting`` (its ablation: forgetting only finds the radius),
``fine_tune`` and ``super_fine_tune`` (their defaults), and the authors' SEAM settings, stopped blind, with a hundredth
of the recovery set to forget on and at most 30 epochs of recovery instead of 300.

MNIST, Fashion-MNIST and CIFAR-10 (``cifar10-half.npz``) are read from ``--root``, by default ``SEAMFAST_DATA`` or
``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.bench_engine import trained  # noqa: E402
from benches.defences.own import authors_config  # noqa: E402
from benches.rows import append_row, read_rows  # noqa: E402
from benches.zoo import DATA_ROOT, clean_part, read  # noqa: E402
from seamfast import SeamConfig, attacks  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.triggers import Patch  # noqa: E402

HERE = Path(__file__).parent


def methods(augments: bool) -> dict[str, tuple[str, Any]]:
    return {
        "seam": ("seam", SeamConfig()),
        "seam, no forgetting": ("seam", SeamConfig(recover_from_forgotten=False)),
        "authors' SEAM, blind": ("seam_authors", authors_config((4, True) if augments else (0, False))),
        "fine_tune": ("fine_tune", None),
        "super_fine_tune": ("super_fine_tune", None),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits"], choices=sorted(attacks.RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="some of the methods; default: all")
    parser.add_argument("--root", type=Path, default=DATA_ROOT)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fidelity.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(arguments.out)
    done = {(row["data"], row["seed"], row["method"]) for row in rows}
    trigger = Patch.square(size=3, target=0)
    for name in arguments.data:
        train_set, test_set = (read(name, arguments.root, split) for split in ("train", "test"))
        for seed in arguments.seeds:
            clean = clean_part(name, train_set, 0.05, seed)
            todo = methods(attacks.RECIPES[name].training.flip)
            todo = {k: v for k, v in todo.items() if not arguments.methods or k in arguments.methods}
            if all((name, seed, k) in done for k in todo):
                continue
            folder = arguments.cache / f"{name}-{seed}"
            poisoned = attacks.poison(train_set, trigger, 0.05, seed=seed)
            received, _ = trained(folder / "planted", name, poisoned, seed)
            scratch, scratch_s = trained(folder / "clean", name, train_set, seed)
            before = seamfast.evaluate(received, test_set, triggers=[trigger])
            never = seamfast.evaluate(scratch, test_set, triggers=[trigger])
            for label, (method, config) in todo.items():
                if (name, seed, label) in done:
                    continue
                start = time.perf_counter()
                result = seamfast.sanitize(received, clean, method=method, config=config, seed=seed)
                seconds = time.perf_counter() - start
                after = seamfast.evaluate(result.model, test_set, triggers=[trigger])
                row = {
                    "data": name,
                    "seed": seed,
                    "method": label,
                    "n_clean": len(clean),
                    "n_test": len(test_set),
                    "acc_before": before.clean_accuracy.value,
                    "asr_before": before.worst_attack_success_rate,
                    "acc_after": after.clean_accuracy.value,
                    "asr_after": after.worst_attack_success_rate,
                    "acc_never_backdoored": never.clean_accuracy.value,
                    "asr_never_backdoored": never.worst_attack_success_rate,
                    "accepted": result.accepted,
                    "n_attempts": result.report["run"]["n_attempts"],
                    "steps": result.report["run"]["steps"],
                    "seconds": round(seconds, 2),
                    "scratch_s": round(scratch_s, 2),
                    "machine": machine(),
                }
                rows.append(row)
                append_row(arguments.out, row)
                print(json.dumps({k: v for k, v in row.items() if k != "machine"}), file=sys.stderr, flush=True)
    print_table([row for row in rows if row["data"] in arguments.data and row["seed"] in arguments.seeds])
    return 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, as Markdown."""
    heads = ["data", "method", "n", "ACC before", "ACC after", "lost", "ASR before", "ASR after (worst)"]
    heads += ["never backdoored: ACC / ASR", "accepted", "s"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["method"]), []).append(row)
    for (name, method), group in groups.items():
        mean = {k: statistics.mean(r[k] for r in group) for k in group[0] if k.startswith(("acc_", "asr_"))}
        worst = max(r["asr_after"] for r in group)
        print(
            f"| {name} | {method} | {len(group)} | {mean['acc_before']:.2%} | {mean['acc_after']:.2%} "
            f"| {100 * (mean['acc_before'] - mean['acc_after']):.2f} points | {mean['asr_before']:.2%} "
            f"| {mean['asr_after']:.2%} ({worst:.2%}) | {mean['acc_never_backdoored']:.2%} / "
            f"{mean['asr_never_backdoored']:.2%} | {sum(r['accepted'] for r in group)}/{len(group)} "
            f"| {statistics.median(r['seconds'] for r in group):.1f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
