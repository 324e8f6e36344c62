"""The bound on the accuracy lost, the checks, and what becomes of them."""

from __future__ import annotations

import functools
import math

import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from seamfast.acceptance import (
    WITHIN_BUDGET,
    WITHIN_LIMIT,
    Check,
    PairedOutcomes,
    Verdict,
    accuracy_checks,
    n_lost_allowed,
)


def exact(k: int, n: int) -> tuple[float, float]:
    """One-sided 95 % bounds of the share ``k / n``: where the tail of the binomial distribution is 5 %."""
    low = brentq(lambda p: binom.sf(k - 1, n, p) - 0.05, 0, 1) if k else 0.0
    high = brentq(lambda p: binom.cdf(k, n, p) - 0.05, 0, 1) if k < n else 1.0
    return low, high


@pytest.mark.parametrize(
    ("n", "n_lost", "n_gained"),
    [(10, 0, 0), (49, 0, 0), (200, 4, 2), (100, 3, 3), (359, 10, 1), (60, 0, 7), (5000, 150, 90), (20, 12, 8)],
)
def test_the_bound_against_one_computed_otherwise(n: int, n_lost: int, n_gained: int) -> None:
    """With ``p`` lost and ``q`` gained: ``p - q``, plus the third side of a triangle. Two are the distances to their
    bounds; the cosine of the angle opposite is the correlation of the two cells."""
    p, q = n_lost / n, n_gained / n
    up, down = exact(n_lost, n)[1] - p, q - exact(n_gained, n)[0]
    cosine = math.sqrt(p * q / ((1 - p) * (1 - q)))
    wanted = min(p - q + math.sqrt(up * up + down * down + 2 * cosine * up * down), 1)
    assert PairedOutcomes(n, n_lost, n_gained).highest_loss == pytest.approx(wanted, abs=1e-9)


def test_bounds_that_can_be_computed_by_hand() -> None:
    assert PairedOutcomes(10, 0, 0).highest_loss == pytest.approx(1 - 0.05**0.1)
    assert PairedOutcomes(1, 0, 0).highest_loss == pytest.approx(0.95)
    for n in (1, 7):
        assert PairedOutcomes(n, n, 0).highest_loss == 1
        assert PairedOutcomes(n, 0, n).highest_loss < 1
    assert PairedOutcomes(48, 0, 0).highest_loss > 0.06 > PairedOutcomes(49, 0, 0).highest_loss


@functools.cache
def bound(n: int, n_lost: int, n_gained: int) -> float:
    return PairedOutcomes(n, n_lost, n_gained).highest_loss


def probability_of_passing(n: int, lost: float, gained: float, limit: float) -> float:
    """That the bound is at most ``limit`` if these are the true shares: a sum over all outcomes."""
    total = 0.0
    for n_lost in range(n + 1):
        of_lost = binom.pmf(n_lost, n, lost)
        if of_lost < 1e-9:
            continue
        for n_gained in range(n - n_lost + 1):
            of_gained = binom.pmf(n_gained, n - n_lost, gained / (1 - lost))
            if of_gained < 1e-9 and n_gained > gained * n:
                break
            if bound(n, n_lost, n_gained) <= limit:
                total += of_lost * of_gained
    return total


@pytest.mark.parametrize("n", [10, 50, 120])
@pytest.mark.parametrize("gained", [0.0, 0.005, 0.05, 0.2])
def test_a_loss_at_the_limit_passes_with_at_most_five_per_cent(n: int, gained: float) -> None:
    for limit in (0.03, 0.06, 0.15):
        assert probability_of_passing(n, gained + limit, gained, limit) <= 0.05


def test_a_harmless_result_passes_if_there_are_enough_samples() -> None:
    assert probability_of_passing(120, 0.005, 0.005, 0.06) > 0.9


@pytest.mark.parametrize(("n", "n_lost", "n_gained"), [(0, 0, 0), (3, 2, 2), (3, -1, 0), (3, 0, -1)])
def test_impossible_counts(n: int, n_lost: int, n_gained: int) -> None:
    with pytest.raises(ValueError, match=r"is impossible; expected n_lost \+ n_gained <= n, n >= 1$"):
        PairedOutcomes(n, n_lost, n_gained)


