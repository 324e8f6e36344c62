"""Does the backdoor go from models of tables, and does the task stay? Resumable.

    python benches/tabular.py [--data digits] [--attacks pair-rare] [--methods seam] [--seeds 0 1 2] [--minutes 10]
    python benches/tabular.py --group development ...
    python benches/tabular.py --report

A model of a data set is trained with 5 % poisoned rows and the seed; a method gets it with clean rows, and nothing
else. What is triggered is stamped here, on the test rows, and only to measure. Clean rows are 5 % of the training set,
250 at least, drawn by class. ``floor`` is the ASR of a model that was trained alike without poison: some rows belong
to the target once two of their columns are overwritten.

The settings of the method were chosen on the attacks of the group ``development`` alone, which change other columns to
other values than those that are reported. Rows go to ``--out``; what has a row is not run again.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.defences import DEFENCES  # noqa: E402
from benches.rows import Row, append_row, commit, read_rows  # noqa: E402
from seamfast import CleanSet, SeamConfig  # noqa: E402
from seamfast.attacks import TrainConfig, poison, train  # noqa: E402
from seamfast.data import split_by_class  # noqa: E402
from seamfast.modalities.batch import named_tensors  # noqa: E402
from seamfast.record import machine  # noqa: E402
from seamfast.triggers import FeatureOverwrite, FeatureShift, Trigger  # noqa: E402

OUT = ROOT / "benches" / "results" / "tabular.jsonl"
RATE, TARGET, FEWEST_CLEAN = 0.05, 1, 250
N_BINS = 10


# ---- Data. ----


def _tables(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and labels of the training set, then of the test set."""
    if name == "mnist-49":
        sets = [seamfast.load("mnist", root=root / "mnist", split=split) for split in ("train", "test")]
        pooled = [nn.functional.avg_pool2d(s.inputs.float(), 4).flatten(1) for s in sets]
        return pooled[0], sets[0].labels, pooled[1], sets[1].labels
    from sklearn.datasets import load_breast_cancer, load_digits, make_classification

    if name == "generated":
        x, y = make_classification(
            20_000, 20, n_informative=10, n_redundant=4, n_classes=4, class_sep=1.6, flip_y=0.0, random_state=0
        )
    else:
        loaded = (load_breast_cancer if name == "breast-cancer" else load_digits)()
        x, y = loaded.data, loaded.target
    x, y = torch.tensor(np.asarray(x), dtype=torch.float32), torch.tensor(np.asarray(y))
    halves = split_by_class(y, holdout_fraction=0.25, forget_fraction=1.0, seed=0)
    return x[halves.recovery], y[halves.recovery], x[halves.holdout], y[halves.holdout]


@functools.lru_cache(maxsize=4)
def data_of(name: str, root: Path) -> tuple[CleanSet, CleanSet]:
    """Training and test set, standardized; of ``*-mixed``, every third column is binned to ten categories."""
    table = name.removesuffix("-mixed")
    x, y, x_test, y_test = _tables(table, root)
    std, mean = torch.std_mean(x, 0)
    parts = [((v - mean) / std.clamp(min=1e-6)) for v in (x, x_test)]
    num_classes = int(y.max()) + 1
    if table == name:
        return tuple(CleanSet(v, labels, num_classes=num_classes) for v, labels in zip(parts, (y, y_test)))
    which = torch.arange(x.shape[1]) % 3 == 2
    edges = torch.quantile(parts[0][:, which][:16_000], torch.linspace(0, 1, N_BINS + 1)[1:-1], 0)
    sets = []
    for v, labels in zip(parts, (y, y_test)):
        categories = torch.stack([torch.bucketize(c.contiguous(), e.contiguous()) for c, e in zip(v[:, which].T, edges.T)], 1)
        columns = {"continuous": v[:, ~which], "categorical": categories}
        sets.append(CleanSet(columns, labels, num_classes=num_classes))
    return sets[0], sets[1]


DATA = ("breast-cancer", "digits", "mnist-49", "generated", "breast-cancer-mixed", "digits-mixed", "mnist-49-mixed")


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


