"""Rates with confidence intervals, and the two Fidelities. Standard library only."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import NormalDist

_Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Rate:
    """``n_hit / n_total`` with its 95 % Wilson score interval.

    Wilson's interval keeps its coverage at rates near 0 and 1 and at small counts, where ``p ± 1.96 s`` does not.
    With ``n_total == 0``, ``value`` is ``None`` and the interval ``[0, 1]``.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.

    Example:
        >>> rate = Rate(0, 100)
        >>> rate.value, round(rate.high, 3)
        (0.0, 0.037)
    """

    n_hit: int
    n_total: int

    def __post_init__(self) -> None:
        if not 0 <= self.n_hit <= self.n_total:
            raise ValueError(f"n_hit is {self.n_hit} of n_total {self.n_total}; expected 0 <= n_hit <= n_total")

    @property
    def value(self) -> float | None:
        return self.n_hit / self.n_total if self.n_total else None

    @property
    def low(self) -> float:
        return self._bounds()[0]

    @property
    def high(self) -> float:
        return self._bounds()[1]

    def _bounds(self) -> tuple[float, float]:
        n, z2 = self.n_total, _Z_95**2
        if n == 0:
            return 0.0, 1.0
        p = self.n_hit / n
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # At the ends the exact bound is 0 or 1; rounding would give 1e-17 or 0.9999.
        return (0.0 if self.n_hit == 0 else center - half), (1.0 if self.n_hit == n else center + half)

    def __str__(self) -> str:
        if self.value is None:
            return "n/a (n = 0)"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] (n = {self.n_total})"


@dataclass(frozen=True)
class Bounded(Rate):
    """A ``Rate`` with other bounds than Wilson's, from ``Bounded.exact`` or ``Bounded.largest``.

    Attributes:
        bounds: ``(low, high)``, in [0, 1].

    Example:
        >>> rate = Bounded.exact(0, 100)
        >>> rate.value, round(rate.high, 3)
        (0.0, 0.036)
    """

    bounds: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bounds
        if not 0 <= low <= high <= 1:
            raise ValueError(f"bounds are ({low}, {high}); expected 0 <= low <= high <= 1")

    @classmethod
    def exact(cls, n_hit: int, n_total: int, *, level: float = 0.95, n_looks: int = 1) -> Bounded:
        """``n_hit / n_total`` with its Clopper-Pearson interval, which is conservative for any rate and count.

        Wilson's is shorter, but has its level on average only: at the small error of one of many rates, its bounds near
        0 and 1 fail hundreds of times too often.

        Args:
            n_hit, n_total: as for ``Rate``.
            level: in (0, 1): probability that the intervals of all ``n_looks`` rates hold together (Bonferroni).
            n_looks: number of rates that are compared, at least 1.

        Raises:
            ValueError: e.g. ``level is 95; expected a number in (0, 1)``.

        Source: C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934.
        """
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ValueError(f"level is {level!r}; expected a number in (0, 1)")
        if isinstance(n_looks, bool) or not isinstance(n_looks, int) or n_looks < 1:
            raise ValueError(f"n_looks is {n_looks!r}; expected an integer of at least 1")
        Rate(n_hit, n_total)  # raises where the counts are impossible
        if n_total == 0:
            return cls(0, 0, (0.0, 1.0))
        tail = (1 - level) / 2 / n_looks
        low, high = 1 - _exact_high(n_total - n_hit, n_total, tail), _exact_high(n_hit, n_total, tail)
        return cls(n_hit, n_total, (low, high))

    @classmethod
    def largest(cls, rates: Iterable[Rate]) -> Bounded:
        """The largest of ``rates`` (on ties, the one with the highest bound) with the bounds of the largest true rate.

        Where the intervals of all ``rates`` hold together, so does ``[max(low), max(high)]`` for the largest true rate.
        A rate of few samples widens it.
        """
        several = list(rates)
        if not several:
            raise ValueError("rates holds none; expected at least one")
        worst = max(several, key=largeness)
        bounds = max(rate.low for rate in several), max(rate.high for rate in several)
        return cls(worst.n_hit, worst.n_total, bounds)

    def _bounds(self) -> tuple[float, float]:
        return self.bounds


def largeness(rate: Rate) -> tuple[float, float]:
    """Sort key of rates: the value, then the upper bound; a rate of no samples is the smallest."""
    return (-1.0 if rate.value is None else rate.value), rate.high


@dataclass(frozen=True)
class Figure:
    """A measured number with its confidence interval.

    Attributes:
        value: ``None`` where it was not measured, or is not finite.
        low, high: of the interval; ``None`` where there is none.
        n: samples behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, rate: Rate) -> Figure:
        """The value and bounds of a rate."""
        return cls(rate.value, rate.low, rate.high, rate.n_total)

    def to_dict(self) -> dict[str, float | int | None]:
        """All fields by name."""
        return asdict(self)


def rate_values(rate: Rate) -> dict[str, int | float | None]:
    """A ``Rate`` as JSON values: counts, value, bounds."""
    return {"n_hit": rate.n_hit, "n_total": rate.n_total, "value": rate.value, "low": rate.low, "high": rate.high}