def test_about_how_many_samples_are_needed() -> None:
    for pairs in (PairedOutcomes(10, 0, 0), PairedOutcomes(58, 1, 0), PairedOutcomes(200, 10, 4)):
        needed = pairs.n_needed(0.06)
        assert needed is not None
        assert needed > pairs.n
        scaled = PairedOutcomes(
            needed, round(pairs.n_lost * needed / pairs.n), round(pairs.n_gained * needed / pairs.n)
        )
        assert scaled.highest_loss <= 0.06
    assert PairedOutcomes(10, 0, 0).n_needed(0.06) in range(49, 55)
    assert PairedOutcomes(100, 8, 0).n_needed(0.06) is None


@pytest.mark.parametrize(
    ("n", "budget", "allowed"), [(32, 0.1, 3), (32, 0.01, 1), (32, 0, 0), (500, 0.03, 15), (100, 0.07, 7)]
)
def test_samples_that_may_be_lost(n: int, budget: float, allowed: int) -> None:
    assert n_lost_allowed(n, budget) == allowed


# The checks of accuracy.


@pytest.mark.parametrize(
    ("pairs", "budget", "limit", "passed"),
    [
        (PairedOutcomes(500, 15, 2), 0.03, 0.06, (True, True)),
        (PairedOutcomes(500, 20, 2), 0.03, 0.06, (False, True)),
        (PairedOutcomes(100, 3, 0), 0.03, 0.06, (True, False)),
        (PairedOutcomes(100, 8, 0), 0.03, 0.06, (False, False)),
        (PairedOutcomes(100, 3, 0), 0.1, 0.06, (True, True)),  # the budget is the limit where it is larger
        (PairedOutcomes(48, 0, 0), 0.03, 0.06, (True, False)),
        (PairedOutcomes(49, 0, 0), 0.03, 0.06, (True, True)),
    ],
)
def test_the_estimate_and_the_bound_are_checked_apart(
    pairs: PairedOutcomes, budget: float, limit: float, passed: tuple[bool, bool]
) -> None:
    checks = accuracy_checks(pairs, pairs.n - 1, budget=budget, limit=limit)
    assert [check.name for check in checks] == [WITHIN_BUDGET, WITHIN_LIMIT]
    assert tuple(check.passed for check in checks) == passed


def test_what_too_few_samples_cannot_tell_is_said() -> None:
    _, check = accuracy_checks(PairedOutcomes(58, 1, 0), 56, budget=0.03, limit=0.06)
    assert check.detail == (
        "58 held-out samples cannot tell a loss within the limit of 6.0% from a larger one: the accuracy lost is at "
        "most 7.9% at 95 % (1 right answers became wrong and 0 wrong ones right); about 79 samples would: give more "
        "clean data, or holdout="
    )
    _, check = accuracy_checks(PairedOutcomes(100, 8, 0), 90, budget=0.03, limit=0.06)
    assert "; at this loss, no number of samples would: " in check.detail


# The verdict.

GOOD, UNKNOWN = Check("a", True, "a is good"), Check("b", None, "b was not tested")
BAD, UNTOLD = Check("c", False, "c is bad"), Check("d", False, "d cannot be told", tells=False)


@pytest.mark.parametrize(
    ("checks", "outcome", "reason"),
    [
        ([GOOD, UNKNOWN], "accepted", "all is well"),
        ([GOOD, UNTOLD], "undecided", "d cannot be told"),
        ([UNTOLD, BAD], "refused", "c is bad"),
        ([BAD, UNTOLD, UNKNOWN], "refused", "c is bad"),
    ],
)
def test_the_outcome_follows_from_the_checks(checks: list[Check], outcome: str, reason: str) -> None:
    verdict = Verdict(checks, "some samples", "all is well", PairedOutcomes(200, 4, 2))
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
    values = verdict.to_dict()
    assert values["accepted"] is (outcome == "accepted")
    assert values["rests_on"] == "some samples"
    assert values["checks"] == [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks]
    lost = values["accuracy_lost"]
    assert (lost["n_total"], lost["n_lost"], lost["n_gained"], lost["value"]) == (200, 4, 2, 0.01)
    assert lost["high"] == PairedOutcomes(200, 4, 2).highest_loss
    assert Verdict(checks, "none", "all is well", None).to_dict()["accuracy_lost"] is None
