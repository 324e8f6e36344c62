"""``separation``: how well a score tells members from outsiders, with bootstrap bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seamfast.audits.bootstrap import percentile_bounds
from seamfast.checks import as_count, as_level, as_seed, check_vector
from seamfast.errors import InputError

__all__ = ["Estimate", "Separation", "separation"]

_FALSE_POSITIVE_RATES = (0.01, 0.001)
_CHUNK = 1 << 22
"""Counts of resampled scores that are held at once."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its bounds, which include it."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, eq=False)
class Separation:
    """How well a score tells members from outsiders, or the difference of two such (``minus``).

    Attributes:
        auc: probability that a member scores higher than an outsider, a tie counted half; 0.5 for a score that says
            nothing.
        balanced_accuracy: ``(TPR + 1 - FPR) / 2``, at the threshold that is best on one half of the samples, measured
            on the other half, and the mean with the halves exchanged.
        tpr_at_1_percent, tpr_at_0_1_percent: the largest share of members found by a threshold that takes at most 1 %
            and 0.1 % of the outsiders for members; ``None`` with fewer than 100 and 1,000 outsiders, whose FPR has no
            such value.
        values: ``(4,)`` float64, the figures in this order; NaN for ``None``.
        replicates: ``(4, n_boot)`` float64, the figures of the resampled scores.
        level: of the bounds.
    """

    values: Tensor = field(repr=False)
    replicates: Tensor = field(repr=False)
    level: float

    @property
    def auc(self) -> Estimate:
        return self._always(0)

    @property
    def balanced_accuracy(self) -> Estimate:
        return self._always(1)

    @property
    def tpr_at_1_percent(self) -> Estimate | None:
        return self._estimate(2)

    @property
    def tpr_at_0_1_percent(self) -> Estimate | None:
        return self._estimate(3)

    def minus(self, other: Separation) -> Separation:
        """The differences, with bounds for them.

        Args:
            other: of scores of the same samples in the same order, resampled with the same seed: what both owe to the
                choice of samples then cancels out.

        Raises:
            InputError: e.g. ``other has 500 replicates; expected 1000``.
        """
        if other.replicates.shape != self.replicates.shape:
            raise InputError(f"other has {other.replicates.shape[1]} replicates; expected {self.replicates.shape[1]}")
        return Separation(self.values - other.values, self.replicates - other.replicates, self.level)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: ``value``, ``low`` and ``high`` by figure, or ``None``."""
        one, tenth = self.tpr_at_1_percent, self.tpr_at_0_1_percent
        return {
            "auc": self.auc.to_dict(),
            "balanced_accuracy": self.balanced_accuracy.to_dict(),
            "tpr_at_1_percent": None if one is None else one.to_dict(),
            "tpr_at_0_1_percent": None if tenth is None else tenth.to_dict(),
        }

    def __str__(self) -> str:
        return f"AUC {self.auc}  balanced accuracy {self.balanced_accuracy}"

    def _estimate(self, row: int) -> Estimate | None:
        return None if math.isnan(float(self.values[row])) else self._always(row)

    def _always(self, row: int) -> Estimate:
        value = float(self.values[row])
        low, high = percentile_bounds(self.replicates[row], self.level)
        return Estimate(value, min(low, value), max(high, value))


def separation(
    members: Tensor, outsiders: Tensor, *, n_boot: int = 1000, level: float = 0.95, seed: int = 0
) -> Separation:
    """AUC, balanced accuracy and TPR at low FPR of ``score >= threshold`` as the sign of a member.

    Members and outsiders are halved at random. Bounds are percentiles of the figures of ``n_boot`` sets that are drawn
    with replacement from each half, threshold included. Where all members score above all outsiders, they have no
    width. They are rough for a TPR that rests on few false positives.

    Args:
        members, outsiders: ``(M,)`` and ``(O,)`` float64 scores, at least 2 of each.
        n_boot: at least 1.
        level: in (0, 1).
        seed: of halves and drawing, in ``[0, 2**63)``. With one seed, sets of M and O scores are drawn alike.

    Raises:
        InputError: e.g. ``members hold 1 score; expected at least 2``.

    Source: AUC: J. A. Hanley and B. J. McNeil, The meaning and use of the area under a ROC curve, Radiology 143, 1982.
        TPR at low FPR: N. Carlini et al., IEEE S&P 2022, arXiv:2112.03570. Bounds: B. Efron, The jackknife, the
        bootstrap and other resampling plans, SIAM 1982, percentile method.

    Example:
        >>> found = separation(torch.tensor([2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 2.0]).double())
        >>> round(found.auc.value, 3)
        0.917
    """
    n_boot, level, seed = as_count("n_boot", n_boot), as_level(level), as_seed(seed)
    for name, scores in (("members", members), ("outsiders", outsiders)):
        check_vector(name, scores, torch.float64)
        if len(scores) < 2:
            raise InputError(f"{name} hold {len(scores)} score{'s' * (len(scores) != 1)}; expected at least 2")
        if scores.isnan().any():
            raise InputError(f"{name} hold NaN, first at position {int(scores.isnan().nonzero()[0])}; expected numbers")
    generator = torch.Generator().manual_seed(seed)
    ranks, n_ranks = _ranks(members.cpu(), outsiders.cpu())
    parts: list[Tensor] = []
    for rank in ranks:
        mixed = rank[torch.randperm(len(rank), generator=generator)]
        parts += [mixed[: len(rank) // 2], mixed[len(rank) // 2 :]]
    values = _figures([torch.bincount(part, minlength=n_ranks)[None].double() for part in parts])[:, 0]
    n_rows = max(_CHUNK // (len(members) + len(outsiders) + 4 * n_ranks), 1)
    replicates = [
        _figures([_resampled(part, min(n_rows, n_boot - first), n_ranks, generator) for part in parts])
        for first in range(0, n_boot, n_rows)
    ]
    return Separation(values, torch.cat(replicates, 1), level)


def _ranks(members: Tensor, outsiders: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
    """int64 ranks of both, in the order of the scores, and their number.

    Members between two neighbors among the outsiders share a rank: no figure tells them apart.
    """
    grid, of_outsiders = torch.unique(outsiders, return_inverse=True)
    lower, upper = torch.searchsorted(grid, members), torch.searchsorted(grid, members, right=True)
    return (lower + upper, 2 * of_outsiders + 1), 2 * len(grid) + 1


def _resampled(ranks: Tensor, n_rows: int, n_ranks: int, generator: torch.Generator) -> Tensor:
    """``(n_rows, n_ranks)`` counts of each rank among as many as there are in ``ranks``, drawn with replacement."""
    drawn = ranks[torch.randint(len(ranks), (n_rows, len(ranks)), generator=generator)]
    drawn += torch.arange(n_rows)[:, None] * n_ranks
    return torch.bincount(drawn.flatten(), minlength=n_rows * n_ranks).view(n_rows, n_ranks).double()


def _figures(counts: list[Tensor]) -> Tensor:
    """``(4, B)``: the figures of B sets, in the order of ``Separation.values``.

    Args:
        counts: ``(B, K)`` float64 for each half of the members and each half of the outsiders: how many have each of
            the K ranks.
    """
    below = [
        count.cumsum(1) for count in counts
    ]  # at or below each rank: not taken for members by the threshold above it
    n_members, n_outsiders = below[0][0, -1] + below[1][0, -1], below[2][0, -1] + below[3][0, -1]
    members, outsiders = below[0] + below[1], below[2] + below[3]
    auc = ((counts[0] + counts[1]) * (outsiders - (counts[2] + counts[3]) / 2)).sum(1) / (n_members * n_outsiders)
    # TPR - FPR of the threshold above each rank, in each half; the last is 0, as is that of a threshold below all.
    gains = [below[2 + half] / below[2 + half][0, -1] - below[half] / below[half][0, -1] for half in (0, 1)]
    balanced = torch.zeros_like(auc)
    for half in (0, 1):
        chosen = gains[half].argmax(1, keepdim=True)
        balanced += (1 + gains[1 - half].gather(1, chosen)[:, 0]) / 4
    found = [auc, balanced]
    for rate in _FALSE_POSITIVE_RATES:
        if n_outsiders * rate < 1 - 1e-9:
            found.append(torch.full_like(auc, math.nan))
            continue
        allowed = (n_outsiders * rate + 1e-9).floor()
        first = (n_outsiders - outsiders > allowed).sum(1, keepdim=True)  # the lowest threshold is above this rank
        found.append((n_members - members.gather(1, first)[:, 0]) / n_members)
    return torch.stack(found)
