"""The seeded split of clean data into forget, recovery and held-out parts, within each class."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
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


def split_by_class(
    labels: Tensor,
    *,
    holdout_fraction: float,
    forget_fraction: float,
    seed: int,
    identities: Sequence[Hashable] | None = None,
) -> Split:
    """``torch.randperm`` within each class, divided at ``holdout_fraction``.

    A class of two samples or more has at least one in each part; a single sample is in the recovery part. The forget
    set is the first ``forget_fraction`` of each class's recovery part. SEAM's authors draw both sets independently from
    the training data, so theirs may overlap too.

    Samples with the same identity fall on one side, also those of different classes: these count with the class of the
    first. The held-out part has the first of them alone: counted several times, they would seem to say more than they
    do. The others are then in no part.

    Args:
        labels: ``(N,)`` int64.
        holdout_fraction: in (0, 1): share for all decisions; never trained on.
        forget_fraction: in (0, 1]: share of the recovery part for the forgetting steps.
        seed: same seed, same data: same split.
        identities: of the samples, equal for identical ones; ``None``: all differ.

    Returns:
        Split, indices ascending within each part.

    Raises:
        ConfigError: e.g. ``holdout_fraction is 1.5; expected a number in (0, 1)``.
    """
    if not 0 < holdout_fraction < 1:
        raise ConfigError(f"holdout_fraction is {holdout_fraction}; expected a number in (0, 1)")
    _check_forget_fraction(forget_fraction)
    names: Sequence[Hashable] = range(len(labels)) if identities is None else identities
    given = labels.tolist()
    home: dict[Hashable, int] = {}  # the class with which the samples of a name count
    strays: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        if home.setdefault(name, given[i]) != given[i]:
            strays.setdefault(name, []).append(i)
    forget, recovery, holdout = [], [], []
    for members in _shuffled_classes(labels, seed):
        copies: dict[Hashable, list[int]] = {}  # in the order in which they were drawn
        for i in members.tolist():
            if home[names[i]] == given[i]:
                copies.setdefault(names[i], []).append(i)
        groups = [[*group, *strays.get(name, [])] for name, group in copies.items()]
        n_holdout = max(min(max(round(holdout_fraction * len(groups)), 1), len(groups) - 1), 0)
        holdout.append(members.new_tensor([group[0] for group in groups[:n_holdout]]))
        recovery.append(members.new_tensor([i for group in groups[n_holdout:] for i in group]))
        forget.append(_first_share(recovery[-1], forget_fraction))
    return _ascending(forget, recovery, holdout)


def split_before(labels: Tensor, n_holdout: int, *, forget_fraction: float, seed: int) -> Split:
    """The last ``n_holdout`` samples held out, all others for recovery; the forget part as in ``split_by_class``.

    Args:
        labels: ``(N,)`` int64.
        n_holdout: in [1, N).
        forget_fraction, seed: as for ``split_by_class``.
    """
    _check_forget_fraction(forget_fraction)
    recovery = list(_shuffled_classes(labels[:-n_holdout], seed))
    forget = [_first_share(members, forget_fraction) for members in recovery]
    return _ascending(forget, recovery, [torch.arange(len(labels) - n_holdout, len(labels))])


def _check_forget_fraction(forget_fraction: float) -> None:
    if not 0 < forget_fraction <= 1:
        raise ConfigError(f"forget_fraction is {forget_fraction}; expected a number in (0, 1]")


def _first_share(members: Tensor, fraction: float) -> Tensor:
    return members[: max(round(fraction * len(members)), 1)]


def _ascending(*parts: list[Tensor]) -> Split:
    return Split(*(torch.cat(part).sort().values for part in parts))
