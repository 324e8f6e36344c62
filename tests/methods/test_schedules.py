"""Schedules: functions of how far a phase is, in [0, 1], with values in [0, 1]."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamfast.methods.schedules import cosine, triangle

FRACTIONS = st.floats(0, 1)


@given(FRACTIONS, st.floats(0, 0.9))
def test_a_cosine_stays_within_0_and_1(fraction: float, warmup: float) -> None:
    assert 0 <= cosine(fraction, warmup) <= 1


def test_a_cosine_by_hand() -> None:
    assert cosine(0.1) == pytest.approx(1)
    assert cosine(0.55) == pytest.approx(0.5)
    assert cosine(1.0) == pytest.approx(0, abs=1e-12)
    assert cosine(0.6, warmup=0.2) == pytest.approx(0.5)
    assert cosine(0.0, warmup=0.0) == 1


def test_a_cosine_rises_and_then_falls_without_a_jump() -> None:
    values = [cosine(k / 1000) for k in range(1001)]
    assert values[0] > 0  # the first step does something
    assert values[:101] == sorted(values[:101])
    assert values[100:] == sorted(values[100:], reverse=True)
    assert max(abs(b - a) for a, b in pairwise(values)) < 0.011
    assert max(values) == values[100] == pytest.approx(1)


@given(FRACTIONS, st.integers(1, 20))
def test_triangles_stay_within_0_and_1(fraction: float, n_cycles: int) -> None:
    assert 0 <= triangle(fraction, n_cycles) <= 1


@pytest.mark.parametrize("n_cycles", [1, 2, 5])
def test_every_triangle_begins_and_ends_at_0_and_peaks_in_its_middle(n_cycles: int) -> None:
    for cycle in range(n_cycles):
        begin, width = cycle / n_cycles, 1 / n_cycles
        assert triangle(begin, n_cycles) == pytest.approx(0, abs=1e-9)
        assert triangle(begin + 0.25 * width, n_cycles) == pytest.approx(0.5)
        assert triangle(begin + 0.5 * width, n_cycles) == pytest.approx(1)
        assert triangle(begin + 0.75 * width, n_cycles) == pytest.approx(0.5)
    assert triangle(1.0, n_cycles) == 0
