"""``Bounded``: exact intervals against SciPy's, and the interval of the largest of several rates."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from seamfast.metrics import Bounded, Rate, rate_values


@given(
    data=st.data(),
    n=st.one_of(st.integers(1, 40), st.integers(1, 20_000)),
    level=st.sampled_from([0.5, 0.95, 0.999]),
    n_looks=st.sampled_from([1, 100, 10_000]),
)
def test_exact_bounds_are_clopper_and_pearsons(data: st.DataObject, n: int, level: float, n_looks: int) -> None:
    k = data.draw(st.one_of(st.integers(0, n), st.integers(0, min(n, 3))))
    rate = Bounded.exact(k, n, level=level, n_looks=n_looks)
    tail = (1 - level) / n_looks / 2  # of the beta distribution; binomtest stops at an error of 2e-12
    assert (rate.n_hit, rate.n_total, rate.value) == (k, n, k / n)
    assert math.isclose(rate.low, beta.ppf(tail, k, n - k + 1) if k else 0.0, rel_tol=1e-6, abs_tol=1e-13)
    assert math.isclose(rate.high, beta.isf(tail, k + 1, n - k) if k < n else 1.0, rel_tol=1e-6, abs_tol=1e-13)
    assert 0 <= rate.low <= k / n <= rate.high <= 1


def test_a_bound_by_hand() -> None:
    """0 of 100, two-sided at 95 %: 1 - 0.025 ** (1 / 100)."""
    assert Bounded.exact(0, 100).high == pytest.approx(1 - 0.025**0.01, rel=1e-12)
    assert Bounded.exact(0, 100, n_looks=100).high == pytest.approx(1 - 0.00025**0.01, rel=1e-12)
    assert Bounded.exact(0, 100).low == 0.0
    assert Bounded.exact(100, 100).high == 1.0


def test_many_samples() -> None:
    rate, wanted = Bounded.exact(60_000, 200_000), binomtest(60_000, 200_000).proportion_ci(method="exact")
    assert (rate.low, rate.high) == pytest.approx((wanted.low, wanted.high), rel=1e-8)


def test_of_no_samples_nothing_is_known() -> None:
    rate = Bounded.exact(0, 0)
    assert (rate.value, rate.low, rate.high) == (None, 0.0, 1.0)


def test_it_is_written_down_as_any_rate() -> None:
    assert rate_values(Bounded(1, 4, (0.125, 0.5))) == {
        "n_hit": 1,
        "n_total": 4,
        "value": 0.25,
        "low": 0.125,
        "high": 0.5,
    }
    assert str(Bounded(1, 4, (0.125, 0.5))) == "0.2500 [0.1250, 0.5000] (n = 4)"


def test_the_largest_is_bounded_by_all() -> None:
    """1 of 1000 is the largest value; the true rate behind 0 of 5 may be larger, the one behind 900 of 10^6 is not less
    than its bound."""
    rates = [Rate(1, 1000), Rate(0, 5), Rate(900, 10**6), Rate(0, 0)]
    largest = Bounded.largest(rates)
    assert (largest.n_hit, largest.n_total) == (1, 1000)
    assert largest.low == rates[2].low > rates[0].low
    assert largest.high == 1.0  # of the class without samples nothing is known
    assert Bounded.largest(rates[:3]).high == rates[1].high


def test_of_equal_rates_the_one_with_fewer_samples_is_the_largest() -> None:
    assert Bounded.largest([Rate(0, 100), Rate(0, 10), Rate(0, 50)]).n_total == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounded.exact(1, 2, level=95), "level is 95; expected a number in (0, 1)"),
        (lambda: Bounded.exact(1, 2, n_looks=0), "n_looks is 0; expected an integer of at least 1"),
        (lambda: Bounded.exact(3, 2), "n_hit is 3 of n_total 2; expected 0 <= n_hit <= n_total"),
        (lambda: Bounded(1, 2, (0.6, 0.5)), "bounds are (0.6, 0.5); expected 0 <= low <= high <= 1"),
        (lambda: Bounded(1, 2, (math.nan, 0.5)), "bounds are (nan, 0.5); expected 0 <= low <= high <= 1"),
        (lambda: Bounded.largest([]), "rates holds none; expected at least one"),
    ],
)
def test_impossible_arguments(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
