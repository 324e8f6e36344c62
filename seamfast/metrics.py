"""Rates with confidence intervals, and the two Fidelities. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Rate:
    """``n_hit / n_total`` with its 95 % Wilson score interval.

    Wilson's interval keeps its coverage at rates near 0 and 1 and at small counts, where ``p ± 1.96 s`` does not.
    With ``n_total == 0`` nothing is known: ``value`` is ``None`` and the interval ``[0, 1]``.

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
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # At the ends the exact bound is 0 or 1; rounding would leave 1e-17 or 0.9999.
        return (0.0 if self.n_hit == 0 else centre - half), (1.0 if self.n_hit == n else centre + half)

    def __str__(self) -> str:
        if self.value is None:
            return "n/a (n = 0)"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] (n = {self.n_total})"


def fidelity(*, acc_before: float, acc_after: float, asr_after: float) -> float | None:
    """``(acc_after - asr_after) / acc_before``: how much of the task is left once the backdoor's share is taken off.

    Args:
        acc_before, acc_after: clean accuracy as received and as sanitised, in [0, 1].
        asr_after: attack success rate of the sanitised model, in [0, 1]; of several triggers, the largest.

    Returns:
        A number in [-1/acc_before, 1/acc_before], 1 for a perfect cure; ``None`` if ``acc_before`` is 0.

    Source: the SEAM authors' code (Zhu et al., IEEE S&P 2023, arXiv:2212.04687).
    """
    return (acc_after - asr_after) / acc_before if acc_before else None


def fidelity_nist(
    *, acc_before: float, acc_after: float, asr_before: float | None = None, asr_after: float | None = None
) -> float | None:
    """``(asr_before - asr_after) / asr_before * (acc_after / acc_before)``; of a clean model ``acc_after /
    acc_before``.

    Args:
        acc_before, acc_after: clean accuracy as received and as sanitised, in [0, 1].
        asr_before, asr_after: attack success rates, in [0, 1]; ``None`` for a model with no known trigger.

    Returns:
        A number; ``None`` if ``acc_before`` is 0, or if ``asr_before`` is 0, where the ratio is not defined.

    Source: NIST TrojAI, mitigation round.
    """
    if not acc_before:
        return None
    if asr_before is None or asr_after is None:
        return acc_after / acc_before
    return (asr_before - asr_after) / asr_before * (acc_after / acc_before) if asr_before else None
