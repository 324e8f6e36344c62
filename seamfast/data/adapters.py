"""Whatever a caller has as clean data, read once into a ``CleanSet``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from seamfast.data.clean_set import CleanSet, as_labels, from_array
from seamfast.errors import InputError, ShapeError

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def as_clean_set(data: Any) -> CleanSet:
    """``CleanSet`` of all samples that ``data`` holds, read in one pass.

    A loader's samples are put into an order of their own content, so a loader that shuffles gives the same set every
    time. A loader that augments is read once: its samples stay as that pass drew them.

    Args:
        data: a ``CleanSet`` (returned as it is); an ``(inputs, labels)`` pair of tensors or arrays; a map-style
            ``Dataset`` of ``(input, label)`` samples; a ``DataLoader``, or any iterable of batches. A batch is a tuple
            or list ``(inputs, labels, ...)``, or a mapping with the labels under one of ``labels``, ``label``,
            ``targets``, ``target``, ``y`` and everything else handed to the model by name. Floats are taken in the
            form the model takes; uint8 images are scaled to ``[0, 1]`` (for another normalisation, pass a
            ``CleanSet``).

    Returns:
        CleanSet on the CPU.

    Raises:
        InputError: e.g. ``clean_loader yielded no samples; an iterator that was already consumed yields none``.

    Example:
        >>> import numpy as np
        >>> len(as_clean_set((np.zeros((4, 3, 8, 8), np.float32), [0, 1, 0, 1])))
        4
    """
    if isinstance(data, CleanSet):
        return data
    if _is_pair(data):
        return CleanSet(data[0], data[1])
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        # The default loader: collates samples (tuples, dicts) into batches as every PyTorch user expects.
        return _from_batches(DataLoader(data, batch_size=256), sort=False)
    if isinstance(data, IterableDataset):
        return _from_batches(DataLoader(data, batch_size=256), sort=True)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor, np.ndarray, Mapping)):
        return _from_batches(data, sort=True)
    raise InputError(
        f"clean_loader is {_describe(data)}; expected a DataLoader, a Dataset, "
        "an (inputs, labels) pair or a seamfast.CleanSet"
    )


def _is_pair(data: Any) -> bool:
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    inputs, labels = data
    if not isinstance(inputs, (Tensor, np.ndarray, Mapping)):
        return False
    if isinstance(labels, (Tensor, np.ndarray)):
        return not (isinstance(data, list) and isinstance(inputs, Mapping))
    return isinstance(labels, (list, tuple)) and all(isinstance(v, (int, np.integer)) for v in labels)


def _from_batches(batches: Iterable[Any], *, sort: bool) -> CleanSet:
    columns: dict[str | None, list[Tensor]] = {}
    labels: list[Tensor] = []
    for number, batch in enumerate(batches):
        named, batch_labels = _split_batch(batch, number)
        if columns and columns.keys() != named.keys():
            raise InputError(f"batch {number} holds {_names(named)}; expected {_names(columns)} as in the first batch")
        for name, value in named.items():
            if name in columns and value.shape[1:] != columns[name][0].shape[1:]:
                got, wanted = tuple(value.shape[1:]), tuple(columns[name][0].shape[1:])
                raise ShapeError(
                    f"batch {number} holds samples of shape {got}; expected {wanted} as in the first batch"
                )
            columns.setdefault(name, []).append(value)
        labels.append(batch_labels)
    if not sum(len(v) for v in labels):
        raise InputError("clean_loader yielded no samples; an iterator that was already consumed yields none")
    inputs = {name: torch.cat(values) for name, values in columns.items()}
    all_labels = torch.cat(labels)
    if sort:
        order = _content_order(inputs.values(), all_labels)
        inputs, all_labels = {name: value[order] for name, value in inputs.items()}, all_labels[order]
    if None in inputs:
        return CleanSet(inputs[None], all_labels)
    return CleanSet(inputs, all_labels)


def _split_batch(batch: Any, number: int) -> tuple[dict[str | None, Tensor], Tensor]:
    """One batch as named inputs (``None`` names the only, positional one) and labels."""
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
        if isinstance(batch[0], Mapping):
            named, labels = {str(k): v for k, v in batch[0].items()}, batch[1]
        else:
            named, labels = {None: batch[0]}, batch[1]
    else:
        raise InputError(f"batch {number} is {_describe(batch)}; expected (inputs, labels) or a mapping with labels")
    values = {name: _to_tensor(value, name, number) for name, value in named.items()}
    batch_labels = as_labels(labels)
    for name, value in values.items():
        if value.ndim == 0 or len(value) != len(batch_labels):
            raise ShapeError(
                f"batch {number}: {name or 'inputs'} has shape {tuple(value.shape)} and labels ({len(batch_labels)},); "
                "expected the same number of samples in both"
            )
    return values, batch_labels


def _to_tensor(value: Any, name: str | None, number: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return from_array(value, name or "inputs").clone()  # a loader may fill the same array again
    except InputError as error:
        raise InputError(
            f"batch {number}: {name or 'inputs'} is {_describe(value)}; expected numbers in a tensor or array"
        ) from error


def _content_order(columns: Iterable[Tensor], labels: Tensor) -> Tensor:
    """The order of the samples' digests: the same whichever way a loader shuffled them."""
    digests = [hashlib.blake2b(int(y).to_bytes(8, "little", signed=True), digest_size=16) for y in labels]
    for column in columns:
        flat = column.reshape(len(column), -1).contiguous()
        for digest, row in zip(digests, flat.view(torch.uint8).numpy() if flat.shape[1] else (), strict=False):
            digest.update(row.data)
    keys = [digest.digest() for digest in digests]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)


def _names(columns: Iterable[str | None]) -> list[str]:
    return sorted(name or "unnamed inputs" for name in columns)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list, Mapping)):
        return f"a {kind} of length {len(value)}"
    return f"a {kind}"
