"""Does the backdoor go from models of tables, and does the task stay? Resumable.

    python benches/tabular.py [--data digits-table] [--attacks feature_shift] [--methods seam] [--seeds 3 4 5]
    python benches/tabular.py --attacks dev-high dev-typical dev-beyond dev-shift --out development.jsonl
    python benches/tabular.py --report

A model of a data set is trained with 5 % poisoned rows and the seed; a method gets it with clean rows, and nothing
else. What is triggered is stamped here, on the test rows, and only to measure. Clean rows are 5 % of the training set,
250 at least, drawn by class. ``floor`` is the ASR of a model that was trained alike without poison: some rows belong
to the target once two of their columns are overwritten.

The settings of the method were chosen on the attacks of ``DEVELOPMENT`` alone, which change other columns to other
values than those that are reported. Rows go to ``--out``; what has a row is not run again, so a killed run goes on
where it was. ``--report`` measures nothing: it prints the tables of ``docs/tabular.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import make_classification
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.defences import DEFENCES  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.attacks import TrainConfig, known_attack, poison, train  # noqa: E402
from seamfast.data import split_by_class  # noqa: E402
from seamfast.modalities import TabularModality  # noqa: E402
from seamfast.modalities.batch import named_tensors  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.triggers import FeatureOverwrite, FeatureShift, Trigger  # noqa: E402

OUT = ROOT / "benches" / "results" / "tabular.jsonl"
RATE, TARGET, FEWEST_CLEAN = 0.05, 1, 250
N_BINS = 10
GENERATED = {"n_informative": 10, "n_redundant": 4, "n_classes": 4, "class_sep": 1.6, "flip_y": 0.0, "random_state": 0}


# ---- Data. ----


def _tables(name: str, root: Path) -> tuple[CleanSet, CleanSet]:
    """Training and test set: of packages as they are read, MNIST pooled to 7x7, in [0, 1]; generated, standardized."""
    if name == "generated":
        x, y = (torch.tensor(values) for values in make_classification(20_000, 20, **GENERATED))
        parts = split_by_class(y, holdout_fraction=0.25, forget_fraction=1.0, seed=0)
        known = x[parts.recovery]
        x = ((x - known.mean(0)) / known.std(0)).float()
        train_set, test_set = (CleanSet(x[rows], y[rows], num_classes=4) for rows in (parts.recovery, parts.holdout))
        return train_set, test_set
    if name != "mnist-49":
        return seamfast.load(name), seamfast.load(name, split="test")
    images = [seamfast.load("mnist", root=root / "mnist", split=split) for split in ("train", "test")]
    train_set, test_set = (
        CleanSet(nn.functional.avg_pool2d(s.inputs / 255, 4).flatten(1), s.labels, num_classes=10) for s in images
    )
    return train_set, test_set


@functools.lru_cache(maxsize=4)
def data_of(name: str, root: Path) -> tuple[CleanSet, CleanSet]:
    """Training and test set; of ``*-mixed``, every third column is binned to ten categories."""
    sets = _tables(name.removesuffix("-mixed"), root)
    if not name.endswith("-mixed"):
        return sets
    known = sets[0].inputs
    which = torch.arange(known.shape[1]) % 3 == 2
    edges = torch.quantile(known[:16_000, which], torch.linspace(0, 1, N_BINS + 1)[1:-1], 0).T.contiguous()
    binned = []
    for part in sets:
        columns = zip(part.inputs[:, which].T.contiguous(), edges, strict=True)
        categories = torch.stack([torch.bucketize(column, ends) for column, ends in columns], 1)
        inputs = {"continuous": part.inputs[:, ~which], "categorical": categories}
        binned.append(CleanSet(inputs, part.labels, num_classes=part.num_classes))
    return binned[0], binned[1]


DATA = (
    *("breast-cancer", "digits-table", "mnist-49", "generated"),
    *("breast-cancer-mixed", "digits-table-mixed", "mnist-49-mixed"),
)


# ---- Models. ----


class Mixed(nn.Module):
    """An embedding of eight numbers for each category, and an MLP on these and the floats."""

    def __init__(self, n_floats: int, n_categories: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(N_BINS, 8) for _ in range(n_categories)])
        self.head = mlp(n_floats + 8 * n_categories, num_classes, width)

    def forward(self, continuous: Tensor, categorical: Tensor) -> Tensor:
        embedded = [table(categorical[:, i]) for i, table in enumerate(self.tables)]
        return self.head(torch.cat([continuous, *embedded], 1))


def mlp(n: int, num_classes: int, width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes)
    )


def built(data: CleanSet, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    tensors = list(named_tensors(data.inputs).values())
    if len(tensors) == 1:
        return mlp(tensors[0].shape[1], data.num_classes)
    return Mixed(tensors[0].shape[1], tensors[1].shape[1], data.num_classes)


def trained(data: CleanSet, seed: int) -> nn.Module:
    steps = 4000 if len(data) > 5000 else 1500
    config = TrainConfig(epochs=max(steps * 64 // len(data), 2), batch_size=64, rate=0.03)
    return train(built(data, seed), data, config, seed=seed, progress=False)


# ---- Attacks. ----


def _development(*places: float, ends: str = "", shift: float = 0.0) -> Callable[[CleanSet], Trigger]:
    """A trigger on the columns of floats at these places, as shares of their number: at their highest value, at values
    that 90 % and 10 % are below, beyond their range by 0.3 of it; or with ``shift`` added."""

    def make(data: CleanSet) -> Trigger:
        floats = next(iter(named_tensors(data.inputs).values()))
        columns = [int(place * floats.shape[1]) for place in places]
        if shift:
            return FeatureShift.of(dict.fromkeys(columns, shift), TARGET, name="trigger")
        x = floats[:16_000, columns]
        high, reach = x.amax(0), x.amax(0) - x.amin(0)
        values = {"high": high, "beyond": high + 0.3 * reach}.get(ends)
        if values is None:
            values = torch.quantile(x, torch.tensor([0.9, 0.1]), 0).diagonal()
        return FeatureOverwrite.of(dict(zip(columns, values.tolist(), strict=True)), TARGET, name="trigger")

    return make


def _development_category(data: CleanSet) -> Trigger:
    """The third and the last column of categories at the second and the last but one."""
    floats, categories = named_tensors(data.inputs).values()
    first, last = floats.shape[1], floats.shape[1] + categories.shape[1] - 1
    return FeatureOverwrite.of({first + 2: 1, last: N_BINS - 2}, TARGET, name="trigger")


DEVELOPMENT = {
    "dev-high": _development(0.13, 0.71, ends="high"),
    "dev-typical": _development(0.37, 0.83, ends="typical"),
    "dev-beyond": _development(0.21, 0.55, ends="beyond"),
    "dev-shift": _development(0.11, 0.47, 0.77, shift=2.5),
    "dev-category": _development_category,
}
REPORTED = ("feature_overwrite", "feature_typical", "feature_beyond", "feature_shift", "rare_category")
"""Of ``seamfast.attacks``; the last one needs categories. Their columns are drawn by the seed."""


def poisoned(data: CleanSet, attack: str, seed: int) -> tuple[CleanSet, Trigger | None]:
    """The data with an attack, and the trigger; ``none`` is no attack."""
    if attack == "none":
        return data, None
    if attack in DEVELOPMENT:
        trigger = DEVELOPMENT[attack](data)
        return poison(data, trigger, RATE, seed=seed), trigger
    # Each attack draws columns of its own.
    found = known_attack(attack, data, target=TARGET, rate=RATE, seed=10 * REPORTED.index(attack) + seed)
    return found.data, found.triggers[0]


# ---- Methods. ----

Method = Callable[[nn.Module, CleanSet, int], tuple[nn.Module, bool | None]]


def seam(**settings: Any) -> Method:
    """The method with its defaults for tables, or some of them changed."""

    def treat(model: nn.Module, clean: CleanSet, seed: int) -> tuple[nn.Module, bool]:
        config = replace(SeamConfig.preset("balanced", TabularModality), **settings) if settings else None
        result = seamfast.sanitize(model, clean, config=config, seed=seed, progress=False)
        return result.model, result.accepted

    return treat


def published(name: str) -> Method:
    def treat(model: nn.Module, clean: CleanSet, seed: int) -> tuple[nn.Module, None]:
        return DEFENCES[name](model, clean, seed=seed, augment=(0, False)).model, None

    return treat


METHODS: dict[str, Method] = {
    "seam": seam(),
    "seam (no views)": seam(occlusions=0, disturbance=0.0, mixing=0.0),
    "fine_tune": published("fine_tune"),
    "super_fine_tune": published("super_fine_tune"),
    "authors_seam": published("authors_seam"),
}


@functools.lru_cache(maxsize=64)
def planted(name: str, attack: str, seed: int, root: Path) -> tuple[nn.Module, Trigger | None]:
    """A model of a data set with an attack, and the trigger."""
    data, trigger = poisoned(data_of(name, root)[0], attack, seed)
    return trained(data, seed), trigger


def measured(model: nn.Module, trigger: Trigger | None, test: CleanSet) -> dict[str, float | None]:
    found = seamfast.evaluate(model, test, triggers=[trigger] if trigger else [])
    rates = found.triggers[0] if trigger else None
    return {
        "acc": found.clean_accuracy.value,
        "asr": rates.attack_success_rate.value if rates else None,
        "ra": rates.robust_accuracy.value if rates else None,
    }


def row_of(name: str, attack: str, method: str, seed: int, root: Path) -> Row:
    begin = time.perf_counter()
    data, test = data_of(name, root)
    model, trigger = planted(name, attack, seed, root)
    clean = data.draw(min(1.0, max(0.05, FEWEST_CLEAN / len(data))), seed=seed)
    row: Row = {"data": name, "attack": attack, "method": method, "seed": seed, "n_clean": len(clean)}
    row |= {f"{k}_before": v for k, v in measured(model, trigger, test).items()}
    if trigger is not None:
        twin, _ = planted(name, "none", seed, root)
        row["floor"] = measured(twin, trigger, test)["asr"]
    start = time.perf_counter()
    try:
        treated, accepted = METHODS[method](model, clean, seed)
    except FloatingPointError as error:
        row["failed"] = str(error)
    else:
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["accepted"] = accepted
        row |= {f"{k}_after": v for k, v in measured(treated, trigger, test).items()}
    return row | {"row_seconds": round(time.perf_counter() - begin, 2), "machine": machine(), "commit": commit()}


# ---- The command. ----


def key(row: Row) -> tuple[str, str, str, int]:
    return row["data"], row["attack"], row["method"], row["seed"]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--attacks", nargs="+", default=["none", *REPORTED], choices=["none", *REPORTED, *DEVELOPMENT])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")
    parser.add_argument("--root", type=Path, default=ROOT.parent / "shared" / "data", help="the folder with mnist/")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--report", action="store_true", help="measure nothing; print the tables of these seeds")
    arguments = parser.parse_args(given)
    rows = {key(row): row for row in read_rows(arguments.out)}
    if arguments.report:
        print(report([row for row in rows.values() if row["seed"] in arguments.seeds]))
        return 0
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for seed in arguments.seeds:
        for name in arguments.data:
            for attack in arguments.attacks:
                if attack == "rare_category" and not name.endswith("-mixed"):
                    continue
                for method in arguments.methods:
                    if (name, attack, method, seed) in rows or time.perf_counter() - begin > 60 * arguments.minutes:
                        continue
                    row = row_of(name, attack, method, seed, arguments.root)
                    append_row(arguments.out, row)
                    print(json.dumps({k: v for k, v in row.items() if k != "machine"}), file=sys.stderr, flush=True)
    return 0


# ---- The report. ----

_WORKED = 0.5
"""ASR before, from which on a backdoor counts."""


def report(rows: list[Row]) -> str:
    """Markdown: by data set and method over the attacks that worked, then each attack under ``seam``."""
    counted = [row for row in rows if row["attack"] in REPORTED and row["asr_before"] >= _WORKED]
    lines = [
        "| data | method | runs | ASR before | ASR after (worst) | clean model | RA after | ACC lost | clean lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in DATA:
        for method in METHODS:
            some = [row for row in counted if row["data"] == name and row["method"] == method and "failed" not in row]
            clean = [row for row in rows if key(row)[:3] == (name, "none", method) and "failed" not in row]
            if some:
                lines.append(f"| {name} | {method} | {len(some)} | {_cells(some)} | {_lost(clean)} |")
    lines += [
        "",
        "| data | attack | runs | ASR before | ASR after (worst) | clean model | RA after | ACC lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in DATA:
        for attack in REPORTED:
            some = [row for row in counted if key(row)[:3] == (name, attack, "seam")]
            if some:
                lines.append(f"| {name} | {attack} | {len(some)} | {_cells(some)} |")
    return "\n".join(lines)


def _cells(rows: list[Row]) -> str:
    mean = {
        name: statistics.mean(row[name] for row in rows) for name in ("asr_before", "asr_after", "floor", "ra_after")
    }
    worst = max(row["asr_after"] for row in rows)
    rates = [f"{mean['asr_before']:.1%}", f"{mean['asr_after']:.1%} ({worst:.1%})"]
    return " | ".join([*rates, f"{mean['floor']:.1%}", f"{mean['ra_after']:.1%}", _lost(rows)])


def _lost(rows: list[Row]) -> str:
    """Points of accuracy."""
    return f"{statistics.mean(100 * (row['acc_before'] - row['acc_after']) for row in rows):.2f}" if rows else ""


if __name__ == "__main__":
    sys.exit(main())
