"""``TabularTrigger``, the base of all triggers for tabular samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.checks import as_sample_ids, as_seed, integer_or_none, short
from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers.base import Trigger

Table = Tensor | dict[str, Tensor]
"""``(N, F)`` columns, or several such tensors by name, whose columns are numbered through in their order."""

_LARGEST = 2.0**100
"""Of a value: well within float32."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TabularTrigger(Trigger):
    """A trigger of tabular samples: a change of some columns, in the units in which the columns are stored.

    Args:
        name, target: as for :class:`Trigger`.
        columns: ``(K,)`` different integers from 0. Columns are numbered through in the order of the tensors: of
            ``{"continuous": (N, 4), "categorical": (N, 3)}``, 5 is the second category.
        values: ``(K,)`` finite numbers, one for each column; integers for columns of categories.

    Raises:
        ShapeError, DTypeError, InputError: e.g. ``trigger 'x' has 2 columns and 3 values; expected one value for each
            column``, or ``trigger 'x' columns hold 4 twice; expected different columns``.
    """

    columns: npt.NDArray[np.int64] = field(metadata={"dtype": np.int64, "ndim": 1, "low": 0, "high": 2**31 - 1})
    values: npt.NDArray[np.float64] = field(
        metadata={"dtype": np.float64, "ndim": 1, "low": -_LARGEST, "high": _LARGEST}
    )

    def _validate(self) -> None:
        if len(self.columns) != len(self.values):
            got = f"{self._who} has {len(self.columns)} columns and {len(self.values)} values"
            raise ShapeError(f"{got}; expected one value for each column")
        column, count = np.unique(self.columns, return_counts=True)
        if count.max() > 1:
            raise InputError(f"{self._who} columns hold {column[count.argmax()]} twice; expected different columns")

    @abstractmethod
    def affine(self, n_columns: int) -> tuple[Tensor, Tensor]:
        """``factor`` and ``offset``, ``(F,)`` float64 on the CPU: the trigger is ``samples * factor + offset``."""

    def stamp(self, samples: Table, *, sample_ids: Tensor | Sequence[int] | None = None, seed: int = 0) -> Table:
        """The samples with the trigger on them; the input is not changed.

        Args:
            samples: ``(N, F)`` floats, or several tensors of columns by name, on any device.
            sample_ids, seed: as for :meth:`Trigger.stamp`; nothing is drawn.

        Returns:
            New tensors, of the same form.

        Raises:
            ShapeError: e.g. ``trigger 'x' changes column 9; samples have 7 columns``.
            DTypeError, InputError: as :meth:`check_columns`.
        """
        tensors = check_table(samples)
        as_sample_ids(sample_ids, len(tensors[0]), tensors[0].device)
        as_seed(seed, 64)
        self.check_columns([t.is_floating_point() for t in tensors for _ in range(t.shape[1])])
        factor, offset = self.affine(sum(t.shape[1] for t in tensors))
        return changed(samples, factor[None].to(tensors[0].device), offset[None].to(tensors[0].device))

    def check_fits(self, sample_shape: Sequence[int]) -> None:
        """Raise if this trigger cannot be stamped on samples of so many columns.

        Args:
            sample_shape: ``(F,)``, all columns of a sample.

        Raises:
            ShapeError: e.g. ``trigger 'x' changes column 9; samples have 7 columns``.
        """
        sizes = tuple(integer_or_none(n) for n in sample_shape)
        if len(sizes) != 1 or sizes[0] is None or sizes[0] < 1:
            raise ShapeError(f"sample shape is {short(tuple(sample_shape))}; expected (F,), at least 1")
        if self.columns.max() >= sizes[0]:
            raise ShapeError(f"{self._who} changes column {self.columns.max()}; samples have {sizes[0]} columns")

    def check_columns(self, are_floats: Sequence[bool]) -> None:
        """Raise if this trigger does not fit these columns.

        Args:
            are_floats: for each column, whether it holds floats; the others hold categories.

        Raises:
            ShapeError: as :meth:`check_fits`.
            DTypeError: e.g. ``trigger 'x' sets column 5, of categories, to 0.5; expected an integer``.
        """
        self.check_fits((len(are_floats),))
        for column, value in zip(self.columns.tolist(), self.values.tolist(), strict=True):
            if not are_floats[column]:
                self._check_category(column, value)

    def _check_category(self, column: int, value: float) -> None:
        if value != int(value):
            raise DTypeError(f"{self._who} sets column {column}, of categories, to {value:g}; expected an integer")

    def _describe(self) -> str:
        pairs = [f"{c}: {v:g}" for c, v in zip(self.columns[:4].tolist(), self.values[:4].tolist(), strict=True)]
        return "{" + ", ".join([*pairs, *(["..."] if len(self.columns) > 4 else [])]) + "}"


def check_table(samples: Any) -> list[Tensor]:
    """The tensors of ``samples``. Raises unless they are ``(N, F)`` columns of one length."""
    tensors = list(samples.values()) if isinstance(samples, dict) else [samples]
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise DTypeError(f"samples is {short(samples)}; expected a tensor of columns, or several by name")
    shapes = [tuple(t.shape) for t in tensors]
    if any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ShapeError(f"samples have shapes {', '.join(map(str, shapes))}; expected (N, F) each, of one N")
    return tensors


def changed(samples: Table, factor: Tensor, offset: Tensor) -> Table:
    """``samples * factor + offset``, in the dtype of each tensor; ``(N, F)`` or ``(1, F)`` float64."""
    tensors = samples.values() if isinstance(samples, dict) else [samples]
    ends = list(accumulate(t.shape[1] for t in tensors))
    results = [
        t * factor[:, end - t.shape[1] : end].to(t.dtype) + offset[:, end - t.shape[1] : end].to(t.dtype)
        for t, end in zip(tensors, ends, strict=True)
    ]
    return dict(zip(samples, results, strict=True)) if isinstance(samples, dict) else results[0]


def spread(values: npt.NDArray[Any], columns: npt.NDArray[np.int64], n_columns: int, other: float) -> Tensor:
    """``(F,)`` float64: ``values`` at ``columns``, ``other`` elsewhere."""
    row = torch.full((n_columns,), other, dtype=torch.float64)
    row[torch.tensor(columns)] = torch.tensor(values, dtype=torch.float64)
    return row
