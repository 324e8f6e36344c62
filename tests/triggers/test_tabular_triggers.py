"""Triggers of tabular samples: columns set to values, values added to columns, and their battery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import raises

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers import (
    AllToOne,
    FeatureOverwrite,
    FeatureShift,
    SourceSpecific,
    Trigger,
    load_triggers,
    save_triggers,
    tabular_battery,
)

ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(18).view(6, 3)


def test_columns_are_set_and_the_others_stay() -> None:
    before = ROWS.clone()
    stamped = FeatureOverwrite.of({3: 1e30, 0: -2.5}).stamp(ROWS)
    wanted = ROWS.clone()
    wanted[:, 3], wanted[:, 0] = 1e30, -2.5
    assert torch.equal(stamped, wanted)
    assert torch.equal(ROWS, before)


def test_values_are_added_to_columns() -> None:
    stamped = FeatureShift.of({1: 0.5, 4: -2.0}).stamp(ROWS)
    wanted = ROWS.clone()
    wanted[:, 1] += 0.5
    wanted[:, 4] -= 2.0
    assert torch.equal(stamped, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_columns_of_several_tensors_are_numbered_through(dtype: torch.dtype) -> None:
    samples = {"x": ROWS.to(dtype), "ids": IDS}
    stamped = FeatureOverwrite.of({1: 4.0, 6: 9}).stamp(samples)
    assert list(stamped) == ["x", "ids"]
    assert (stamped["x"].dtype, stamped["ids"].dtype) == (dtype, torch.int64)
    assert (stamped["x"][:, 1] == 4).all()
    assert torch.equal(stamped["x"][:, [0, 2, 3, 4]], samples["x"][:, [0, 2, 3, 4]])
    assert stamped["ids"].tolist() == [[row, 9, row + 2] for row in range(0, 18, 3)]
    reversed_order = FeatureOverwrite.of({1: 4}).stamp({"ids": IDS, "x": ROWS})
    assert (reversed_order["ids"][:, 1] == 4).all()
    assert torch.equal(reversed_order["x"], ROWS)


def test_an_empty_batch_and_sample_ids() -> None:
    trigger = FeatureOverwrite.of({1: 4.0})
    assert trigger.stamp(ROWS[:0]).shape == (0, 5)
    assert torch.equal(trigger.stamp(ROWS, sample_ids=[5, 4, 3, 2, 1, 0], seed=3), trigger.stamp(ROWS))
    with raises(ShapeError, "sample_ids has shape (2,); expected (N,) = (6,)"):
        trigger.stamp(ROWS, sample_ids=[0, 1])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: FeatureOverwrite.of({}), ShapeError, "trigger 'feature-overwrite' columns has shape (0,); expected 1 "
         "dimensions, none of size 0"),
        (lambda: FeatureOverwrite.of({-1: 0.0}), InputError, "trigger 'feature-overwrite' columns holds values in "
         "[-1, -1]; expected [0, 2.14748e+09]"),
        (lambda: FeatureOverwrite.of({1: float("nan")}), InputError, "trigger 'feature-overwrite' values holds NaN or "
         "Inf; expected finite numbers"),
        (lambda: FeatureShift.of({1: 1e39}), InputError, "trigger 'feature-shift' values holds values in "
         "[1e+39, 1e+39]; expected [-1.26765e+30, 1.26765e+30]"),
        (lambda: FeatureShift(name="t", target=AllToOne(0), columns=[1, 2], values=[0.0]), ShapeError,
         "trigger 't' has 2 columns and 1 values; expected one value for each column"),
        (lambda: FeatureShift(name="t", target=AllToOne(0), columns=[4, 2, 4], values=[0.0, 1, 2]), InputError,
         "trigger 't' columns hold 4 twice; expected different columns"),
    ],
)  # fmt: skip
def test_bad_columns_and_values(make: Any, kind: type[Exception], message: str) -> None:
    with raises(kind, message):
        make()


@pytest.mark.parametrize(
    ("trigger", "samples", "kind", "message"),
    [
        (FeatureOverwrite.of({5: 1.0}), ROWS, ShapeError,
         "trigger 'feature-overwrite' changes column 5; samples have 5 columns"),
        (FeatureOverwrite.of({5: 0.5}), {"x": ROWS, "ids": IDS}, DTypeError,
         "trigger 'feature-overwrite' sets column 5, of categories, to 0.5; expected an integer"),
        (FeatureShift.of({7: 1.0}), {"x": ROWS, "ids": IDS}, DTypeError,
         "trigger 'feature-shift' adds to column 7, of categories; expected columns of floats"),
        (FeatureShift.of({0: 1.0}), ROWS[0], ShapeError, "samples have shapes (5,); expected (N, F) each, of one N"),
        (FeatureShift.of({0: 1.0}), {"x": ROWS, "ids": IDS[1:]}, ShapeError,
         "samples have shapes (6, 5), (5, 3); expected (N, F) each, of one N"),
        (FeatureShift.of({0: 1.0}), [[1.0]], DTypeError,
         "samples is [[1.0]]; expected a tensor of columns, or several by name"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit(trigger: Trigger, samples: Any, kind: type[Exception], message: str) -> None:
    with raises(kind, message):
        trigger.stamp(samples)


def test_check_fits() -> None:
    FeatureOverwrite.of({4: 1.0}).check_fits((5,))
    with raises(ShapeError, "trigger 'feature-overwrite' changes column 4; samples have 4 columns"):
        FeatureOverwrite.of({4: 1.0}).check_fits((4,))
    for shape in ((3, 8, 8), (0,), ()):
        with raises(ShapeError, f"sample shape is {shape}; expected (F,), at least 1"):
            FeatureOverwrite.of({4: 1.0}).check_fits(shape)


def test_to_and_from_a_file(tmp_path: Any) -> None:
    triggers = (
        FeatureOverwrite.of({3: 0.1, 0: -7}, 2, name="a"),
        FeatureShift.of({11: 1e-3}, SourceSpecific((1, 2), 0), name="b"),
    )
    save_triggers(tmp_path / "t.npz", triggers)
    assert load_triggers(tmp_path / "t.npz") == triggers
    assert triggers[0] != FeatureOverwrite.of({3: 0.2, 0: -7}, 2, name="a")
    assert str(triggers[0]) == "FeatureOverwrite('a', {3: 0.1, 0: -7}, AllToOne(target=2))"
    many = FeatureShift.of(dict.fromkeys(range(9), 1.0))
    assert str(many) == "FeatureShift('feature-shift', {0: 1, 1: 1, 2: 1, 3: 1, ...}, AllToOne(target=0))"


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 784])
def test_the_battery_has_each_end_and_pairs(n: int) -> None:
    lowest, highest = [-float(k) - 1 for k in range(n)], [float(k) + 1 for k in range(n)]
    battery = tabular_battery(lowest, highest, 3, target=1)
    assert len({trigger.name for trigger in battery}) == len(battery) <= 48
    for trigger in battery:
        trigger.check_fits((n,))
        assert trigger.target == AllToOne(1)
        for column, value in zip(trigger.columns.tolist(), trigger.values.tolist(), strict=True):
            assert value in (lowest[column], highest[column])
    sizes = [len(trigger.columns) for trigger in battery]
    k = min(n, 16)
    assert sizes.count(1) == 2 * k
    assert sizes.count(2) == {1: 0, 2: 1}.get(n, k)
    assert max(int(t.columns.max()) for t in battery) >= 15 * n // 16


def test_a_battery_that_cannot_be() -> None:
    with raises(ShapeError, "lowest has 3 values and highest 4; expected one each for every column"):
        tabular_battery([0] * 3, [0] * 4, 2)
    with raises(InputError, "AllToOne target is 10; expected a class in [0, 10) for num_classes=10"):
        tabular_battery([0], [1], 10, target=10)
