from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from seamfast import Rate, fidelity, fidelity_nist
from seamfast.metrics import fidelity_bounds


@given(data=st.data(), n=st.one_of(st.integers(1, 60), st.integers(1, 10**7)))
def test_bounds_are_wilsons(data: st.DataObject, n: int) -> None:
    k = data.draw(st.integers(0, n))
    rate, wanted = Rate(k, n), binomtest(k, n).proportion_ci(method="wilson")
    assert rate.value == k / n
    assert math.isclose(rate.low, wanted.low, rel_tol=1e-9, abs_tol=1e-14)
    assert math.isclose(rate.high, wanted.high, rel_tol=1e-9, abs_tol=1e-14)
    assert 0 <= rate.low <= k / n <= rate.high <= 1


def test_bounds_by_hand() -> None:
    """8 of 10: Wilson 1927's formula worked out with z = 1.959963984540054."""
    rate = Rate(8, 10)
    assert math.isclose(rate.low, 0.4901624715, rel_tol=1e-9)
    assert math.isclose(rate.high, 0.9433178485, rel_tol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 10**6, 10**12])
def test_bounds_at_the_ends_are_exact(n: int) -> None:
    assert Rate(0, n).low == 0.0
    assert Rate(n, n).high == 1.0
    assert 0 < Rate(0, n).high < 1
    assert Rate(n, n).low == pytest.approx(1 - Rate(0, n).high, rel=1e-12)


def test_nothing_is_known_of_no_samples() -> None:
    rate = Rate(0, 0)
    assert (rate.value, rate.low, rate.high) == (None, 0.0, 1.0)
    assert str(rate) == "n/a (n = 0)"


def test_a_rate_as_text() -> None:
    assert str(Rate(8, 10)) == "0.8000 [0.4902, 0.9433] (n = 10)"


@pytest.mark.parametrize(("n_hit", "n_total"), [(-1, 3), (4, 3), (1, 0), (0, -1)])
def test_impossible_counts(n_hit: int, n_total: int) -> None:
    with pytest.raises(ValueError, match=f"^n_hit is {n_hit} of n_total {n_total}; expected 0 <= n_hit <= n_total$"):
        Rate(n_hit, n_total)


@pytest.mark.parametrize(
    ("acc_before", "acc_after", "asr_after", "wanted"),
    [
        (0.8, 0.8, 0.0, 1.0),
        (0.8, 0.8, 1.0, -0.25),
        (0.8, 0.6, 0.2, 0.5),
        (0.5, 0.9, 0.1, 1.6),
        (0.25, 0.0, 1.0, -4.0),
        (0.0, 0.9, 0.1, None),
    ],
)
def test_fidelity_by_hand(acc_before: float, acc_after: float, asr_after: float, wanted: float | None) -> None:
    got = fidelity(acc_before=acc_before, acc_after=acc_after, asr_after=asr_after)
    assert got == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("acc_before", "acc_after", "asr_before", "asr_after", "wanted"),
    [
        (0.8, 0.8, 1.0, 0.0, 1.0),
        (0.8, 0.6, 1.0, 0.25, 0.5625),
        (0.8, 0.4, 0.5, 0.1, 0.4),
        (0.8, 0.8, 0.5, 1.0, -1.0),
        (0.8, 0.8, 1.0, 1.0, 0.0),
        (0.8, 0.8, 0.0, 0.0, None),
        (0.0, 0.8, 1.0, 0.0, None),
        (0.8, 0.6, None, None, 0.75),
        (0.0, 0.6, None, None, None),
        (0.8, 0.0, None, None, 0.0),
    ],
)
def test_fidelity_nist_by_hand(
    acc_before: float, acc_after: float, asr_before: float | None, asr_after: float | None, wanted: float | None
) -> None:
    got = fidelity_nist(acc_before=acc_before, acc_after=acc_after, asr_before=asr_before, asr_after=asr_after)
    assert got == (None if wanted is None else pytest.approx(wanted))


def test_fidelity_bounds_by_hand() -> None:
    before, after, success = Rate(90, 100), Rate(80, 100), Rate(10, 50)
    low, high = fidelity_bounds(before, after, success) or (0, 0)
    center = (0.8 - 0.2) / 0.9
    below = (0.8 - after.low) ** 2 + (success.high - 0.2) ** 2 + (center * (before.high - 0.9)) ** 2
    above = (after.high - 0.8) ** 2 + (0.2 - success.low) ** 2 + (center * (0.9 - before.low)) ** 2
    assert low == pytest.approx(center - below**0.5 / 0.9)
    assert high == pytest.approx(center + above**0.5 / 0.9)


@pytest.mark.parametrize("empty", range(3))
def test_fidelity_without_samples_has_no_bounds(empty: int) -> None:
    rates = [Rate(0, 0) if i == empty else Rate(5, 10) for i in range(3)]
    assert fidelity_bounds(*rates) is None
    assert fidelity_bounds(Rate(0, 10), Rate(5, 10), Rate(5, 10)) is None
