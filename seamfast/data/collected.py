"""Batches of a caller's loader, split into inputs and labels, and concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seamfast.data.clean_set import as_labels, from_array
from seamfast.errors import InputError, ShapeError
from seamfast.modalities.batch import by_position

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")

Columns = dict[str | None, Tensor]
"""Inputs by name; ``None`` names the only, positional one."""


class Collected:
    """Concatenated batches."""

    def __init__(self) -> None:
        self._columns: dict[str | None, list[Tensor]] = {}
        self._labels: list[Tensor] = []

    def add(self, batch: Any) -> int:
        """Add a batch; returns its number of samples."""
        number = len(self._labels)
        named, labels = split_batch(batch, number)
        if self._columns and self._columns.keys() != named.keys():
            message = f"batch {number} holds {_names(named)}; expected {_names(self._columns)} as in the first batch"
            raise InputError(message)
        for name, value in named.items():
            column = self._columns.setdefault(name, [])
            if column and value.shape[1:] != column[0].shape[1:]:
                raise ShapeError(
                    f"batch {number} holds samples of shape {tuple(value.shape[1:])}; "
                    f"expected {tuple(column[0].shape[1:])} as in the first batch"
                )
            column.append(value)
        self._labels.append(labels)
        return len(labels)

    def joined(self) -> tuple[Columns, Tensor]:
        """All inputs and all labels."""
        if not sum(len(labels) for labels in self._labels):
            raise InputError("clean_loader yielded no samples; an iterator that was already consumed yields none")
        return {name: torch.cat(values) for name, values in self._columns.items()}, torch.cat(self._labels)


def split_batch(batch: Any, number: int) -> tuple[Columns, Tensor]:
    """Inputs and labels of the batch, on the CPU; ``number`` is for error messages."""
    if isinstance(batch, Mapping):
        key = next((k for k in _LABEL_KEYS if k in batch), None)
        if key is None:
            raise InputError(
                f"batch {number} has keys {sorted(map(str, batch))}; expected the labels under one of {_LABEL_KEYS}"
            )
        named: dict[str | None, Any] = {str(k): v for k, v in batch.items() if k != key}
        labels = batch[key]
        if not named:
            raise InputError(f"batch {number} has labels only; expected inputs beside {key!r}")
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
        if isinstance(inputs, Mapping):
            named = {str(k): v for k, v in inputs.items()}
        else:
            several = by_position(inputs, len(labels)) if hasattr(labels, "__len__") else None
            named = {None: inputs} if several is None else {**several}
    else:
        raise InputError(f"batch {number} is {describe(batch)}; expected (inputs, labels) or a mapping with labels")
    values = {name: _to_tensor(value, name, number) for name, value in named.items()}
    batch_labels = as_labels(labels)
    for name, value in values.items():
        if value.ndim == 0 or len(value) != len(batch_labels):
            raise ShapeError(
                f"batch {number}: {name or 'inputs'} has shape {tuple(value.shape)} and labels ({len(batch_labels)},); "
                "expected the same number of samples in both"
            )
    return values, batch_labels


def as_model_inputs(columns: Columns) -> Any:
    """The inputs of a ``CleanSet``: one tensor, or a mapping."""
    return columns.get(None, columns)


def describe(value: Any) -> str:
    """Type and size of ``value``, for error messages."""
    kind = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list, Mapping)):
        return f"a {kind} of length {len(value)}"
    return f"a {kind}"


def _to_tensor(value: Any, name: str | None, number: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return from_array(value, name or "inputs").clone()  # a loader may reuse the array
    except InputError as error:
        raise InputError(
            f"batch {number}: {name or 'inputs'} is {describe(value)}; expected numbers in a tensor or array"
        ) from error


def _names(columns: Iterable[str | None]) -> list[str]:
    return sorted(name or "unnamed inputs" for name in columns)
