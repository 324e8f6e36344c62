"""The outcome counters on every backend, against a slow loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import check_outcomes
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops import OUTCOMES, count_outcomes, cpp
from seamfast.ops.arguments import CountArguments
from seamfast.triggers import AllToAll, AllToOne, SourceSpecific


def batch(n: int, classes: int, triggers: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with many ties and some NaN, labels, targets, and triggers from -1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (n, classes), generator=generator).float()
    logits[torch.rand(n, classes, generator=generator) < 0.1 / classes] = float("nan")
    labels = torch.randint(0, classes, (n,), generator=generator)
    targets = torch.randint(0, classes, (triggers, classes), generator=generator)
    return logits, labels, targets, torch.randint(-1, triggers, (n,), generator=generator)


def count(backend: Backend, logits: Tensor, labels: Tensor, targets: Tensor, ids: Tensor, **more: Any) -> Any:
    rows, classes = len(targets) + 1, logits.shape[1]
    class_correct = torch.zeros(rows, classes, dtype=torch.int64, device=backend.device)
    on = [value.to(backend.device) for value in (logits, labels, targets, ids)]
    counters = count_outcomes(*on, class_correct=class_correct, backend=backend.name, **more)
    return counters.cpu(), class_correct.cpu()


@pytest.mark.parametrize(
    ("n", "classes", "triggers"),
    [
        (0, 10, 2),  # an empty batch
        (1, 2, 1),
        (7, 3, 0),  # no trigger at all
        (128, 10, 16),  # an evaluation's batch
        (513, 43, 3),
        (20, 64, 1),  # the last and the first of two ways in C++
        (20, 65, 1),
        (9, 200, 2),
        (3, 1001, 1),  # odd: rows are unaligned
        (2, 1, 1),  # one class: nothing to tell apart
    ],
)
def test_against_a_slow_loop(backend: Backend, n: int, classes: int, triggers: int) -> None:
    logits, labels, targets, ids = batch(n, classes, triggers)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = logits.to(dtype)
        check_outcomes(x, labels, targets, ids, count(backend, x, labels, targets, ids))
    strided = logits.t().contiguous().t()
    check_outcomes(strided, labels, targets, ids, count(backend, strided, labels, targets, ids))


def test_very_many_classes(backend: Backend) -> None:
    logits = torch.randn(3, 21843, generator=torch.Generator().manual_seed(0))
    logits[2, 21842] = logits[2, 5000] = 9.0
    labels = torch.tensor([int(logits[0].argmax()), 0, 5000])
    counters = count_outcomes(logits.to(backend.device), labels.to(backend.device), backend=backend.name)
    assert counters.tolist() == [[3, 2, 0, 0, 0, 0]]


def test_label_maps_as_targets(backend: Backend) -> None:
    maps = [AllToOne(2), AllToAll(1), SourceSpecific((1, 3), 0)]
    targets = torch.stack([m.targets(torch.arange(5), 5) for m in maps])
    logits, labels, _, _ = batch(200, 5, 1)
    ids = torch.arange(200) % 4 - 1
    found = count(backend, logits, labels, targets, ids)
    check_outcomes(logits, labels, targets, ids, found)
    for number, label_map in enumerate(maps):
        eligible = label_map.eligible(labels[ids == number], 5)
        assert int(found[0][number, OUTCOMES.index("n_eligible")]) == int(eligible.sum())


def test_batches_add_up(backend: Backend) -> None:
    logits, labels, targets, ids = batch(100, 10, 3)
    counters = torch.zeros(4, len(OUTCOMES), dtype=torch.int64, device=backend.device)
    for part in torch.arange(100).split(7):
        on = [value.to(backend.device) for value in (logits[part], labels[part], targets, ids[part])]
        assert count_outcomes(*on, counters=counters, backend=backend.name) is counters
    assert torch.equal(counters.cpu(), count(backend, logits, labels, targets, ids)[0])


def test_one_trigger_for_all_and_none(backend: Backend) -> None:
    logits, labels, targets, _ = (value.to(backend.device) for value in batch(30, 4, 2))
    for given_, ids in ((1, 1), (None, 0), (-1, -1)):
        got = count_outcomes(logits, labels, targets, given_, backend=backend.name)
        everywhere = torch.full((30,), ids, device=backend.device)
        assert torch.equal(got, count_outcomes(logits, labels, targets, everywhere, backend=backend.name))
    assert count_outcomes(logits, labels, backend=backend.name).shape == (1, len(OUTCOMES))


def test_counting_bumps_the_version_of_the_counters(backend: Backend) -> None:
    logits, labels, targets, ids = (value.to(backend.device) for value in batch(5, 3, 1))
    counters = torch.zeros(2, len(OUTCOMES), dtype=torch.int64, device=backend.device)
    before = counters._version
    count_outcomes(logits, labels, targets, ids, counters=counters, backend=backend.name)
    assert counters._version > before


def test_threads_and_isa_change_nothing(native: Any) -> None:
    for classes in (10, 100):
        logits, labels, targets, ids = batch(10_007, classes, 3)
        found = []
        for threads in (1, 4):
            for isa in native.isas():
                counters = torch.zeros(4, len(OUTCOMES), dtype=torch.int64)
                cpp.count_outcomes(CountArguments(counters, None, logits, labels, ids, targets, "cpp", threads), isa)
                found.append(counters)
        assert all(torch.equal(counters, found[0]) for counters in found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 50), classes=st.integers(1, 130), triggers=st.integers(0, 4), seed=st.integers(0, 999))
def test_any_shape(native: Any, n: int, classes: int, triggers: int, seed: int) -> None:
    arguments = batch(n, classes, triggers, seed)
    cpu = torch.device("cpu")
    for name in ("reference", "cpp"):
        check_outcomes(*arguments, count(Backend(name, cpu), *arguments))


GOOD: dict[str, Any] = {
    "logits": torch.zeros(4, 10),
    "labels": torch.arange(4),
    "targets": torch.zeros(2, 10, dtype=torch.int64),
    "trigger_ids": torch.tensor([-1, 0, 1, 1]),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": 3}, DTypeError, "logits is a int; expected a torch.Tensor"),
        (
            {"logits": torch.zeros(4, 10).double()},
            DTypeError,
            "logits has dtype float64; expected one of float32, bfloat16, float16",
        ),
        ({"logits": torch.zeros(4)}, ShapeError, "logits has shape (4,); expected (N, C)"),
        ({"labels": torch.arange(5)}, ShapeError, "labels has shape (5,); expected (N,) = (4,)"),
        (
            {"labels": torch.tensor([0, 1, 2, 10])},
            InputError,
            "labels hold 10 at position 3; expected integers in [0, 10)",
        ),
        (
            {"trigger_ids": torch.tensor([-1, 0, 2, 1])},
            InputError,
            "trigger_ids hold 2 at position 2; expected integers in [-1, 2)",
        ),
        (
            {"trigger_ids": torch.tensor([-2, 0, 1, 1])},
            InputError,
            "trigger_ids hold -2 at position 0; expected integers in [-1, 2)",
        ),
        ({"trigger_ids": 2}, InputError, "trigger_ids is 2; expected an integer in [-1, 1] or a tensor of such"),
        (
            {"targets": torch.zeros(2, 9, dtype=torch.int64)},
            ShapeError,
            "targets has shape (2, 9); expected (T, C) with C = 10",
        ),
        ({"targets": torch.zeros(2, 10)}, DTypeError, "targets has dtype float32; expected int64"),
        (
            {"counters": torch.zeros(2, 6, dtype=torch.int64)},
            ShapeError,
            "counters has shape (2, 6); expected (T + 1, 6) with T + 1 = 3",
        ),
        ({"counters": torch.zeros(3, 6)}, DTypeError, "counters has dtype float32; expected int64"),
        (
            {"counters": torch.zeros(6, 3, dtype=torch.int64).t()},
            InputError,
            "counters has strides (1, 3); expected a contiguous tensor",
        ),
        (
            {"class_correct": torch.zeros(3, 9, dtype=torch.int64)},
            ShapeError,
            "class_correct has shape (3, 9); expected (T + 1, C) with T + 1 = 3, C = 10",
        ),
        ({"threads": -1}, InputError, "threads is -1; expected an integer in [0, 1024]"),
    ],
)
def test_invalid_arguments_raise(native: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    for name in ("reference", "cpp"):
        counters = torch.full((3, 6), 7)
        with pytest.raises(error) as caught:
            count_outcomes(**{**GOOD, "counters": counters, "backend": name, **change})
        assert str(caught.value) == message
        assert bool((counters == 7).all())  # nothing has been counted


def test_rows_out_of_range_are_not_counted_in_triton(backend: Backend) -> None:
    if backend.name != "triton":
        pytest.skip("it raises here, or fails an assertion on the device")
    arguments = {name: value.to(backend.device) for name, value in GOOD.items()}
    arguments["labels"] = torch.tensor([0, 10, -1, 3], device=backend.device)
    arguments["trigger_ids"] = torch.tensor([-1, 0, 1, 5], device=backend.device)
    counters = count_outcomes(**arguments, backend="triton")
    assert counters.tolist() == [[0] * 6, [0] * 6, [1, 1, 0, 0, 0, 0]]
