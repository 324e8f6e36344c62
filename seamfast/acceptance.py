"""Whether a result is accepted: bounds on the accuracy lost, from paired outcomes, and the checks. Standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seamfast.metrics import Bounded

LEVEL = 0.95
"""Probability that the bound on the accuracy lost holds, one-sided."""
FEWEST_RECOVERY_SHARE = 0.5
"""Share of the recovery steps below which a run that the clock cut short is not accepted."""
_MOST_SAMPLES = 10**6

BETTER_THAN_GUESSING = "better than guessing"
COMPLETED = "completed"
NOT_CUT_SHORT = "recovery not cut short"
NOT_AUGMENTED = "held-out samples not augmented"
WITHIN_BUDGET = "accuracy within its budget"
WITHIN_LIMIT = "bound on the loss within its limit"


@dataclass(frozen=True)
class PairedOutcomes:
    """Outcomes of two models on the same samples.

    Attributes:
        n: number of samples, at least 1.
        n_lost: right before, wrong after.
        n_gained: wrong before, right after.

    Example:
        >>> pairs = PairedOutcomes(200, n_lost=4, n_gained=2)
        >>> pairs.loss, round(pairs.highest_loss, 4)
        (0.01, 0.0366)
    """

    n: int
    n_lost: int
    n_gained: int

    def __post_init__(self) -> None:
        if self.n < 1 or min(self.n_lost, self.n_gained) < 0 or self.n_lost + self.n_gained > self.n:
            raise ValueError(f"{self} is impossible; expected n_lost + n_gained <= n, n >= 1")

    @property
    def loss(self) -> float:
        """``(n_lost - n_gained) / n``: accuracy before minus accuracy after, in [-1, 1]."""
        return (self.n_lost - self.n_gained) / self.n

    @property
    def highest_loss(self) -> float:
        """The one-sided 95 % upper bound on the loss, in [-1, 1].

        The exact bounds of the two shares are combined by the method of variance estimates recovery, with the negative
        correlation that two cells of a multinomial distribution have. Where nothing was gained, it is the exact bound
        of the share lost: ``1 - 0.05 ** (1 / n)`` where nothing was lost either.

        Sources: C. J. Clopper and E. S. Pearson, Biometrika 26, 1934; G. Y. Zou and A. Donner, Construction of
        confidence limits about effect measures, Stat. Med. 27, 2008.
        """
        n, lost, gained = self.n, self.n_lost / self.n, self.n_gained / self.n
        both_sides = 2 * LEVEL - 1
        above = Bounded.exact(self.n_lost, n, level=both_sides).high - lost
        below = gained - Bounded.exact(self.n_gained, n, level=both_sides).low
        correlation = -math.sqrt(_odds(lost) * _odds(gained)) if lost < 1 and gained < 1 else 0.0
        return min(self.loss + math.sqrt(above**2 + below**2 - 2 * correlation * above * below), 1.0)

    def n_needed(self, limit: float) -> int | None:
        """About how many samples bring ``highest_loss`` down to ``limit`` if both shares stay as they are; ``None`` if
        more than a million."""
        n = self.n if self.loss < limit else _MOST_SAMPLES + 1
        while n <= _MOST_SAMPLES:
            n = math.ceil(1.1 * n)
            lost, gained = (round(k * n / self.n) for k in (self.n_lost, self.n_gained))
            if PairedOutcomes(n, min(lost, n - gained), gained).highest_loss <= limit:
                return n
        return None


def _odds(share: float) -> float:
    return share / (1 - share)


def n_lost_allowed(n: int, accuracy_budget: float) -> int:
    """Samples of ``n`` that may be lost: ``floor(budget * n)``, at least 1 for a budget above 0."""
    return max(math.floor(accuracy_budget * n + 1e-9), 1 if accuracy_budget > 0 else 0)


@dataclass(frozen=True)
class Check:
    """One condition of acceptance.

    Attributes:
        name: of the condition.
        passed: ``None`` where it could not be checked, or the run did not come to it.
        detail: what was found, in one sentence.
        tells: whether a failure says that the result is bad, and not only that it could not be judged.
    """

    name: str
    passed: bool | None
    detail: str
    tells: bool = True


@dataclass(frozen=True)
class Verdict:
    """The checks of a result.

    Attributes:
        checks: in the order in which they are reported; the first that failed gives the reason.
        rests_on: the samples that the decision rests on.
        accepted_reason: the reason where no check failed.
        pairs: outcomes on these samples; ``None`` if the run did not come to its end.
    """

    checks: Sequence[Check]
    rests_on: str
    accepted_reason: str
    pairs: PairedOutcomes | None

    @property
    def outcome(self) -> str:
        """``"accepted"`` if no check failed, ``"refused"`` if one that tells failed, else ``"undecided"``."""
        failed = [check for check in self.checks if check.passed is False]
        if not failed:
            return "accepted"
        return "refused" if any(check.tells for check in failed) else "undecided"

    @property
    def reason(self) -> str:
        """One sentence: the first failed check that tells, else the first failed one."""
        failed = [check for check in self.checks if check.passed is False]
        return max(failed, key=lambda check: check.tells).detail if failed else self.accepted_reason

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for a report."""
        pairs = self.pairs
        return {
            "outcome": self.outcome,
            "accepted": self.outcome == "accepted",
            "reason": self.reason,
            "rests_on": self.rests_on,
            "accuracy_lost": None
            if pairs is None
            else {
                "n_total": pairs.n,
                "n_lost": pairs.n_lost,
                "n_gained": pairs.n_gained,
                "value": pairs.loss,
                "high": pairs.highest_loss,
            },
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in self.checks],
        }


def accuracy_checks(pairs: PairedOutcomes, n_right: int, *, budget: float, limit: float) -> tuple[Check, Check]:
    """Whether the loss is within the budget, and whether its upper bound is within the limit.

    Args:
        pairs: outcomes before and after.
        n_right: samples that were right before.
        budget: in [0, 1]; see ``n_lost_allowed``.
        limit: in [0, 1]; a larger budget counts as the limit.
    """
    limit, n = max(limit, budget), pairs.n
    n_lost, allowed = pairs.n_lost - pairs.n_gained, n_lost_allowed(n, budget)
    is_back = n_lost <= allowed
    within = Check(
        WITHIN_BUDGET,
        is_back,
        f"accuracy {'is' if is_back else 'did not come'} back within its budget: held-out accuracy "
        f"{(n_right - n_lost) / n:.2%} after, {n_right / n:.2%} before (n = {n}): {max(n_lost, 0)} samples lost, "
        f"{allowed} allowed by the budget of {budget:.1%}",
    )
    found = f"{pairs.n_lost} right answers became wrong and {pairs.n_gained} wrong ones right"
    bound = f"the accuracy lost is at most {pairs.highest_loss:.1%} at 95 %"
    if pairs.highest_loss <= limit:
        return within, Check(WITHIN_LIMIT, True, f"{bound} ({found}), within the limit of {limit:.1%}")
    needed = pairs.n_needed(limit)
    enough = "at this loss, no number of samples would" if needed is None else f"about {needed:,} samples would"
    detail = (
        f"{n} held-out samples cannot tell a loss within the limit of {limit:.1%} from a larger one: {bound} "
        f"({found}); {enough}: give more clean data, or holdout="
    )
    return within, Check(WITHIN_LIMIT, False, detail, tells=False)
