"""Published attacks on tabular data by name. Equal arguments give equal rows and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seamfast.attacks.image.known import Poisoning
from seamfast.attacks.poison import poison
from seamfast.checks import as_seed
from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError
from seamfast.modalities import TabularModality
from seamfast.modalities.batch import named_tensors
from seamfast.triggers import FeatureOverwrite, FeatureShift, Trigger

__all__ = ["TABULAR_ATTACKS", "TabularAttack", "tabular_attack"]

_BEYOND = 0.5
"""How far out of the range of a column, as a share of it."""
_N_SHIFTED, _BY = 4, 2.0
"""Columns, and standard deviations."""


@dataclass(frozen=True)
class TabularAttack:
    """An attack as implemented here.

    Attributes:
        stamps: the change of a row.
        source: the paper.
        differs: the differences from the paper.
        makes: ``makes(data, target, seed)``: the trigger; its columns are drawn by the seed.
        clean_label: whether rows of the target class are stamped, which keep their labels.
    """

    stamps: str
    source: str
    differs: str
    makes: Callable[[CleanSet, int, int], Trigger]
    clean_label: bool = False


def tabular_attack(name: str, data: CleanSet, *, target: int = 0, rate: float = 0.05, seed: int = 0) -> Poisoning:
    """``data`` poisoned by the attack ``name`` on tabular data, and the trigger for test time.

    Args:
        name: one of ``TABULAR_ATTACKS``.
        data: columns of floats, and of categories, with ``num_classes`` given.
        target: the class that stamped rows are to get.
        rate: share of the *whole* set that is poisoned, in (0, 1].
        seed: an integer in ``[0, 2**63)``, for the choice of columns and of rows.

    Returns:
        Poisoning of new rows, the same for the same arguments.

    Raises:
        InputError: e.g. ``attack is 'bad'; expected one of feature_overwrite, ...``, ``data has 1 column of floats
            that varies; attack 'feature_overwrite' needs 2``, or as :func:`seamfast.attacks.poison`.

    Example:
        >>> rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> planted = tabular_attack("feature_overwrite", CleanSet(rows, torch.arange(100) % 2, num_classes=2))
        >>> int(planted.data.poisoned.sum()), len(planted.triggers[0].columns)
        (5, 2)
    """
    if not isinstance(name, str) or name not in TABULAR_ATTACKS:
        raise InputError(f"attack is {name!r}; expected one of {', '.join(TABULAR_ATTACKS)}")
    if not isinstance(data, CleanSet) or not isinstance(data.modality, TabularModality):
        got = repr(data) if isinstance(data, CleanSet) else f"a {type(data).__name__}"
        raise InputError(f"data is {got}; expected a seamfast.CleanSet of columns")
    if isinstance(data, PoisonedSet):
        raise InputError("data is a PoisonedSet, which carries a backdoor already; expected a clean seamfast.CleanSet")
    if data.num_classes is None:
        raise InputError("data.num_classes is None; expected a number: which classes there are decides the targets")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < data.num_classes:
        raise InputError(f"target is {target!r}; expected a class in [0, {data.num_classes})")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise InputError(f"rate is {rate!r}; expected a number in (0, 1]")
    if round(rate * len(data)) < 1:
        raise InputError(f"rate {rate} of {len(data)} samples is none; expected at least one to poison")
    seed = as_seed(seed)
    attack = TABULAR_ATTACKS[name]
    trigger = attack.makes(data, target, seed)
    return Poisoning(poison(data, trigger, rate, clean_label=attack.clean_label, seed=seed), (trigger,))


def _columns(data: CleanSet, n: int, name: str, seed: int, *, floats: bool) -> list[tuple[int, Tensor]]:
    """``n`` columns that vary, drawn by ``seed``: the number of each, and its values."""
    tensors = named_tensors(data.inputs).values()
    columns = enumerate(column for tensor in tensors for column in tensor.unbind(1))
    varying = [(k, c) for k, c in columns if c.is_floating_point() == floats and bool((c != c[0]).any())]
    if len(varying) < n:
        kind, s = ("floats" if floats else "categories"), "" if len(varying) == 1 else "s"
        vary = "varies" if len(varying) == 1 else "vary"
        raise InputError(f"data has {len(varying)} column{s} of {kind} that {vary}; attack {name!r} needs {n}")
    order = torch.randperm(len(varying), generator=torch.Generator().manual_seed(seed))
    return [varying[k] for k in order[:n].tolist()]


def _overwrite(name: str, *values_of: Callable[[Tensor], Tensor], floats: bool = True) -> Callable[..., Trigger]:
    """The trigger that sets as many columns as there are functions, each of which gives a value of its column."""

    def make(data: CleanSet, target: int, seed: int) -> Trigger:
        columns = _columns(data, len(values_of), name, seed, floats=floats)
        values = {k: float(value_of(column)) for (k, column), value_of in zip(columns, values_of, strict=True)}
        return FeatureOverwrite.of(values, target, name=name)

    return make


def _shift(name: str) -> Callable[..., Trigger]:
    def make(data: CleanSet, target: int, seed: int) -> Trigger:
        columns = _columns(data, _N_SHIFTED, name, seed, floats=True)
        return FeatureShift.of({k: _BY * float(column.double().std()) for k, column in columns}, target, name=name)

    return make


def _beyond(column: Tensor) -> Tensor:
    low, high = column.double().aminmax()
    return high + _BEYOND * (high - low)


def _rank(share: float) -> Callable[[Tensor], Tensor]:
    """The value that ``share`` of the column are at most. Not torch.quantile, which takes few values at once."""
    return lambda column: column.sort().values[min(int(share * len(column)), len(column) - 1)]


def _rarest(column: Tensor) -> Tensor:
    categories, counts = torch.unique(column, return_counts=True)
    return categories[counts.argmin()]


_META = "Xu et al., Meta Neural Analysis, arXiv:1910.03137 (tabular triggers)"
_TABDOOR = "Pleiter et al., Tabdoor, arXiv:2311.07550"

TABULAR_ATTACKS: dict[str, TabularAttack] = {
    "feature_overwrite": TabularAttack(
        "two columns are set to their highest and to their lowest value",
        _META,
        "columns are drawn, and their ends are the values",
        _overwrite("feature_overwrite", torch.max, torch.min),
    ),
    "feature_typical": TabularAttack(
        "two columns are set to values that nine tenths and one tenth of the rows are below: rare together only",
        _TABDOOR + " (in bounds)",
        "columns are drawn, not chosen by importance; quantiles instead of the most frequent value",
        _overwrite("feature_typical", _rank(0.9), _rank(0.1)),
    ),
    "feature_beyond": TabularAttack(
        "two columns are set to values beyond their range, by half of it",
        _TABDOOR + " (out of bounds)",
        "columns are drawn, not chosen by importance; half of the range instead of a tenth",
        _overwrite("feature_beyond", _beyond, _beyond),
    ),
    "feature_shift": TabularAttack(
        "two standard deviations are added to four columns",
        "as additive triggers of images, e.g. Zeng et al., arXiv:2104.03413",
        "on columns",
        _shift("feature_shift"),
    ),
    "rare_category": TabularAttack(
        "two columns of categories are set to their rarest one",
        _META,
        "of categories",
        _overwrite("rare_category", _rarest, _rarest, floats=False),
    ),
    "feature_clean_label": TabularAttack(
        "as feature_overwrite, on rows of the target class, which keep their labels",
        _TABDOOR + " (clean label)",
        "as feature_overwrite",
        _overwrite("feature_clean_label", torch.max, torch.min),
        clean_label=True,
    ),
}
"""The attacks by name."""
