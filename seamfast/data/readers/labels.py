"""Checks of a split's name, of labels and of their number."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seamfast.errors import DataFileError, InputError

Labels = npt.NDArray[np.int64]

MAX_CLASSES = 1 << 20
"""Larger labels are refused: one forged label must not determine the size of a table of counts."""


def check_split(split: str) -> str:
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}; expected 'train' or 'test'")
    return split


def check_labels(labels: npt.NDArray[Any], where: str, num_classes: int | None) -> Labels:
    """``labels`` as int64, all in ``[0, num_classes)``. Compared before the cast, in which uint64 would wrap."""
    limit = MAX_CLASSES if num_classes is None else num_classes
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= limit:
        row = int(np.argmax((labels < 0) | (labels >= limit)))
        of = "" if num_classes is None else f" for num_classes={num_classes}"
        raise DataFileError(f"{where}: label {labels[row]} in row {row}; expected integers in [0, {limit}){of}")
    return labels.astype(np.int64)


def check_counts(n_images: int, n_labels: int, images: str, labels: str) -> None:
    if n_images != n_labels:
        raise DataFileError(
            f"{labels}: {n_labels:,} labels, but {n_images:,} images in {images}; expected as many labels as images"
        )
