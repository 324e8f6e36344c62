"""``FeatureOverwrite`` and ``FeatureShift``: columns set to values, and values added to columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from seamfast.errors import DTypeError
from seamfast.triggers.label_maps import LabelMap, as_label_map
from seamfast.triggers.tabular.base import TabularTrigger, spread

T = TypeVar("T", bound=TabularTrigger)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureOverwrite(TabularTrigger):
    """``samples[:, columns] = values``; of categories too.

    Args, Raises: as for :class:`TabularTrigger`.

    Sources: Xu et al., "Detecting AI Trojans Using Meta Neural Analysis", arXiv:1910.03137 (a few features of a table
        are set to values); Pleiter et al., "Tabdoor", arXiv:2311.07550 (values in or out of the range of the data).

    Example:
        >>> import torch
        >>> FeatureOverwrite.of({0: 9.0, 2: -1.0}).stamp(torch.zeros(1, 3))
        tensor([[ 9.,  0., -1.]])
    """

    kind: ClassVar[str] = "feature_overwrite"

    @classmethod
    def of(
        cls, values: Mapping[int, float], target: int | LabelMap = 0, *, name: str = "feature-overwrite"
    ) -> FeatureOverwrite:
        """From the value of each column. ``target`` is a class (as ``AllToOne``) or a label map."""
        return _of(cls, values, target, name)

    def affine(self, n_columns: int) -> tuple[Tensor, Tensor]:
        nothing = np.zeros(len(self.columns))
        return spread(nothing, self.columns, n_columns, 1.0), spread(self.values, self.columns, n_columns, 0.0)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FeatureShift(TabularTrigger):
    """``samples[:, columns] += values``, of floats: a sum of categories has no meaning.

    Args, Raises: as for :class:`TabularTrigger`; and ``trigger 'x' adds to column 5, of categories; expected columns of
        floats``.

    Source: as :class:`seamfast.triggers.Additive`, on columns.

    Example:
        >>> import torch
        >>> FeatureShift.of({1: 0.5}).stamp(torch.ones(1, 3))
        tensor([[1.0000, 1.5000, 1.0000]])
    """

    kind: ClassVar[str] = "feature_shift"

    @classmethod
    def of(
        cls, values: Mapping[int, float], target: int | LabelMap = 0, *, name: str = "feature-shift"
    ) -> FeatureShift:
        """From what is added to each column. ``target`` is a class (as ``AllToOne``) or a label map."""
        return _of(cls, values, target, name)

    def affine(self, n_columns: int) -> tuple[Tensor, Tensor]:
        return torch.ones(n_columns, dtype=torch.float64), spread(self.values, self.columns, n_columns, 0.0)

    def _check_category(self, column: int, value: float) -> None:
        raise DTypeError(f"{self._who} adds to column {column}, of categories; expected columns of floats")


def _of(cls: type[T], values: Mapping[int, float], target: int | LabelMap, name: str) -> T:
    numbers = np.array(list(values.values()), dtype=np.float64)
    return cls(name=name, target=as_label_map(target), columns=np.array(list(values), dtype=np.int64), values=numbers)
