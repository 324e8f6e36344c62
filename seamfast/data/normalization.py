"""``normalization_of``: the normalization that a dataset's own transform applies to its images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

_DEEPEST = 16
"""Sets and transforms within each other; more than that is a set that refers to itself."""
_SLACK = 1e-3
"""By which recovered pixels may leave [0, 1], for rounding in float16."""


class Normalization(NamedTuple):
    """Of images with pixels in [0, 1]: ``(pixels - mean) / std``, one number for each channel or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Unclear(Exception):
    """Whether, or by what, a sample is normalized depends on the draw or on the part of the set."""


def normalization_of(dataset: Any, inputs: Any) -> Normalization | None:
    """Mean and std of the only ``Normalize`` in the transforms of ``dataset``; ``None``: there is no such one.

    Transforms are looked for in the attributes ``transform`` and ``transforms`` of the dataset and of what it wraps
    (``Subset``, ``ConcatDataset``, a set in an attribute of another), within ``Compose`` and ``Sequential``. They are
    told by their names, so those of torchvision, of timm and of one's own count alike. Nothing is found where several
    normalize, some parts of the set are normalized otherwise, or pixels recovered by it would leave [0, 1].

    Args:
        dataset: of a loader, with any attributes.
        inputs: samples as read from it; only of ``(N, C, H, W)`` floats a normalization is told.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point() or not inputs.numel():
        return None
    try:
        found = _of_dataset(dataset, 0)
    except _Unclear:
        return None
    return found[0] if len(found) == 1 and _fits(found[0], inputs) else None


def _of_dataset(dataset: Any, depth: int) -> list[Normalization]:
    """All that are applied to a sample, one after the other."""
    if depth > _DEEPEST:
        raise _Unclear
    if isinstance(dataset, ConcatDataset):
        parts = [_of_dataset(part, depth + 1) for part in dataset.datasets]
        if any(part != parts[0] for part in parts):
            raise _Unclear
        return parts[0]
    transform = getattr(dataset, "transform", None)
    if transform is None:
        transform = getattr(dataset, "transforms", None)
    found = _of_transform(transform, depth + 1)
    for inner in vars(dataset).values() if hasattr(dataset, "__dict__") else ():
        if isinstance(inner, Dataset):
            found += _of_dataset(inner, depth + 1)
    return found


def _of_transform(transform: Any, depth: int) -> list[Normalization]:
    if depth > _DEEPEST:
        raise _Unclear
    name = type(transform).__name__
    if name == "Normalize":
        return [_as_normalization(transform)]
    if name == "StandardTransform":  # of torchvision: that of the images, and that of the labels
        return _of_transform(getattr(transform, "transform", None), depth + 1)
    if isinstance(transform, (list, tuple)):
        inner: Iterable[Any] = transform
    elif isinstance(transform, nn.Sequential):
        inner = transform.children()
    else:
        inner = getattr(transform, "transforms", ())
    found = [one for part in _listed(inner) for one in _of_transform(part, depth + 1)]
    if found and name not in ("Compose", "Sequential", "list", "tuple"):
        raise _Unclear  # RandomApply, RandomChoice, ...: not of each sample
    return found


def _listed(inner: Any) -> list[Any]:
    return list(inner) if isinstance(inner, Iterable) and not isinstance(inner, (str, bytes, Tensor)) else []


def _as_normalization(transform: Any) -> Normalization:
    try:
        mean, std = (
            tuple(float(x) for x in np.asarray(getattr(transform, name), dtype=np.float64).reshape(-1))
            for name in ("mean", "std")
        )
    except (AttributeError, TypeError, ValueError) as error:  # another kind of Normalize
        raise _Unclear from error
    return Normalization(mean, std)


def _fits(normalization: Normalization, inputs: Tensor) -> bool:
    """Whether it is one of as many channels, and all pixels that it recovers lie in [0, 1]."""
    if any(len(values) not in (1, inputs.shape[1]) for values in normalization):
        return False
    mean, std = (torch.tensor(values, dtype=torch.float64).expand(inputs.shape[1]) for values in normalization)
    if not bool(torch.isfinite(mean).all() and (torch.isfinite(std) & (std > 0)).all()):
        return False
    lowest, highest = (ends.double() * std + mean for ends in (inputs.amin((0, 2, 3)), inputs.amax((0, 2, 3))))
    return bool((lowest >= -_SLACK).all() and (highest <= 1 + _SLACK).all())
