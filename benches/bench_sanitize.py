"""``sanitize`` against training from scratch: seconds, with ACC and ASR beside every row.

    python -m pytest benches/bench_sanitize.py --benchmark-only -s

The two are timed by turns in one process, threads pinned to one, and the ratio is the median over the turns of the
quotient. Recipes:

  scratch    ``seamfast.attacks.train``: SGD with Nesterov momentum 0.9, one-cycle rate 0.05, weight decay 5e-4, on all
             of the clean training set, resident, through the same engine and data path. digits: 40 epochs, batch 64;
             MNIST: ten epochs, batch 128. It yields the clean model that a team would train anew.
  sanitize   ``seamfast.sanitize`` with its defaults on 5 % of the training set, of a model with a planted 3x3 patch
             (5 % poison, ACC and ASR as received in the row). It includes copying, splitting, all evaluations and the
             report.

MNIST is read from the folder ``mnist`` in ``SEAMFAST_DATA``, or in ``../shared/data``; without it its row skips.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast import attacks
from seamfast.record import machine
from seamfast.triggers import Patch

DATA = Path(os.environ.get("SEAMFAST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RECIPES = {
    "digits": attacks.TrainConfig(epochs=40, batch_size=64),
    "mnist": attacks.TrainConfig(epochs=10),
}
TURNS = 3

pytestmark = pytest.mark.timeout(3600)  # the suite's limit is for tests


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_sanitize_against_scratch(benchmark: Any, name: str) -> None:
    options = {} if name == "digits" else {"root": DATA / name}
    if options and not options["root"].is_dir():
        pytest.skip(f"{options['root']} is not there")
    train_set = seamfast.load(name, split="train", **options)
    test_set = seamfast.load(name, split="test", **options)
    trigger = Patch.square(size=3, target=0)
    clean = train_set.draw(0.05)

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        channels, side, _ = train_set.image_shape
        return attacks.build("small_cnn", num_classes=10, in_channels=channels, image_size=side)

    received = attacks.train(fresh(), attacks.poison(train_set, trigger, 0.05), RECIPES[name])
    before = seamfast.evaluate(received, test_set, triggers=[trigger])

    cures: list[float] = []
    scratches: list[float] = []
    made: dict[str, torch.nn.Module] = {}

    def turn() -> None:
        start = time.perf_counter()
        made["cured"] = seamfast.sanitize(received, clean).model
        middle = time.perf_counter()
        made["scratch"] = attacks.train(fresh(), train_set, RECIPES[name])
        cures.append(middle - start)
        scratches.append(time.perf_counter() - middle)

    benchmark.pedantic(turn, rounds=TURNS, iterations=1, warmup_rounds=0)
    after = seamfast.evaluate(made["cured"], test_set, triggers=[trigger])
    scratch = seamfast.evaluate(made["scratch"], test_set, triggers=[trigger])
    ratios = [s / c for s, c in zip(scratches, cures, strict=True)]
    row = {
        "sanitize_s": statistics.median(cures),
        "scratch_s": statistics.median(scratches),
        "ratio": statistics.median(ratios),
        "ratio_spread": (min(ratios), max(ratios)),
        "n_clean": len(clean),
        **{
            f"{what}_{when}": value
            for when, e in (("received", before), ("sanitized", after), ("scratch", scratch))
            for what, value in (("acc", e.clean_accuracy.value), ("asr", e.worst_attack_success_rate))
        },
        "machine": machine(),
    }
    benchmark.extra_info.update(row)
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k != "machine"}
    print(f"\n{name}: {shown}")
