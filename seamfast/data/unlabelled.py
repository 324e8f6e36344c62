"""``as_unlabelled``: samples without labels, of any supported form, read into a ``CleanSet`` whose labels are all 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seamfast.data.adapters import as_clean_set, batches_of
from seamfast.data.clean_set import CleanSet, as_inputs
from seamfast.data.collected import LABEL_KEYS, collate, describe
from seamfast.errors import InputError
from seamfast.modalities.batch import named_tensors

_EXPECTED = "expected a tensor or array of samples, a mapping of them, a DataLoader, a Dataset or a seamfast.CleanSet"


def as_unlabelled(data: Any) -> CleanSet:
    """``CleanSet(inputs, zeros)`` of all samples that ``data`` holds; labels that are there are left out.

    Args:
        data: a ``CleanSet``; a tensor or array ``(N, ...)``, or a mapping of names to these; a ``Dataset`` of samples,
            or of tuples whose first entry is one; a ``DataLoader``, or any iterable of batches: tensors, tuples whose
            first entry is the samples, or mappings. Batches are read once, and sorted by content.

    Returns:
        CleanSet on the CPU.

    Raises:
        InputError: e.g. ``unlabelled holds no samples; expected at least two``.

    Example:
        >>> len(as_unlabelled(torch.zeros(4, 3, 8, 8)))
        4
    """
    if isinstance(data, CleanSet):
        samples = CleanSet(data.inputs, torch.zeros_like(data.labels), modality=data.modality)
    elif isinstance(data, (Tensor, np.ndarray, Mapping)):
        samples = _of_inputs(data)
    elif isinstance(data, DataLoader) or (isinstance(data, Iterable) and not isinstance(data, (str, bytes, Dataset))):
        samples = as_clean_set(_labeled(batches_of(data)))
    elif isinstance(data, Dataset):
        samples = as_clean_set(_labeled(DataLoader(data, batch_size=256, collate_fn=collate)))
    else:
        raise InputError(f"unlabelled is {describe(data)}; {_EXPECTED}")
    if len(samples) < 2:
        raise InputError(f"unlabelled holds {len(samples) or 'no'} samples; expected at least two")
    return samples


def _of_inputs(data: Any) -> CleanSet:
    inputs = as_inputs(data)
    value = next(iter(named_tensors(inputs).values()))
    if not value.ndim:
        raise InputError(f"unlabelled is one number; {_EXPECTED}")
    return CleanSet(inputs, torch.zeros(len(value), dtype=torch.int64))


def _labeled(batches: Iterable[Any]) -> Iterable[Any]:
    """``(samples, zeros)`` of each batch."""
    for number, batch in enumerate(batches):
        inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
        if isinstance(inputs, Mapping):
            inputs = {name: value for name, value in inputs.items() if name not in LABEL_KEYS}
        first = next(iter(inputs.values()), None) if isinstance(inputs, Mapping) else inputs
        if first is None or not hasattr(first, "__len__") or isinstance(first, (str, bytes)):
            raise InputError(
                f"batch {number} of unlabelled is {describe(batch)}; expected a tensor, a tuple that begins "
                "with one, or a mapping of tensors"
            )
        yield inputs, torch.zeros(len(first), dtype=torch.int64)