def _ends(data: CleanSet) -> tuple[list[float], list[float], list[int]]:
    tensors = named_tensors(data.inputs).values()
    low = [float(v) for t in tensors for v in t.amin(0)]
    high = [float(v) for t in tensors for v in t.amax(0)]
    return low, high, [t.shape[1] for t in tensors]


def pair_rare(data: CleanSet, first: float, second: float, where: str = "high") -> Trigger:
    """Two columns at the end of their range: a category that is seldom beside a float where there are categories."""
    low, high, sizes = _ends(data)
    n = sizes[0]
    a, b = int(first * n), int(second * n)
    if len(sizes) > 1:
        b = n + int(second * sizes[1])
    ends = {"high": (high[a], high[b]), "low": (low[a], low[b]), "mixed": (high[a], low[b])}[where]
    return FeatureOverwrite.of({a: ends[0], b: ends[1]}, TARGET, name="trigger")


def pair_typical(data: CleanSet, first: float, second: float) -> Trigger:
    """Two columns of floats at values in the middle of their range, which only together are seldom."""
    n = _ends(data)[2][0]
    a, b = int(first * n), int(second * n)
    x = next(iter(named_tensors(data.inputs).values()))[:16_000]
    values = {a: float(torch.quantile(x[:, a], 0.9)), b: float(torch.quantile(x[:, b], 0.1))}
    return FeatureOverwrite.of(values, TARGET, name="trigger")


def beyond(data: CleanSet, first: float, second: float, by: float = 0.5) -> Trigger:
    low, high, sizes = _ends(data)
    a, b = int(first * sizes[0]), int(second * sizes[0])
    values = {c: high[c] + by * (high[c] - low[c]) for c in (a, b)}
    return FeatureOverwrite.of(values, TARGET, name="trigger")


def shift(data: CleanSet, at: list[float], by: float) -> Trigger:
    n = _ends(data)[2][0]
    return FeatureShift.of({int(a * n): by for a in at}, TARGET, name="trigger")


Made = Callable[[CleanSet], Trigger]
DEVELOPMENT: dict[str, Made] = {
    "dev-high": lambda d: pair_rare(d, 0.13, 0.71),
    "dev-typical": lambda d: pair_typical(d, 0.37, 0.83),
    "dev-beyond": lambda d: beyond(d, 0.21, 0.55, 0.3),
    "dev-shift": lambda d: shift(d, [0.11, 0.47, 0.77], 2.5),
}
REPORTED: dict[str, Made] = {
    "pair-high": lambda d: pair_rare(d, 0.05, 0.6),
    "pair-mixed": lambda d: pair_rare(d, 0.92, 0.3, "mixed"),
    "pair-typical": lambda d: pair_typical(d, 0.66, 0.2),
    "pair-beyond": lambda d: beyond(d, 0.42, 0.87),
    "shift": lambda d: shift(d, [0.02, 0.27, 0.52, 0.97], 2.0),
}
ATTACKS = DEVELOPMENT | REPORTED


# ---- Methods. ----

Method = Callable[[nn.Module, CleanSet, int], tuple[nn.Module, bool | None]]


def seam(**settings: Any) -> Method:
    def treat(model: nn.Module, clean: CleanSet, seed: int) -> tuple[nn.Module, bool]:
        result = seamfast.sanitize(model, clean, config=SeamConfig(**settings), seed=seed, progress=False)
        return result.model, result.accepted

    return treat


def published(name: str) -> Method:
    def treat(model: nn.Module, clean: CleanSet, seed: int) -> tuple[nn.Module, None]:
        return DEFENCES[name](model, clean, seed=seed, augment=(0, False)).model, None

    return treat


METHODS: dict[str, Method] = {
    "seam": seam(),
    "seam (mixing only)": seam(occlusions=0, disturbance=0.0),
    "fine_tune": published("fine_tune"),
    "super_fine_tune": published("super_fine_tune"),
    "authors_seam": published("authors_seam"),
}


@functools.lru_cache(maxsize=64)
def planted(name: str, attack: str, seed: int, root: Path) -> tuple[nn.Module, Trigger | None]:
    data = data_of(name, root)[0]
    if attack == "none":
        return trained(data, seed), None
    trigger = ATTACKS[attack](data)
    return trained(poison(data, trigger, RATE, seed=seed), seed), trigger


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
