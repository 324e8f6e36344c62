"""``gather_augment`` in C++ on one thread, against copying its output, the PyTorch reference, and a loop over images.

Measured on 2 virtual cores of a Xeon (Sapphire Rapids, AVX-512) under other load, GCC 12.2, torch 2.13 CPU, 15 rounds:
CIFAR in batches of 128 to float32: 1.3 M images/s cropped and flipped, 2.0 M plain (0.9 and 1.4 times memcpy's speed).
224 x 224: 31 k images/s (1.3 times). 22 to 70 times as fast as the reference, 16 times as fast as the loader. By:

    python -m pytest benches/bench_gather_augment.py --benchmark-only

Every ratio is of two things timed by turns in one process (the median over the turns of the quotient): a machine's
speed drifts more between runs than most ratios are large. Threads are pinned to one everywhere: PyTorch's, the
kernel's, and each loader worker's. A row holds images/s and GB/s of output of the fastest round, and whether the
reference gives the same bits ("match").

Baselines:
  memcpy      libc's, of as many bytes as the output has. Above 1, the kernel is faster than a copy of its output (it
              reads a quarter of the bytes, or half); below 1, its arithmetic costs more than the memory does.
  reference   the same op with ``backend="reference"``: advanced indexing and a table lookup in eager PyTorch.
  loader      what most training code does: ``torch.utils.data.DataLoader`` with 2 persistent workers, batch 128,
              default collate. Each image by itself is padded (NumPy, reflect), cropped, flipped, turned to float32 by
              ``/ 255`` and normalised. One epoch of 2048 images, after one that starts the workers. The workers have
              a core each, if there are so many; the kernel has one.
"""

from __future__ import annotations

import ctypes
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seamfast.ops import backends, cpp, gather_augment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAD = 4

pytestmark = pytest.mark.skipif(cpp.why_unavailable() is not None, reason="seamfast._native is not built")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratio(
    baseline: Callable[[], object], ours: Callable[[], object], turns: int = 9, turn_seconds: float = 0.05
) -> float:
    """How many times as long ``baseline`` takes, by turns."""
    calls = (baseline, ours)
    repeats = [max(1, round(turn_seconds / max(seconds(call, 1), seconds(call, 1)))) for call in calls]
    times = [[seconds(call, n) for call, n in zip(calls, repeats, strict=True)] for _ in range(turns)]
    return statistics.median(slow / fast for slow, fast in times)


def images(count: int, size: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "batch", "dtype", "channels_last", "augment"),
    [
        (32, 128, torch.float32, False, True),  # CIFAR, the batch of a training step
        (32, 128, torch.float32, False, False),  # the same for evaluation
        (32, 128, torch.bfloat16, True, True),  # what a CPU with bfloat16 trains fastest on
        (32, 4096, torch.float32, False, True),  # 50 MB of output: no cache holds it
        (224, 32, torch.float32, False, True),  # ImageNet
        (224, 32, torch.bfloat16, True, True),
    ],
)
def test_against_memcpy_and_reference(
    benchmark: Any, size: int, batch: int, dtype: torch.dtype, channels_last: bool, augment: bool
) -> None:
    data = images(8 * batch if size == 32 else 128, size)
    indices = torch.randint(0, len(data), (batch,), generator=torch.Generator().manual_seed(1))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out, other = (torch.zeros(batch, 3, size, size, dtype=dtype).to(memory_format=layout) for _ in range(2))
    arguments: dict[str, Any] = {"mean": MEAN, "std": STD, "dtype": dtype, "channels_last": channels_last, "threads": 1}
    if augment:
        arguments |= {"pad": PAD, "flip": True}
    n_bytes = out.numel() * out.element_size()

    def ours() -> Tensor:
        return gather_augment(data, indices, **arguments, backend="cpp", out=out)

    def reference() -> Tensor:
        return gather_augment(data, indices, **arguments, backend="reference")

    def memcpy() -> None:
        ctypes.memmove(other.data_ptr(), out.data_ptr(), n_bytes)

    benchmark.pedantic(ours, rounds=15, iterations=max(1, 2**25 // n_bytes), warmup_rounds=2)
    fastest = benchmark.stats.stats.min
    benchmark.extra_info |= {
        "isa": next(row["isa"] for row in backends() if row["backend"] == "cpp"),
        "images_per_second": batch / fastest,
        "output_gb_per_second": n_bytes / fastest / 1e9,
        "memcpy_seconds_over_ours": ratio(memcpy, ours),
        "reference_seconds_over_ours": ratio(reference, ours, turns=3),
        "match": torch.equal(ours(), reference()),
    }
    assert benchmark.extra_info["match"]


class PerImage(Dataset[Tensor]):
    """One image at a time, as a training script transforms it."""

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        size = self.data.shape[-1]
        padded = np.pad(self.data[index].numpy(), ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
        down, right = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = torch.from_numpy(padded[:, down : down + size, right : right + size])
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image.float() / 255 - self.mean) / self.std


def test_against_a_loader_of_single_images(benchmark: Any) -> None:
    data, batch = images(2048, 32), 128
    order = torch.arange(len(data)).split(batch)

    def ours() -> None:
        for epoch_indices in order:
            gather_augment(data, epoch_indices, mean=MEAN, std=STD, pad=PAD, flip=True, threads=1, backend="cpp")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        loader = DataLoader(
            PerImage(data),
            batch_size=batch,
            num_workers=2,
            persistent_workers=True,
            worker_init_fn=lambda _: torch.set_num_threads(1),
        )

        def epoch() -> None:
            for _ in loader:
                pass

        epoch()  # starts the workers
        benchmark.pedantic(ours, rounds=15, iterations=5, warmup_rounds=1)
        benchmark.extra_info |= {
            "images_per_second": len(data) / benchmark.stats.stats.min,
            "loader_seconds_over_ours": ratio(epoch, ours, turns=3, turn_seconds=0.01),
        }
