"""The seeded split of clean data into forget, recovery and held-out parts, within each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seamfast.errors import ConfigError


def draw_by_class(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """``torch.randperm`` within each class, cut to ``round(fraction * size of the class)``, at least one sample.

    Args:
        labels: ``(N,)`` int64.
        fraction: in (0, 1].
        seed: same seed, same data: same samples.

    Returns:
        Sample indices, int64, ascending.

    Raises:
        ConfigError: e.g. ``fraction is 0; expected a number in (0, 1]``.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; expected a number in (0, 1]")
    drawn = [members[: max(round(fraction * len(members)), 1)] for members in _shuffled_classes(labels, seed)]
    return torch.cat(drawn).sort().values


def _shuffled_classes(labels: Tensor, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        yield members[torch.randperm(len(members), generator=generator)]


@dataclass(frozen=True)
class Split:
    """Sample indices, int64: ``holdout`` shares none with the others; ``forget`` is a part of ``recovery``."""

    forget: Tensor
    recovery: Tensor
    holdout: Tensor


def split_by_class(labels: Tensor, *, holdout_fraction: float, forget_fraction: float, seed: int) -> Split:
    """``torch.randperm`` within each class, divided at ``holdout_fraction``.

    A class of two samples or more has at least one in each part; a single sample is in the recovery part. The forget
    set is the first ``forget_fraction`` of each class's recovery part. SEAM's authors draw both sets independently from
    the training data, so theirs may overlap too.

    Args:
        labels: ``(N,)`` int64.
        holdout_fraction: in (0, 1): share for all decisions; never trained on.
        forget_fraction: in (0, 1]: share of the recovery part for the forgetting steps.
        seed: same seed, same data: same split.

    Returns:
        Split, indices ascending within each part.

    Raises:
        ConfigError: e.g. ``holdout_fraction is 1.5; expected a number in (0, 1)``.
    """
    if not 0 < holdout_fraction < 1:
        raise ConfigError(f"holdout_fraction is {holdout_fraction}; expected a number in (0, 1)")
    if not 0 < forget_fraction <= 1:
        raise ConfigError(f"forget_fraction is {forget_fraction}; expected a number in (0, 1]")
    forget, recovery, holdout = [], [], []
    for members in _shuffled_classes(labels, seed):
        n_holdout = min(max(round(holdout_fraction * len(members)), 1), len(members) - 1)
        holdout.append(members[:n_holdout])
        recovery.append(members[n_holdout:])
        forget.append(recovery[-1][: max(round(forget_fraction * len(recovery[-1])), 1)])
    forget_set, recovery_set, holdout_set = (torch.cat(part).sort().values for part in (forget, recovery, holdout))
    return Split(forget_set, recovery_set, holdout_set)
