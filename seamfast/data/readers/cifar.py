"""CIFAR-10: the binary version, or the same arrays in an ``.npz``. The pickle version is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.labels import Labels, check_labels, check_split
from seamfast.data.readers.npz import read_npz
from seamfast.errors import DataFileError
from seamfast.untrusted import (
    MAX_BYTES,
    Bytes,
    PathLike,
    allocate,
    check_budget,
    check_sample_shape,
    existing_folder,
    file_size,
    fill,
    listed,
    open_regular,
    printable,
    shown,
)

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IMAGE_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # a label, then three planes of pixels
_RECORDS_A_READ = 1000
_FILES = {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)}
_BINARY_FOLDERS = (".", "cifar-10-batches-bin")
_PICKLE_FOLDERS = (".", "cifar-10-batches-py")


def read_cifar10(
    root: PathLike,
    split: str = "train",
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``CleanSet(images, labels)`` of CIFAR-10, with its 10 class names.

    Args:
        root: folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, in it or in
            ``cifar-10-batches-bin``; or a folder with one ``cifar*10*.npz``; or an ``.npz`` with ``x_train``,
            ``y_train``, ``x_test``, ``y_test``, images ``(N, 32, 32, 3)`` or ``(N, 3, 32, 32)``.
        split: ``"train"`` or ``"test"``.
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none.
        max_bytes: limit on the images and labels in memory, in bytes.
        sample_shape: ``(C, H, W)`` that the images must have, if not ``None``: ``(3, 32, 32)``.

    Returns:
        Images ``(N, 3, 32, 32)`` uint8, labels ``(N,)`` int64 in ``[0, 10)``.

    Raises:
        DataFileError: e.g. ``data: holds CIFAR-10 as Python pickle (data_batch_1), which seamfast never reads, since
            loading a pickle can run any code; use the binary version ...``, ``data_batch_2.bin: 3,072 bytes; expected
            a multiple of 3,073, one record an image``, ``data_batch_1.bin: label 10 in row 7; expected integers in
            [0, 10) for num_classes=10``.
        InputError: ``split is 'val'; expected 'train' or 'test'``.

    Source: A. Krizhevsky, "The CIFAR-10 dataset", binary version, https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    check_split(split)
    check_sample_shape(_IMAGE_SHAPE, sample_shape, shown(root))
    looked_for = f"{', '.join(_FILES[split])} in {' or '.join(_BINARY_FOLDERS)}, or a cifar*10*.npz"
    path = Path(root)
    if path.suffix != ".npz":
        base = existing_folder(root, looked_for)
        for place in (base / name for name in _BINARY_FOLDERS):
            if any(os.path.isfile(place / name) for name in _FILES[split]):
                pixels, labels = _read_binary([place / name for name in _FILES[split]], max_bytes)
                return CleanSet(pixels, labels, mean=mean, std=std, num_classes=10, class_names=CLASS_NAMES)
        path = _only_npz(base, split, looked_for)
    return read_npz(
        path,
        split=split,
        mean=mean,
        std=std,
        num_classes=10,
        class_names=CLASS_NAMES,
        max_bytes=max_bytes,
        sample_shape=_IMAGE_SHAPE,
    )


def holds_cifar10(root: Path) -> bool:
    """Whether ``root`` holds CIFAR-10, also as pickle, which ``read_cifar10`` refuses."""
    binary = _existing(root, _BINARY_FOLDERS, [name for names in _FILES.values() for name in names])
    return bool(binary or _pickles(root) or _archives(root))


def _existing(root: Path, folders: Sequence[str], names: Sequence[str]) -> list[Path]:
    paths = [root / folder / name for folder in folders for name in names]
    return [path for path in paths if os.path.isfile(path)]


def _archives(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("cifar*10*.npz") if os.path.isfile(path))


def _pickles(root: Path) -> list[Path]:
    return _existing(root, _PICKLE_FOLDERS, ("data_batch_1", "test_batch"))


def _only_npz(root: Path, split: str, looked_for: str) -> Path:
    archives = _archives(root)
    if len(archives) == 1:
        return archives[0]
    if archives:
        message = f"{shown(root)}: holds {listed([a.name for a in archives])}; pass the path of one of them"
        raise DataFileError(message)
    if pickles := _pickles(root):
        names = [printable(path.relative_to(root)) for path in pickles]
        raise DataFileError(
            f"{shown(root)}: holds CIFAR-10 as Python pickle ({listed(names)}), which seamfast never reads, "
            "since loading a pickle can run any code; use the binary version (data_batch_1.bin and so on), or an .npz "
            "with x_train, y_train, x_test, y_test"
        )
    raise DataFileError(f"{shown(root)}: no CIFAR-10 {split} files; looked for {looked_for}")


def _read_binary(paths: list[Path], max_bytes: int) -> tuple[Bytes, Labels]:
    if missing := [path.name for path in paths if not os.path.isfile(path)]:
        message = f"{shown(paths[0].parent)}: {listed(missing)} missing; expected {listed([p.name for p in paths])}"
        raise DataFileError(message)
    counts = [_count_records(path) for path in paths]
    where = shown(paths[0].parent)
    n = sum(counts)
    check_budget(n * (_RECORD + 8), max_bytes, where)  # 8: a label becomes an int64
    pixels = allocate((n, *_IMAGE_SHAPE), where)
    labels = np.empty(n, dtype=np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        _read_records(path, pixels[start : start + count], labels[start : start + count])
        start += count
    return pixels, labels


def _count_records(path: Path) -> int:
    with open_regular(path, "CIFAR-10 records") as stream:
        size = file_size(stream)
    if size == 0 or size % _RECORD:
        message = f"{shown(path)}: {size:,} bytes; expected a multiple of {_RECORD:,}, one record an image"
        raise DataFileError(message)
    return size // _RECORD


def _read_records(path: Path, pixels: Bytes, labels: Labels) -> None:
    where = shown(path)
    records = np.empty((min(_RECORDS_A_READ, len(pixels)), _RECORD), dtype=np.uint8)
    with open_regular(path, "CIFAR-10 records") as stream:
        for start in range(0, len(pixels), len(records)):
            some = records[: len(pixels) - start]
            fill(stream, some, where)
            labels[start : start + len(some)] = some[:, 0]
            pixels[start : start + len(some)] = some[:, 1:].reshape(-1, *_IMAGE_SHAPE)
    check_labels(labels, where, 10)
