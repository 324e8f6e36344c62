"""What a step of the cure costs on text, and what the search of the vocabulary does; by turns, one thread.

    python benches/bench_text.py [--zoo FOLDER] [--minilm FOLDER] [--models sst2-text_transformer-word-0] [--turns 7]

``steps``: a turn runs as many steps of recovery of ``seam`` with its teacher, as many without, and as many of plain
fine-tuning (``fine_tune``), all on the same clean texts, 5 % of the training set, in batches of the same size, grouped
by length alike. The times are those of the steps alone, without evaluations, searches and what comes before and after.
A ratio is the median over turns of quotients within a turn, with the least and the largest beside it. A batch of the
cure is longer, by the tokens that it inserts. The target is 1.15 without the teacher.

``search``: seconds of ``seamfast.audits.search_vocabulary`` of the model, all classes, the least of three, and the
phrase that it found for the attack's target. The target is 30 s for MiniLM.

ACC and ASR on test texts stand beside the times of steps: as received, and after so many of each. Models are those of
``text_zoo.py``; one of MiniLM needs ``--minilm``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches import text_zoo  # noqa: E402
from benches.rows import append_row, commit  # noqa: E402
from benches.text_zoo import TextEntry, clean_part  # noqa: E402
from seamfast import CleanSet, FineTuneConfig, SeamConfig  # noqa: E402
from seamfast.modalities import TextModality  # noqa: E402
from seamfast.record import machine  # noqa: E402

STEP_TARGET = 1.15
SEARCH_TARGET_S = 30.0
MODELS = ("sst2-text_transformer-word-0", "trec-bilstm-sentence-0", "sst2-minilm-word-0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="by name, of the zoo")
    parser.add_argument("--parts", nargs="+", default=["steps", "search"], choices=("steps", "search"))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of each, a turn")
    parser.add_argument("--zoo", type=Path, default=text_zoo.ZOO)
    parser.add_argument("--root", type=Path, default=text_zoo.DATA_ROOT, help="of the data sets")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, help="a file to which rows are added, one JSON document a line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = {entry.name: entry for entry in text_zoo.declared()}
    for name in arguments.models:
        entry = known[name]
        if entry.architecture in text_zoo.PRETRAINED and arguments.minilm is None:
            print(f"{name}: left out, it needs --minilm", file=sys.stderr)
            continue
        model, _ = text_zoo.load(entry, arguments.zoo)
        clean = clean_part(text_zoo.train_set(entry, arguments.zoo, arguments.root, arguments.minilm), 0.05, 0)
        for part in arguments.parts:
            row = {"steps": race_steps, "search": timed_search}[part](entry, model, clean, arguments)
            row = {"part": part, "model": name, "n_clean": len(clean), **row}
            print(json.dumps(row), flush=True)
            if arguments.out:
                append_row(arguments.out, row | {"machine": machine(), "commit": commit()})
    return 0


def race_steps(entry: TextEntry, model: nn.Module, clean: CleanSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """The three by turns: milliseconds a step, quotients to fine-tuning, and what became of the models."""
    n = arguments.steps
    usual = SeamConfig.preset("balanced", TextModality)
    lengths = {"recover_max_steps": n, "recover_easy_steps": n, "recover_eval_every": n}
    with_teacher = replace(usual, **lengths, radius=0.05, forget_max_steps=0, searches=0, prune=False)
    without = replace(with_teacher, distillation=0.0)
    fine_tuning = FineTuneConfig(batch_size=usual.batch_size, max_steps=n, eval_every=n, rate=1e-4, prune=False)
    runs: dict[str, Callable[[], seamfast.SanitizeResult]] = {
        "with_teacher": lambda: seamfast.sanitize(model, clean, config=with_teacher, **how),
        "without_teacher": lambda: seamfast.sanitize(model, clean, config=without, **how),
        "fine_tuning": lambda: seamfast.sanitize(model, clean, method="fine_tune", config=fine_tuning, **how),
    }
    how: dict[str, Any] = {"seed": 0, "precision": "fp32", "progress": False}
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, seamfast.SanitizeResult] = {}
    for _ in range(arguments.turns):
        for name, run in runs.items():
            results[name] = run()
            times[name].append(step_seconds(results[name].report))
    row: dict[str, Any] = {"turns": arguments.turns, "steps": n, "batch": usual.batch_size, "target": STEP_TARGET}
    for name, seconds in times.items():
        row[f"{name}_ms"] = round(1000 * statistics.median(seconds), 2)
        if name != "fine_tuning":
            quotients = sorted(own / base for own, base in zip(seconds, times["fine_tuning"], strict=True))
            row[f"{name}_ratio"] = round(statistics.median(quotients), 3)
            row[f"{name}_range"] = [round(quotients[0], 3), round(quotients[-1], 3)]
    _, backdoor = text_zoo.load(entry, arguments.zoo)
    test = text_zoo.test_set(entry, arguments.zoo, arguments.root, arguments.minilm)
    for name, treated in {"received": model, **{name: done.model for name, done in results.items()}}.items():
        found = text_zoo.rates(treated, backdoor, test, arguments.minilm)
        row |= {f"acc_{name}": found["acc"], f"asr_{name}": found["asr"]}
    return row


def step_seconds(report: dict[str, Any]) -> float:
    """Seconds of a step of recovery, evaluations left out."""
    seconds, steps = report["run"]["seconds"], report["run"]["steps"]
    return float((seconds["recover"] - seconds["evaluations"]) / steps["recover"])


def timed_search(entry: TextEntry, model: nn.Module, clean: CleanSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a search by the defaults, the least of three; and what it found for the target."""
    from seamfast.audits.vocabulary import search_vocabulary

    _, backdoor = text_zoo.load(entry, arguments.zoo)
    assert backdoor is not None
    seconds = []
    for _ in range(min(arguments.turns, 3)):
        start = time.perf_counter()
        found = search_vocabulary(model, clean)
        seconds.append(time.perf_counter() - start)
    best = found.best(entry.target)
    row: dict[str, Any] = {"seconds": round(min(seconds), 2), "all_seconds": [round(s, 2) for s in seconds]}
    row |= {"target_s": SEARCH_TARGET_S, "complete": found.complete}
    return row | {"best": best and best.text, "success": best and best.success.value}


if __name__ == "__main__":
    sys.exit(main())
