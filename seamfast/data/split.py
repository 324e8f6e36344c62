"""Clean data into forget, recovery and held-out parts: class-balanced, seeded."""

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
        seed: the same seed draws the same samples of the same data.

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
    """Sample indices, int64: ``holdout`` shares none with the others; ``forget`` lies in ``recovery``."""

    forget: Tensor
    recovery: Tensor
    holdout: Tensor


def split_by_class(labels: Tensor, *, holdout_fraction: float, forget_fraction: float, seed: int) -> Split:
    """``torch.randperm`` within each class, cut in two at ``holdout_fraction``.

    Every class with two samples or more gives at least one to each side; a class with a single sample gives it to
    recovery. The forget set is the first ``forget_fraction`` of each class's recovery part: SEAM's authors draw both
    sets from the training data independently, so theirs may overlap too.

    Args:
        labels: ``(N,)`` int64.
        holdout_fraction: in (0, 1): the share that decides when to stop and whether to accept; never trained on.
        forget_fraction: in (0, 1]: the share of the recovery part that the forgetting step sees.
        seed: the same seed gives the same split of the same data.

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
