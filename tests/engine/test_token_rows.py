"""``surplus_of_rows`` against NumPy in float64, and which tokens it compares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from seamfast.engine.token_rows import surplus_of_rows


def table(n: int = 300, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_it_is_the_distance_from_the_median_in_spreads_of_tokens_as_rare() -> None:
    rows, allowed = table(), torch.arange(5, 300)
    counts = torch.arange(300) % 3
    found = surplus_of_rows(rows, counts, allowed).double().numpy()
    values = rows.double().numpy()
    size = np.linalg.norm(values - values[5:].mean(0), axis=1)
    for n in range(3):
        alike = np.array([i for i in range(5, 300) if i % 3 == n])
        low, median, high = np.quantile(size[alike], [0.16, 0.5, 0.84])
        np.testing.assert_allclose(found[alike], (size[alike] - median) / ((high - low) / 2), rtol=1e-4, atol=1e-4)
    assert np.isneginf(found[:5]).all()


def test_a_row_is_compared_with_tokens_that_occur_as_often() -> None:
    rows = table(width=32)
    counts = (torch.arange(300) >= 150).long()  # the second half occurs once, and its rows are twice as large
    rows[150:] *= 2
    rows[10] *= 2
    surplus = surplus_of_rows(rows, counts, torch.arange(300))
    assert int(surplus.argmax()) == 10
    assert surplus[10] > 4
    assert surplus[150:].median().abs() < 0.01


@pytest.mark.parametrize(("counts", "is_compared"), [(0, True), (8, True), (9, False)])
def test_tokens_that_occur_often_are_not_compared(counts: int, is_compared: bool) -> None:
    surplus = surplus_of_rows(table(), torch.full((300,), counts), torch.arange(300))
    assert bool(surplus.isfinite().all()) is is_compared


@pytest.mark.parametrize(("n", "is_compared"), [(20, True), (19, False)])
def test_a_few_tokens_are_not_compared(n: int, is_compared: bool) -> None:
    counts = torch.zeros(300, dtype=torch.int64)
    counts[:n] = 1
    surplus = surplus_of_rows(table(), counts, torch.arange(300))
    assert bool(surplus[:n].isfinite().all()) is is_compared
    assert bool(surplus[n:].isfinite().all())


def test_rows_of_one_size_do_not_stand_out_by_rounding() -> None:
    rows = torch.nn.functional.normalize(table(), dim=1)
    rows = torch.cat([rows, -rows])  # their mean is 0, so all are as far from it
    surplus = surplus_of_rows(rows, torch.zeros(600, dtype=torch.int64), torch.arange(600))
    assert surplus.abs().max() < 0.01
    assert surplus_of_rows(torch.ones(300, 4), torch.zeros(300, dtype=torch.int64), torch.arange(300)).abs().max() == 0
