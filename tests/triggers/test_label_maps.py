"""Label maps: what the attacker wants, who counts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers import AllToAll, AllToOne, LabelMap, SourceSpecific

LABELS = [0, 1, 2, 3, 3, 0]


@pytest.mark.parametrize(
    ("label_map", "targets", "eligible"),
    [
        (AllToOne(3), [3, 3, 3, 3, 3, 3], [1, 1, 1, 0, 0, 1]),
        (AllToAll(), [1, 2, 3, 0, 0, 1], [1, 1, 1, 1, 1, 1]),
        (AllToAll(-1), [3, 0, 1, 2, 2, 3], [1, 1, 1, 1, 1, 1]),
        (AllToAll(6), [2, 3, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1]),
        (SourceSpecific(0, 2), [2, 1, 2, 3, 3, 2], [1, 0, 0, 0, 0, 1]),
        (SourceSpecific((3, 1), 2), [0, 2, 2, 2, 2, 0], [0, 1, 0, 1, 1, 0]),
        # The target itself is no source that can move.
        (SourceSpecific((1, 2), 2), [0, 2, 2, 3, 3, 0], [0, 1, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_targets_and_eligible(label_map: LabelMap, targets: list[int], eligible: list[int], dtype: torch.dtype) -> None:
    labels = torch.tensor(LABELS, dtype=dtype)
    before = labels.clone()
    got = label_map.targets(labels, 4)
    assert got.dtype == torch.int64
    assert got.tolist() == targets
    counted = label_map.eligible(labels, 4)
    assert counted.dtype == torch.bool
    assert counted.tolist() == [bool(e) for e in eligible]
    assert torch.equal(labels, before)


def test_arrays_and_lists_are_taken() -> None:
    assert AllToAll().targets(np.array(LABELS), 4).tolist() == AllToAll().targets(LABELS, 4).tolist()


def test_no_labels() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for label_map in (AllToOne(0), AllToAll(), SourceSpecific((1,), 0)):
        assert label_map.targets(empty, 2).shape == label_map.eligible(empty, 2).shape == (0,)


def test_maps_compare_by_value() -> None:
    assert SourceSpecific((3, 1, 3), 0) == SourceSpecific((1, 3), 0) == SourceSpecific(np.array([3, 1]), 0)
    assert AllToOne(np.int64(2)) == AllToOne(2)
    assert AllToOne(1) != AllToOne(2)
    assert hash(SourceSpecific([1], 0)) == hash(SourceSpecific((1,), 0))
    assert repr(SourceSpecific(1, 0)) == "SourceSpecific(source=(1,), target=0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AllToOne(-1), "AllToOne target is -1; expected an integer from 0"),
        (lambda: AllToOne(1.0), "AllToOne target is 1.0"),
        (lambda: AllToOne(True), "AllToOne target is True"),
        (lambda: AllToOne("0"), "AllToOne target is '0'"),
        (lambda: AllToOne(2**31), "AllToOne target is 2147483648"),
        (lambda: AllToAll(0), "AllToAll shift is 0; expected an integer other than 0"),
        (lambda: AllToAll(0.5), "AllToAll shift is 0.5"),
        (lambda: SourceSpecific((), 0), "SourceSpecific source is empty; expected at least one class"),
        (lambda: SourceSpecific("12", 0), "SourceSpecific source is '12'; expected a class or several"),
        (lambda: SourceSpecific(None, 0), "SourceSpecific source is None; expected a class or several"),
        (lambda: SourceSpecific(True, 0), "SourceSpecific source is True; expected a class or several"),
        (lambda: SourceSpecific((1, -2), 0), "SourceSpecific source is -2; expected an integer from 0"),
        (
            lambda: SourceSpecific(3, 3),
            r"SourceSpecific source is \(3,\) and target 3; expected a source other than the target",
        ),
    ],
)
def test_maps_that_make_no_sense(make: Callable[[], Any], message: str) -> None:
    refused(InputError, message, make)


@pytest.mark.parametrize(
    ("label_map", "classes", "message"),
    [
        (AllToOne(4), 4, r"AllToOne target is 4; expected a class in \[0, 4\) for num_classes=4"),
        (AllToAll(8), 4, "AllToAll shift is 8; expected no multiple of num_classes=4"),
        (SourceSpecific((1,), 9), 4, r"SourceSpecific target is 9; expected a class in \[0, 4\)"),
        (SourceSpecific((1, 9), 0), 4, r"SourceSpecific source is 9; expected a class in \[0, 4\)"),
        (AllToOne(0), 1, "num_classes is 1; expected an integer from 2"),
        (AllToOne(0), 2.0, "num_classes is 2.0; expected an integer from 2"),
    ],
)
def test_maps_against_the_number_of_classes(label_map: LabelMap, classes: Any, message: str) -> None:
    for method in (label_map.targets, label_map.eligible):
        refused(InputError, message, method, [0, 1], classes)
    refused(InputError, message, label_map.check, classes)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), ShapeError, r"labels has shape \(2, 1\); expected \(N,\)"),
        (torch.zeros(2), DTypeError, "labels has dtype float32; expected an integer dtype"),
        (torch.zeros(2, dtype=torch.bool), DTypeError, "labels has dtype bool; expected an integer dtype"),
        (np.array(["a"]), DTypeError, "labels has dtype <U1; expected numbers"),
    ],
)
def test_labels_that_are_none(labels: Any, kind: type[Exception], message: str) -> None:
    refused(kind, message, AllToOne(0).eligible, labels, 2)
