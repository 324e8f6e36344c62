"""Models that others attacked and published, sanitized blind: what goes, and what stays; resumable.

    python benches/others.py [--models NAME ...] [--budgets 0.05 0.01 20] [--seeds 0 1 2] [--presets default fast]

A row is one model, preset, clean budget and seed: ``sanitize`` gets the model as received and the clean part, with the
settings of the preset, and nothing else. ACC, ASR and RA (triggered samples given their true class) are measured on the
whole test set that is there, before and after; nothing is chosen by them. A budget below 1 is a share of the whole
original training set, from 1 on it is images a class; a fifth of it is held out, as ever. A row that is in ``--out``
already is not run again, so a killed run goes on where it was; delete it to begin anew. One thread; seconds are of one
run each, on a machine that may have other load. The table holds means over the seeds.

Models and data are read from ``--root``, by default ``SEAMFAST_DATA`` or ``../shared/data``; a model that is not there
is left out. Where they come from, and how each is rebuilt: ``tests/other_models.py``.
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

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from other_models import OTHER_MODELS, ROOT  # noqa: E402

import seamfast  # noqa: E402
from benches.rows import append_row, read_rows  # noqa: E402
from benches.study_report import budget_name  # noqa: E402
from seamfast.errors import ConfigError, InputError  # noqa: E402
from seamfast.metrics import fidelity, fidelity_nist  # noqa: E402
from seamfast.record import machine  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(OTHER_MODELS), choices=OTHER_MODELS)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--presets", nargs="+", default=["default"], help="of sanitize; default: none is named")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benches" / "results" / "others.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(arguments.out)
    done = {key(row) for row in rows}
    runs = [(p, b, s) for p in arguments.presets for b in arguments.budgets for s in arguments.seeds]
    for name in arguments.models:
        other = OTHER_MODELS[name]
        todo = [run for run in runs if (name, *run) not in done]
        missing = other.missing(arguments.root)
        if missing is not None:
            print(f"{name}: left out, {missing} is absent", file=sys.stderr)
        if missing is not None or not todo:
            continue
        received = other.load(arguments.root)
        train_set, test_set = (other.read(split, arguments.root) for split in ("train", "test"))
        before = measures(seamfast.evaluate(received, test_set, triggers=[other.trigger]), "before")
        for preset, budget, seed in todo:
            row = {"model": name, "preset": preset, "budget": budget, "seed": seed}
            options = {} if preset == "default" else {"preset": preset}
            start = time.perf_counter()
            try:
                clean = other.clean_part(train_set, budget, seed)
                result = seamfast.sanitize(received, clean, seed=seed, **options)
            except ConfigError:
                raise
            except InputError as error:  # too little data to draw, or to hold some out
                print(f"{row}: left out, {error}", file=sys.stderr)
                continue
            row |= {"n_clean": len(clean), "n_test": len(test_set)}
            row |= {"seconds": round(time.perf_counter() - start, 2)}
            row |= before | measures(seamfast.evaluate(result.model, test_set, triggers=[other.trigger]), "after")
            row["fidelity"] = fidelity(**{k: row[k] for k in ("acc_before", "acc_after", "asr_after")})
            row["fidelity_nist"] = fidelity_nist(
                **{k: row[k] for k in ("acc_before", "acc_after", "asr_before", "asr_after")}
            )
            row |= {"accepted": result.accepted, "reason": result.reason}
            row |= {k: result.report["run"][k] for k in ("n_attempts", "steps")}
            row["precision"] = result.report["run"]["precision"]["chosen"]
            row["machine"] = machine()
            rows.append(row)
            append_row(arguments.out, row)
            print(json.dumps({k: v for k, v in row.items() if k != "machine"}), file=sys.stderr, flush=True)
    wanted = {(name, *run) for name in arguments.models for run in runs}
    print_table([row for row in rows if key(row) in wanted])
    return 0


def key(row: dict[str, Any]) -> tuple[str, str, float, int]:
    return row["model"], row["preset"], row["budget"], row["seed"]


def measures(evaluation: seamfast.Evaluation, when: str) -> dict[str, Any]:
    """ACC, ASR and RA of an evaluation with one trigger."""
    (trigger,) = evaluation.triggers
    rates = {"acc": evaluation.clean_accuracy, "asr": trigger.attack_success_rate, "ra": trigger.robust_accuracy}
    return {f"{name}_{when}": rate.value for name, rate in rates.items()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, as Markdown."""
    heads = ["model", "preset", "clean data", "n", "seeds", "as received: ACC / ASR / RA", "sanitized: ACC / ASR / RA"]
    heads += ["worst ASR", "Fidelity", "steps", "s", "accepted"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row)[:3], []).append(row)
    for (name, preset, budget), group in groups.items():
        mean = {k: statistics.mean(r[k] for r in group) for k in group[0] if k.startswith(("acc_", "asr_", "ra_"))}
        received, sanitized = (
            " / ".join(f"{mean[f'{rate}_{when}']:.2%}" for rate in ("acc", "asr", "ra")) for when in ("before", "after")
        )
        print(
            f"| {name} | {preset} | {budget_name(budget)} | {group[0]['n_clean']} | {len(group)} "
            f"| {received} | {sanitized} "
            f"| {max(r['asr_after'] for r in group):.2%} | {statistics.mean(r['fidelity'] for r in group):.3f} "
            f"| {statistics.median(sum(r['steps'].values()) for r in group):.0f} "
            f"| {statistics.median(r['seconds'] for r in group):.1f} "
            f"| {sum(r['accepted'] for r in group)}/{len(group)} |"
        )


if __name__ == "__main__":
    sys.exit(main())
