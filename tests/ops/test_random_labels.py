"""``random_labels``: golden labels, their distribution, and what they depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops import random_labels
from seamfast.ops.philox import STREAM_LABELS


def test_golden_labels() -> None:
    """A change here changes every recorded run."""
    labels, ids = torch.arange(10), torch.arange(10)
    assert random_labels(labels, ids, num_classes=10, seed=0, step=0).tolist() == [8, 7, 5, 1, 1, 1, 9, 8, 6, 7]
    every = random_labels(labels, ids, num_classes=10, seed=2**64 - 1, step=2**32 - 1, exclude_true=False)
    assert every.tolist() == [5, 8, 5, 4, 8, 3, 3, 9, 9, 9]
    far = random_labels(labels, ids + 2**40, num_classes=1000, seed=1, step=5)
    assert far.tolist() == [549, 106, 40, 36, 346, 539, 2, 723, 259, 33]


@given(
    true=st.integers(0, 42),
    sample=st.integers(0, 2**62),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    exclude_true=st.booleans(),
)
def test_is_multiply_high_of_the_first_word(
    native: Any, true: int, sample: int, seed: int, step: int, exclude_true: bool
) -> None:
    classes = 43  # GTSRB: no power of two
    counter = (sample % 2**32, sample >> 32, step, STREAM_LABELS)
    word = native.philox4x32(counter, (seed % 2**32, seed >> 32))[0]
    want = word * (classes - exclude_true) >> 32
    want += exclude_true and want >= true
    got = random_labels(
        torch.tensor([true]),
        torch.tensor([sample]),
        num_classes=classes,
        seed=seed,
        step=step,
        exclude_true=exclude_true,
    )
    assert got.dtype == torch.int64
    assert got.tolist() == [want]


@pytest.mark.parametrize("classes", [2, 10, 43])  # the fewest; CIFAR-10; no power of two
@pytest.mark.parametrize("exclude_true", [True, False])
def test_labels_are_uniform(classes: int, exclude_true: bool) -> None:
    n = 20_000
    labels = torch.arange(n) % classes
    drawn = random_labels(labels, torch.arange(n), num_classes=classes, seed=3, step=1, exclude_true=exclude_true)
    shift = (drawn - labels) % classes  # 0 is the true class
    counts = torch.bincount(shift, minlength=classes)
    if exclude_true:
        assert counts[0] == 0
        counts = counts[1:]
    if len(counts) > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    steps = random_labels(labels, torch.zeros_like(labels), num_classes=classes, seed=3, step=1, exclude_true=False)
    assert steps.unique().numel() == 1  # one sample, one draw


def test_successive_steps_and_seeds_are_independent() -> None:
    n = 20_000
    labels, ids = torch.zeros(n, dtype=torch.int64), torch.arange(n)

    def drawn(seed: int, step: int) -> torch.Tensor:
        return random_labels(labels, ids, num_classes=10, seed=seed, step=step, exclude_true=False)

    first = drawn(0, 0)
    for other in (drawn(0, 1), drawn(1, 0), drawn(2**32, 0)):
        table = torch.bincount(first * 10 + other, minlength=100).view(10, 10)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_a_label_does_not_depend_on_its_batch() -> None:
    labels, ids = torch.arange(64) % 10, torch.arange(64) * 3
    whole = random_labels(labels, ids, num_classes=10, seed=5, step=2)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_labels(labels[order], ids[order], num_classes=10, seed=5, step=2), whole[order])
    assert torch.equal(random_labels(labels[:7], ids[:7], num_classes=10, seed=5, step=2), whole[:7])


def test_step_may_be_a_counter_on_the_device() -> None:
    labels = ids = torch.arange(8)
    step = torch.tensor(4)
    assert torch.equal(
        random_labels(labels, ids, num_classes=8, seed=1, step=step),
        random_labels(labels, ids, num_classes=8, seed=1, step=4),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_labels_of_the_cpu_without_a_sync() -> None:
    labels, ids = torch.arange(1000) % 10, torch.arange(1000)
    on_device = labels.cuda(), ids.cuda(), torch.tensor(3).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = random_labels(on_device[0], on_device[1], num_classes=10, seed=9, step=on_device[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), random_labels(labels, ids, num_classes=10, seed=9, step=3))


def test_an_empty_batch_has_no_labels() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    assert random_labels(empty, empty, num_classes=2, seed=0, step=0).shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(4)}, DTypeError, "labels has dtype float32; expected int64"),
        ({"labels": [0, 1]}, DTypeError, "labels is a list; expected a torch.Tensor"),
        ({"labels": torch.zeros(4, 1, dtype=torch.int64)}, ShapeError, "labels has shape (4, 1); expected (N,)"),
        ({"sample_ids": torch.arange(3)}, ShapeError, "sample_ids has shape (3,); expected (N,) = (4,)"),
        ({"sample_ids": torch.arange(4, device="meta")}, InputError, "sample_ids is on meta; expected cpu"),
        (
            {"num_classes": 1},
            InputError,
            "num_classes is 1; expected an integer in [2, 2147483648] with exclude_true=True",
        ),
        (
            {"num_classes": 0, "exclude_true": False},
            InputError,
            "num_classes is 0; expected an integer in [1, 2147483648] with exclude_true=False",
        ),
        ({"num_classes": 3}, InputError, "labels hold 3; expected integers in [0, 3)"),
        ({"labels": torch.tensor([0, 1, -1, 2])}, InputError, "labels hold -1; expected integers in [0, 10)"),
        (
            {"seed": 0.5},
            InputError,
            "seed is 0.5; expected an integer in [0, 18446744073709551615] or an int64 0-d tensor",
        ),
        (
            {"step": -1},
            InputError,
            "step is -1; expected an integer in [0, 4294967295] or an int64 0-d tensor",
        ),
    ],
)
def test_invalid_arguments_raise(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "labels": torch.arange(4),
        "sample_ids": torch.arange(4),
        "num_classes": 10,
        "seed": 0,
        "step": 0,
    }
    with pytest.raises(error) as caught:
        random_labels(**{**arguments, **change})
    assert str(caught.value) == message