def paired_difference(n_lost: int, n_gained: int, n: int, *, level: float = 0.95, n_looks: int = 1) -> Figure:
    """``(n_lost - n_gained) / n`` with its adjusted Wald interval, which keeps its coverage where few pairs differ.

    Pairs are sharper than two separate rates: where both of a pair agree, they say nothing of the difference.

    Args:
        n_lost, n_gained: pairs that differ in the one and in the other way.
        n: all pairs; with 0, there is no value, and the interval is [-1, 1].
        level: in (0, 1): probability that the intervals of all ``n_looks`` differences hold together (Bonferroni).
        n_looks: number of differences that are compared, at least 1.

    Source: D. G. Bonett and R. M. Price, Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data, J. Educ. Behav. Stat. 37, 2012.

    Example:
        >>> lost = paired_difference(6, 2, 400)
        >>> lost.value, round(lost.high, 3)
        (0.01, 0.025)
    """
    if n == 0:
        return Figure(None, -1.0, 1.0, 0)
    lost, gained = (n_lost + 1) / (n + 2), (n_gained + 1) / (n + 2)
    z = NormalDist().inv_cdf(1 - (1 - level) / 2 / n_looks)
    half = z * math.sqrt((lost + gained - (lost - gained) ** 2) / (n + 2))
    low, high = max(lost - gained - half, -1.0), min(lost - gained + half, 1.0)
    return Figure((n_lost - n_gained) / n, low, high, n)


def rate_difference(first: Rate, second: Rate) -> Figure:
    """``second - first``, with bounds: the distances of both rates to their bounds, squared and added.

    The rates count as independent; on the same samples the interval is mostly wider than it need be. ``n`` is the
    smaller of both.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in
        Medicine 17, 1998, method 10.

    Example:
        >>> change = rate_difference(Rate(10, 100), Rate(60, 100))
        >>> change.value, round(change.low, 3), round(change.high, 3)
        (0.5, 0.377, 0.601)
    """
    n = min(first.n_total, second.n_total)
    if first.value is None or second.value is None:
        return Figure(None, -1.0, 1.0, n)
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Figure(value, max(low, -1.0), min(high, 1.0), n)


@functools.lru_cache(maxsize=4096)  # many classes have the same counts
def _exact_high(n_hit: int, n_total: int, tail: float) -> float:
    """The largest rate for which ``P(at most n_hit of n_total) >= tail``."""
    if n_hit == n_total:
        return 1.0
    if n_hit == 0:
        return -math.expm1(math.log(tail) / n_total)
    ways = math.lgamma(n_total + 1) - math.lgamma(n_hit + 1) - math.lgamma(n_total - n_hit + 1)
    low, high = n_hit / n_total, 1.0
    while low < (middle := (low + high) / 2) < high:
        term = total = math.exp(ways + n_hit * math.log(middle) + (n_total - n_hit) * math.log1p(-middle))
        # Below the mean: from n_hit down the terms decrease.
        for k in range(n_hit, 0, -1):
            term *= k / (n_total - k + 1) * (1 - middle) / middle
            total += term
            if term < 1e-17 * total:
                break
        low, high = (middle, high) if total > tail else (low, middle)
    return high


def fidelity(*, acc_before: float, acc_after: float, asr_after: float) -> float | None:
    """``(acc_after - asr_after) / acc_before``.

    Args:
        acc_before, acc_after: clean accuracy as received and as sanitized, in [0, 1].
        asr_after: attack success rate of the sanitized model, in [0, 1]; the largest of several triggers.

    Returns:
        A number in [-1/acc_before, 1/acc_before], 1 for a perfect cure; ``None`` if ``acc_before`` is 0.

    Source: the SEAM authors' code (Zhu et al., IEEE S&P 2023, arXiv:2212.04687).
    """
    return (acc_after - asr_after) / acc_before if acc_before else None


def fidelity_bounds(acc_before: Rate, acc_after: Rate, asr_after: Rate) -> tuple[float, float] | None:
    """95 % bounds of ``fidelity``: the distances of the three rates to their bounds, squared and added.

    The rates count as independent. On the same samples the errors of both accuracies mostly offset each other; the
    interval is then wider than it need be.

    Args:
        acc_before, acc_after, asr_after: as for ``fidelity``, with their counts.

    Returns:
        ``(low, high)``; ``None`` if a rate has no samples or ``acc_before`` is 0.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in
        Medicine 17, 1998, method 10, for ``acc_after - asr_after``; the division by ``acc_before`` is linearized.

    Example:
        >>> low, high = fidelity_bounds(Rate(970, 1000), Rate(960, 1000), Rate(9, 900))
        >>> round(low, 3), round(high, 3)
        (0.96, 0.997)
    """
    before, after, success = acc_before.value, acc_after.value, asr_after.value
    if not before or after is None or success is None:
        return None
    center = (after - success) / before
    low = math.hypot(after - acc_after.low, asr_after.high - success, center * (acc_before.high - before))
    high = math.hypot(acc_after.high - after, success - asr_after.low, center * (before - acc_before.low))
    return center - low / before, center + high / before


def fidelity_nist(
    *, acc_before: float, acc_after: float, asr_before: float | None = None, asr_after: float | None = None
) -> float | None:
    """``(asr_before - asr_after) / asr_before * (acc_after / acc_before)``.

    Args:
        acc_before, acc_after: clean accuracy as received and as sanitized, in [0, 1].
        asr_before, asr_after: attack success rates, in [0, 1]; ``None`` for a model without a known trigger, whose
            Fidelity is ``acc_after / acc_before``.

    Returns:
        A number; ``None`` if ``acc_before`` or ``asr_before`` is 0.

    Source: NIST TrojAI, mitigation round.
    """
    if not acc_before:
        return None
    if asr_before is None or asr_after is None:
        return acc_after / acc_before
    return (asr_before - asr_after) / asr_before * (acc_after / acc_before) if asr_before else None
