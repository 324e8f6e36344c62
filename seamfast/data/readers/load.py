"""``load``: a data set by name or path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.cifar import holds_cifar10, read_cifar10
from seamfast.data.readers.digits import read_digits
from seamfast.data.readers.idx import find_idx, holds_idx, read_fashion_mnist, read_idx, read_mnist
from seamfast.data.readers.images import read_image_folder, read_image_zip
from seamfast.data.readers.labels import check_split
from seamfast.data.readers.mnist_5k import read_mnist_5k
from seamfast.data.readers.npz import read_npz
from seamfast.data.readers.tables import read_breast_cancer, read_csv_table, read_digits_table
from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import MAX_BYTES, PathLike, check_sample_shape, shown

_BY_NAME: dict[str, Callable[..., CleanSet]] = {
    "breast-cancer": read_breast_cancer,
    "cifar10": read_cifar10,
    "digits": read_digits,
    "digits-table": read_digits_table,
    "fashion-mnist": read_fashion_mnist,
    "mnist": read_mnist,
    "mnist-5k": read_mnist_5k,
}
_FROM_PACKAGES = (read_breast_cancer, read_digits, read_digits_table, read_mnist_5k)  # which need no root=


def load(
    name_or_path: PathLike,
    *,
    root: PathLike | None = None,
    split: str | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
    **options: Any,
) -> CleanSet:
    """Call the reader of a data set: ``load("mnist", root=r, split="test") == read_mnist(r, "test")``.

    Args:
        name_or_path: ``"digits"``, ``"mnist-5k"``, ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``, or as tables
            ``"breast-cancer"``, ``"digits-table"``; or the path of an ``.npz``, of a ``.csv`` of numbers, of a ``.zip``
            of class folders, or of a folder with IDX files, with CIFAR-10 or with class folders. A ``Path`` is never a
            name.
        root: the folder of a named data set, except for those of packages: ``breast-cancer``, ``digits``,
            ``digits-table`` and ``mnist-5k``.
        split: ``"train"`` or ``"test"``. Default: ``"train"`` for data sets and IDX files, none for an ``.npz``, a
            ``.zip`` and class folders. For the last two, the name of the folder with the class folders.
        max_bytes: limit on the decoded data, in bytes; the data of installed packages have none.
        sample_shape: ``(C, H, W)`` that the images must have; compared before they are unpacked. ``None``: any.
        options: further arguments of the reader, e.g. ``mean``, ``std``, ``size``.

    Returns:
        CleanSet of the reader. IDX files at a path get no class names, as several data sets share their file names.

    Raises:
        DataFileError: ``'foo' is neither a known data set (breast-cancer, cifar10, digits, ...) nor a file or
            folder``; and the errors of the reader.
        InputError: ``load('mnist') needs root=, the folder that holds its files``; ``read_mnist takes no size=;
            expected mean, std``.

    Example:
        >>> load("digits", split="test").image_shape
        (1, 8, 8)
    """
    check_source(name_or_path, root=root, split=split)
    if isinstance(name_or_path, str) and name_or_path in _BY_NAME:
        reader = _BY_NAME[name_or_path]
        options["split"] = split or "train"
        if reader in _FROM_PACKAGES:
            data = _call(reader, **options)
            check_sample_shape(tuple(data.sample_shape or ()), sample_shape, str(name_or_path))
            return data
        return _call(reader, root, max_bytes=max_bytes, sample_shape=sample_shape, **options)
    options |= {"max_bytes": max_bytes, "sample_shape": sample_shape}
    path = Path(name_or_path)
    if os.path.isfile(path):
        if path.suffix.lower() == ".npz":
            return _call(read_npz, path, split=split, **options)
        if path.suffix.lower() == ".zip":
            folder = "/".join(part for part in (options.pop("folder", ""), split) if part)
            return _call(read_image_zip, path, folder=folder, **options)
        if path.suffix.lower() == ".csv":
            return _table(path, **options)
        raise DataFileError(f"{shown(path)}: unknown kind of file; expected .csv, .npz, .zip or a folder")
    if not os.path.isdir(path):
        names = ", ".join(_BY_NAME)
        raise DataFileError(f"{shown(name_or_path)!r} is neither a known data set ({names}) nor a file or folder")
    if holds_idx(path):
        return _call(read_idx, *find_idx(path, split or "train"), **options)
    if holds_cifar10(path):
        return _call(read_cifar10, path, split=split or "train", **options)
    return _call(read_image_folder, path / split if split else path, **options)


def _table(path: Path, *, sample_shape: tuple[int, ...] | None, **options: Any) -> CleanSet:
    data = _call(read_csv_table, path, **options)
    check_sample_shape(tuple(data.sample_shape or ()), sample_shape, shown(path))
    return data


def check_source(name_or_path: PathLike, *, root: PathLike | None, split: str | None) -> None:
    """Raise ``InputError`` where these arguments of ``load`` do not go together; no file is looked at."""
    if split is not None:
        check_split(split)
    is_name = isinstance(name_or_path, str) and name_or_path in _BY_NAME
    if is_name and root is None and _BY_NAME[os.fspath(name_or_path)] not in _FROM_PACKAGES:
        raise InputError(f"load({name_or_path!r}) needs root=, the folder that holds its files")
    if root is not None and not is_name:
        message = f"got root={os.fspath(root)!r} with a path; expected root= only with one of {', '.join(_BY_NAME)}"
        raise InputError(message)


def _call(reader: Callable[..., CleanSet], *args: Any, **options: Any) -> CleanSet:
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.default is not p.empty]
    for name in options:
        if name not in known:
            others = ", ".join(sorted(set(known) - {"split", "max_bytes", "sample_shape"}))
            raise InputError(f"{reader.__name__} takes no {name}=; expected {others}")
    return reader(*args, **options)
