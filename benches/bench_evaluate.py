"""ACC, ASR and RA of 16 triggers over 10,000 images, against a loop like BackdoorBench's, one thread for the model.

    python -m pytest benches/bench_evaluate.py --benchmark-only

Baseline, written after how that benchmark evaluates (one test set a trigger, made image by image): for the clean data
and then for each trigger a ``DataLoader`` with 2 workers, batch 128, whose data set turns an array into a PIL image,
stamps the trigger on it (in NumPy, on the uint8 image), and runs ToTensor and Normalize; samples of the target class
are left out of the triggered sets; the loop takes the argmax and adds ``.item()`` counts batch by batch. The stamping
of an image is the one NumPy expression of the trigger's formula. Ours is ``seamfast.evaluate``.

The model is a tiny CNN (two 3x3 convolutions of 8 and 16 channels, pooling, one linear layer): with a larger one, both
sides mostly wait for its forward pass. "Match": the same counts for clean data and for every trigger.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import seamfast
from seamfast.ops import count_outcomes, cpp
from seamfast.triggers import Blend, Patch, Sinusoid, Trigger

N, CLASSES, TARGET, BATCH = 10_000, 10, 0, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

pytestmark = pytest.mark.skipif(cpp.why_unavailable() is not None, reason="seamfast._native is not built")


def triggers() -> list[tuple[Trigger, Callable[[np.ndarray], np.ndarray]]]:
    """Sixteen triggers, each with its formula on one (H, W, C) image."""
    found: list[tuple[Trigger, Callable[[np.ndarray], np.ndarray]]] = []
    for size in (2, 3, 4, 5):
        for value in (0, 255):

            def patch(x: np.ndarray, size: int = size, value: int = value) -> np.ndarray:
                x = x.copy()
                x[31 - size : 31, 31 - size : 31] = value
                return x

            found.append((Patch.square(size, value, TARGET, name=f"patch {size} {value}"), patch))
    for seed in range(4):
        blend = Blend.noise((3, 32, 32), 0.2, TARGET, seed=seed, name=f"blend {seed}")
        pattern = blend.pattern.transpose(1, 2, 0)

        def mix(x: np.ndarray, pattern: np.ndarray = pattern) -> np.ndarray:
            return ((1 - 0.2) * x + 0.2 * pattern).astype(np.uint8)

        found.append((blend, mix))
    for delta in (10, 20, 30, 40):
        signal = np.round(delta * np.sin(2 * np.pi * np.arange(32) * 6 / 32), 9)

        def wave(x: np.ndarray, signal: np.ndarray = signal) -> np.ndarray:
            return np.clip(x + signal[None, :, None], 0, 255).astype(np.uint8)

        found.append((Sinusoid.of(delta, 6, TARGET, name=f"sinusoid {delta}"), wave))
    return found


class Stamped(Dataset[tuple[Tensor, int]]):
    """One image at a time."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, stamp: Callable[[np.ndarray], np.ndarray] | None
    ) -> None:
        self.pixels, self.labels, self.stamp = pixels, labels, stamp
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index])
        if self.stamp is not None:
            image = Image.fromarray(self.stamp(np.asarray(image)))
        tensor = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()
        return tensor.to(torch.float32).div(255).sub_(self.mean).div_(self.std), int(self.labels[index])


def tiny_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    ).eval()


def made(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, (n,), generator=generator)


def by_seamfast(model: nn.Module, pixels: Tensor, labels: Tensor, device: str) -> list[tuple[int, ...]]:
    """``(correct, samples)``, then ``(hits, correct, samples)`` for each trigger."""
    data = seamfast.CleanSet(pixels, labels, mean=MEAN, std=STD)
    known = [trigger for trigger, _ in triggers()]
    found = seamfast.evaluate(model, data, triggers=known, device=device, progress=False)
    triggered = [(t.n_hit, t.robust_accuracy.n_hit, t.n_eligible) for t in found.triggers]
    return [(found.clean_accuracy.n_hit, len(labels)), *triggered]


def by_loop(model: nn.Module, pixels: Tensor, labels: Tensor, device: str) -> list[tuple[int, ...]]:
    """The same by the loop that the top of this file describes."""
    array, true = pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()
    rows: list[tuple[int, ...]] = []
    for stamp in (None, *(stamp for _, stamp in triggers())):
        kept = slice(None) if stamp is None else true != TARGET
        loader = DataLoader(
            Stamped(array[kept], true[kept], stamp),
            batch_size=BATCH,
            num_workers=2,
            pin_memory=device != "cpu",
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )
        n_hit = n_right = n = 0
        with torch.no_grad():
            for inputs, wanted in loader:
                inputs, wanted = inputs.to(device, non_blocking=True), wanted.to(device, non_blocking=True)
                predicted = model(inputs).argmax(1)
                n_hit += (predicted == TARGET).sum().item()
                n_right += (predicted == wanted).sum().item()
                n += len(wanted)
        rows.append((n_right, n) if stamp is None else (n_hit, n_right, n))
    return rows


def close(got: list[tuple[int, ...]], want: list[tuple[int, ...]]) -> bool:
    """Whether counts agree. Another batch size may move a logit by its last bit, and with it a near tie or two."""
    pairs = ((a, b) for left, right in zip(got, want, strict=True) for a, b in zip(left, right, strict=True))
    return all(abs(a - b) <= 2 for a, b in pairs)


def test_evaluate_16_triggers(race: Any) -> None:
    arguments: Any = (tiny_cnn(), *made(N), "cpu")

    def ours() -> list[tuple[int, ...]]:
        return by_seamfast(*arguments)

    def loop() -> list[tuple[int, ...]]:
        return by_loop(*arguments)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        got, want = ours(), loop()
        race(
            f"evaluate, 16 triggers x {N} images, tiny CNN",
            ours,
            "a DataLoader a trigger, .item() a batch",
            loop,
            match=close(got, want),
            target=4,
            turns=3,
            acc=got[0][0] / N,
        )


@pytest.mark.parametrize("classes", [10, 1000, 21843])
def test_count_against_tensor_ops(race: Any, classes: int) -> None:
    """A batch of 512 under 16 triggers: argmax, comparisons and one ``index_add_``, no ``.item()`` on either side."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, classes, generator=generator)
    labels = torch.randint(0, classes, (512,), generator=generator)
    ids = torch.randint(0, 16, (512,), generator=generator)
    targets = torch.zeros(16, classes, dtype=torch.int64)
    counters, theirs = (torch.zeros(17, 6, dtype=torch.int64) for _ in range(2))

    def ours() -> Tensor:
        return count_outcomes(logits, labels, targets, ids, counters=counters, backend="cpp", threads=1)

    def tensor_ops() -> Tensor:
        predicted, wanted = logits.argmax(1), targets[ids, labels]
        correct, eligible, nan = predicted == labels, wanted != labels, logits.isnan().any(1)
        columns = (
            torch.ones_like(correct),
            correct,
            eligible,
            eligible & (predicted == wanted),
            eligible & correct,
            nan,
        )
        return theirs.index_add_(0, ids, torch.stack(columns, 1).long())

    match = torch.equal(ours(), tensor_ops())
    race(f"count 512 x {classes}, 16 triggers", ours, "tensor ops", tensor_ops, match=match)
