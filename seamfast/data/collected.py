"""Batches of a caller's loader, split into inputs and labels, padded to one length and concatenated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import default_collate

from seamfast.data.clean_set import as_labels, from_array
from seamfast.errors import InputError, ShapeError
from seamfast.modalities.batch import by_position

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")  # one number a token each
_CHANNELS = {"L": 1, "RGB": 3}
"""Of the modes of Pillow whose pixels are those of a ``CleanSet``."""
_NO_INPUT = ("idx", "__index_level_0__")  # row numbers of GLUE and of pandas, in sets of Hugging Face

Columns = dict[str | None, Tensor]
"""Inputs by name; ``None`` names the only, positional one."""


class Collected:
    """Concatenated batches."""

    def __init__(self) -> None:
        self._parts: list[Columns] = []
        self._labels: list[Tensor] = []

    def add(self, batch: Any) -> int:
        """Add a batch; returns its number of samples."""
        number = len(self._labels)
        named, labels = split_batch(batch, number)
        if self._parts:
            self._check(named, number)
        self._parts.append(named)
        self._labels.append(labels)
        return len(labels)

    def joined(self) -> tuple[Columns, Tensor]:
        """All inputs and all labels."""
        if not sum(len(labels) for labels in self._labels):
            raise InputError("clean_loader yielded no samples; an iterator that was already consumed yields none")
        parts = padded(self._parts)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, torch.cat(self._labels)

    def _check(self, named: Columns, number: int) -> None:
        """Raise unless a batch holds what the first one does, but for the number of tokens."""
        first = self._parts[0]
        if first.keys() != named.keys():
            message = f"batch {number} holds {_names(named)}; expected {_names(first)} as in the first batch"
            raise InputError(message)
        vary = _of_tokens(first) if _of_tokens(first) == _of_tokens(named) else []
        for name, value in named.items():
            if name not in vary and value.shape[1:] != first[name].shape[1:]:
                raise ShapeError(
                    f"batch {number} holds samples of shape {tuple(value.shape[1:])}; "
                    f"expected {tuple(first[name].shape[1:])} as in the first batch"
                )


def split_batch(batch: Any, number: int) -> tuple[Columns, Tensor]:
    """Inputs and labels of the batch, on the CPU; ``number`` is for error messages."""
    if isinstance(batch, Mapping):
        key = next((k for k in LABEL_KEYS if k in batch), None)
        if key is None:
            raise InputError(
                f"batch {number} has keys {sorted(map(str, batch))}; expected the labels under one of {LABEL_KEYS}"
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
            named = {None: inputs} if several is None else dict(several.items())
    else:
        raise InputError(f"batch {number} is {describe(batch)}; expected (inputs, labels) or a mapping with labels")
    if "input_ids" in named:
        named = _without_text(named)
        if isinstance(named["input_ids"], (list, tuple)):
            named |= _of_rows(named, number)
    values = {name: _to_tensor(value, name, number) for name, value in named.items()}
    batch_labels = as_labels(labels)
    for name, value in values.items():
        if value.ndim == 0 or len(value) != len(batch_labels):
            raise ShapeError(
                f"batch {number}: {name or 'inputs'} has shape {tuple(value.shape)} and labels ({len(batch_labels)},); "
                "expected the same number of samples in both"
            )
    ids = values.get("input_ids")
    for name in _OF_TOKENS:
        if ids is not None and ids.ndim == 2 and name in values and values[name].shape != ids.shape:
            found = f"{name} has shape {tuple(values[name].shape)} and input_ids {tuple(ids.shape)}"
            raise ShapeError(f"batch {number}: {found}; expected the same")
    return values, batch_labels


def padded(parts: list[Columns]) -> list[Columns]:
    """The parts with token ids, masks and types as long as the longest of all parts; others as they are.

    Masks and types get 0, ids what stands where masks are 0 (else 0), on the side where masks have their zeros.
    """
    names = _of_tokens(parts[0])
    if not names or any(_of_tokens(part) != names for part in parts):
        return parts
    lengths = {part["input_ids"].shape[1] for part in parts}
    if len(lengths) == 1:
        return parts
    length = max(lengths)
    fillers, starts, ends = [], False, False
    for part in parts if "attention_mask" in names else ():
        hidden = part["attention_mask"] == 0
        fillers.append(part["input_ids"][hidden])
        hidden = hidden[~hidden.all(1)]  # a text of no token has no side
        starts |= bool(hidden[:, :1].any())
        ends |= bool(hidden[:, -1:].any())
    found = torch.cat(fillers) if fillers else torch.empty(0)
    filler = {"input_ids": int(found.mode().values) if len(found) else 0}
    made = []
    for part in parts:
        missing = length - part["input_ids"].shape[1]
        sides = (missing, 0) if starts and not ends else (0, missing)
        made.append(part | {name: pad(part[name], sides, value=filler.get(str(name), 0)) for name in names})
    return made


def collate(samples: list[Any]) -> Any:
    """``default_collate``; of mappings with ``input_ids``, which may differ in length, a mapping to lists.

    Images of Pillow become ``(C, H, W)`` uint8 tensors first.
    """
    first = samples[0]
    if isinstance(first, Mapping) and "input_ids" in first:
        return {name: [sample[name] for sample in samples] for name in first}
    if any(map(_is_picture, _entries(first))):
        samples = _with_pixels(samples)
    return default_collate(samples)


def _entries(sample: Any) -> list[Any]:
    if isinstance(sample, Mapping):
        return list(sample.values())
    return list(sample) if isinstance(sample, (tuple, list)) else [sample]


def _is_picture(value: Any) -> bool:
    """Whether ``value`` is an image of Pillow, which need not be there."""
    return any((c.__module__, c.__name__) == ("PIL.Image", "Image") for c in type(value).__mro__)


def _with_pixels(samples: list[Any]) -> list[Any]:
    """The samples with their images of Pillow, which must have one size, as ``(C, H, W)`` uint8 tensors."""
    sizes: dict[int, tuple[int, int]] = {}  # by place in the sample

    def pixels(place: int, value: Any) -> Any:
        if not _is_picture(value):
            return value
        if value.mode not in _CHANNELS:
            raise InputError(
                f"clean_loader gives a PIL image of mode {value.mode!r}; expected mode 'RGB' or 'L': let the transform "
                'of the dataset begin with image.convert("RGB"), as in training'
            )
        expected = sizes.setdefault(place, value.size)
        if value.size != expected:
            raise ShapeError(
                f"clean_loader gives PIL images of {_size(value.size)} and of {_size(expected)} pixels; expected one "
                "size: let the transform of the dataset resize or crop them, as in training"
            )
        channels = _CHANNELS[value.mode]
        return torch.from_numpy(np.array(value)).view(*value.size[::-1], channels).permute(2, 0, 1).contiguous()

    def with_pixels(sample: Any) -> Any:
        made = [pixels(place, value) for place, value in enumerate(_entries(sample))]
        if isinstance(sample, Mapping):
            return dict(zip(sample, made, strict=True))
        return made if isinstance(sample, (tuple, list)) else made[0]

    return [with_pixels(sample) for sample in samples]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def is_sample(value: Any) -> bool:
    """Whether ``value`` is one sample as a mapping, and no batch: its label is one number."""
    key = next((k for k in LABEL_KEYS if k in value), None) if isinstance(value, Mapping) else None
    return key is not None and np.ndim(value[key]) == 0


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


def _of_tokens(columns: Columns) -> list[str | None]:
    """The names of the columns with a number for each token, where there are ids of tokens."""
    ids = columns.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.is_floating_point():
        return []
    return [name for name in columns if name in _OF_TOKENS]


def _without_text(named: dict[str | None, Any]) -> dict[str | None, Any]:
    """The columns that a model takes: no strings, which the ids stand for, and no row numbers."""
    return {name: value for name, value in named.items() if name not in _NO_INPUT and not _holds_text(value)}


def _holds_text(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return isinstance(value, np.ndarray) and value.dtype.kind in "OSU"
    while isinstance(value, (list, tuple)) and len(value):
        value = value[0]
    return isinstance(value, str)


def _of_rows(named: dict[str | None, Any], number: int) -> Columns:
    """``(N, L)`` token ids, masks and types of lists of ``N`` rows each, which may differ in length."""
    names = [name for name in named if name in _OF_TOKENS]
    if len({len(named[name]) for name in names}) != 1:
        counts = ", ".join(f"{len(named[name])} of {name}" for name in names)
        raise ShapeError(f"batch {number}: rows are {counts}; expected the same number of samples in all")
    rows: list[Columns] = [
        {name: _to_tensor(row, name, number)[None] for name, row in zip(names, values, strict=True)}
        for values in zip(*(named[name] for name in names), strict=True)
    ]
    for row in rows:
        for name, value in row.items():
            if value.shape != row["input_ids"].shape:
                found = f"{name} has {value.shape[-1]} numbers and input_ids {row['input_ids'].shape[-1]} in one sample"
                raise ShapeError(f"batch {number}: {found}; expected the same")
    rows = padded(rows)
    return {name: torch.cat([row[name] for row in rows]) for name in names}


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
