"""Published attacks on tabular data by name. Equal arguments give equal rows and labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seamfast.attacks.attack import CLEAN_LABEL, TO_TARGET, Attack, Poisoning
from seamfast.attacks.poison import poison
from seamfast.data import CleanSet
from seamfast.errors import InputError
from seamfast.modalities.batch import named_tensors
from seamfast.triggers import FeatureOverwrite, FeatureShift, Trigger

__all__ = ["TABULAR_ATTACKS"]

_BEYOND = 0.5
"""How far out of the range of a column, as a share of it."""
_N_SHIFTED, _BY = 4, 2.0
"""Columns, and standard deviations."""


def _poisons(make: Callable[[CleanSet, int, int], Trigger], *, clean_label: bool = False) -> Callable[..., Poisoning]:
    """The attack with one trigger, ``make(data, target, seed)``, whose columns are drawn by the seed."""

    def poisons(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
        trigger = make(data, target, seed)
        return Poisoning(poison(data, trigger, rate, clean_label=clean_label, seed=seed), (trigger,))

    return poisons


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

    def value_of(column: Tensor) -> Tensor:
        value: Tensor = column.sort().values[min(int(share * len(column)), len(column) - 1)]
        return value

    return value_of


def _rarest(column: Tensor) -> Tensor:
    categories, counts = torch.unique(column, return_counts=True)
    rarest: Tensor = categories[counts.argmin()]
    return rarest


_META = "Xu et al., Meta Neural Analysis, arXiv:1910.03137 (tabular triggers)"
_TABDOOR = "Pleiter et al., Tabdoor, arXiv:2311.07550"


TABULAR_ATTACKS: dict[str, Attack] = {
    "feature_overwrite": Attack(
        "two columns are set to their highest and to their lowest value",
        TO_TARGET,
        _META,
        "columns are drawn, and their ends are the values",
        poisons=_poisons(_overwrite("feature_overwrite", torch.max, torch.min)),
    ),
    "feature_typical": Attack(
        "two columns are set to values that nine tenths and one tenth of the rows are below: rare together only",
        TO_TARGET,
        _TABDOOR + " (in bounds)",
        "columns are drawn, not chosen by importance; quantiles instead of the most frequent value",
        poisons=_poisons(_overwrite("feature_typical", _rank(0.9), _rank(0.1))),
    ),
    "feature_beyond": Attack(
        "two columns are set to values beyond their range, by half of it",
        TO_TARGET,
        _TABDOOR + " (out of bounds)",
        "columns are drawn, not chosen by importance; half of the range instead of a tenth",
        poisons=_poisons(_overwrite("feature_beyond", _beyond, _beyond)),
    ),
    "feature_shift": Attack(
        "two standard deviations are added to four columns",
        TO_TARGET,
        "as additive triggers of images, e.g. Zeng et al., arXiv:2104.03413",
        "on columns",
        poisons=_poisons(_shift("feature_shift")),
    ),
    "rare_category": Attack(
        "two columns of categories are set to their rarest one",
        TO_TARGET,
        _META,
        "of categories",
        poisons=_poisons(_overwrite("rare_category", _rarest, _rarest, floats=False)),
    ),
    "feature_clean_label": Attack(
        "as feature_overwrite, on rows of the target class, which keep their labels",
        CLEAN_LABEL,
        _TABDOOR + " (clean label)",
        "as feature_overwrite",
        poisons=_poisons(_overwrite("feature_clean_label", torch.max, torch.min), clean_label=True),
    ),
}
"""The attacks on rows of columns by name."""
