"""``load``: a data set by name or path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.cifar import holds_cifar10, read_cifar10
from seamfast.data.readers.digits import read_digits
from seamfast.data.readers.idx import find_idx, holds_idx, read_fashion_mnist, read_idx, read_mnist
from seamfast.data.readers.images import read_image_folder, read_image_zip
from seamfast.data.readers.labels import check_split
from seamfast.data.readers.mnist_5k import read_mnist_5k
from seamfast.data.readers.npz import read_npz
from seamfast.data.readers.tables import holds_numbers, read_breast_cancer, read_csv_table, read_digits_table
from seamfast.data.readers.texts import NAMES, SUFFIXES, check_text_source, is_text_source, read_texts
from seamfast.data.texts import Texts
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
_Read = TypeVar("_Read", CleanSet, Texts)
_FROM_PACKAGES = (read_breast_cancer, read_digits, read_digits_table, read_mnist_5k)  # which need no root=


def load(
    name_or_path: PathLike,
    *,
    root: PathLike | None = None,
    split: str | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> CleanSet:
    """Call the reader of a data set: ``load("mnist", root=r, split="test") == read_mnist(r, "test")``.

    Texts are encoded: ``load("sst2", root=r, tokenizer=t) == read_texts("sst2", root=r).encoded(t)``.

    Args:
        name_or_path: ``"digits"``, ``"mnist-5k"``, ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``, of tables
            ``"breast-cancer"``, ``"digits-table"``, of texts ``"sst2"``, ``"ag-news"``, ``"trec"``; or the path of an
            ``.npz``, of a ``.csv`` of numbers, of a ``.zip`` of class folders, of a ``.tsv``, ``.csv`` or ``.jsonl`` of
            texts, or of a folder with IDX files, with CIFAR-10 or with class folders. A ``Path`` is never a name. A
            ``.csv`` holds texts if ``tokenizer`` is given; otherwise its second line has to hold numbers.
        root: the folder of a named data set, except for those of packages: ``breast-cancer``, ``digits``,
            ``digits-table`` and ``mnist-5k``.
        split: ``"train"`` or ``"test"``, of SST-2 and AG News also ``"dev"``. Default: ``"train"`` for data sets and
            IDX files, none for an ``.npz``, a ``.zip`` and class folders. For the last two, the name of the folder with
            the class folders. A file of texts or numbers has none.
        max_bytes: limit on the decoded data, in bytes; the data of installed packages have none.
        sample_shape: ``(C, H, W)`` that the images must have; compared before they are unpacked. ``None``: any.
        tokenizer: of texts: a ``tokenizers.Tokenizer``, or a fast tokenizer of transformers.
        max_length: of texts: the most tokens of one, special ones included. Default: what the tokenizer says.
        class_names: one name for each class, in the order of the model's logits, for the readers that take them.
        options: further arguments of the reader, e.g. ``mean``, ``std``, ``size``.

    Returns:
        CleanSet of the reader. IDX files at a path get no class names, as several data sets share their file names.

    Raises:
        DataFileError: ``'foo' is neither a known data set (breast-cancer, cifar10, digits, ...) nor a file or
            folder``; and the errors of the reader.
        InputError: ``load('mnist') needs root=, the folder that holds its files``; ``read_mnist takes no size=;
            expected mean, std``; ``load('sst2') reads texts and needs tokenizer=, the tokenizer of the model``.

    Example:
        >>> load("digits", split="test").image_shape
        (1, 8, 8)
    """
    check_source(name_or_path, root=root, split=split)
    if class_names is not None:
        options["class_names"] = class_names
    table = tokenizer is None and max_length is None and holds_numbers(name_or_path)
    if is_text_source(name_or_path) and not table:
        options |= {"root": root, "split": split, "max_bytes": max_bytes}
        return _encoded(name_or_path, tokenizer, max_length, sample_shape, **options)
    for name, value in (("tokenizer", tokenizer), ("max_length", max_length)):
        if value is not None:
            texts = ", ".join((*NAMES, *SUFFIXES))
            raise InputError(f"got {name}= with {shown(name_or_path)!r}, which is no text; expected it with {texts}")
    if isinstance(name_or_path, str) and name_or_path in _BY_NAME:
        reader = _BY_NAME[name_or_path]
        options["split"] = split or "train"
        if reader in _FROM_PACKAGES:
            return _checked(_call(reader, **options), sample_shape, name_or_path)
        return _call(reader, root, max_bytes=max_bytes, sample_shape=sample_shape, **options)
    path = Path(name_or_path)
    options["max_bytes"] = max_bytes
    if table:
        return _checked(_call(read_csv_table, path, **options), sample_shape, path)
    options["sample_shape"] = sample_shape
    if os.path.isfile(path):
        if path.suffix.lower() == ".npz":
            return _call(read_npz, path, split=split, **options)
        if path.suffix.lower() == ".zip":
            folder = "/".join(part for part in (options.pop("folder", ""), split) if part)
            return _call(read_image_zip, path, folder=folder, **options)
        raise DataFileError(
            f"{shown(path)}: unknown kind of file; expected .npz, .zip, {', '.join(SUFFIXES)} or a folder"
        )
    if not os.path.isdir(path):
        names = ", ".join((*_BY_NAME, *NAMES))
        raise DataFileError(f"{shown(name_or_path)!r} is neither a known data set ({names}) nor a file or folder")
    if holds_idx(path):
        return _call(read_idx, *find_idx(path, split or "train"), **options)
    if holds_cifar10(path):
        return _call(read_cifar10, path, split=split or "train", **options)
    return _call(read_image_folder, path / split if split else path, **options)


def holds_image_files(name_or_path: PathLike) -> bool:
    """Whether ``load`` would read image files, which have sizes of their own, from a folder or a ``.zip``."""
    if isinstance(name_or_path, str) and name_or_path in _BY_NAME:
        return False
    path = Path(name_or_path)
    if os.path.isdir(path):
        return not (holds_idx(path) or holds_cifar10(path))
    return path.suffix.lower() == ".zip"


def check_source(name_or_path: PathLike, *, root: PathLike | None, split: str | None) -> None:
    """Raise ``InputError`` where these arguments of ``load`` do not go together; no file is looked at."""
    if is_text_source(name_or_path):
        check_text_source(name_or_path, root=root, split=split)
        return
    if split is not None:
        check_split(split)
    is_name = isinstance(name_or_path, str) and name_or_path in _BY_NAME
    if is_name and root is None and _BY_NAME[os.fspath(name_or_path)] not in _FROM_PACKAGES:
        raise InputError(f"load({name_or_path!r}) needs root=, the folder that holds its files")
    if root is not None and not is_name:
        names = ", ".join((*_BY_NAME, *NAMES))
        raise InputError(f"got root={os.fspath(root)!r} with a path; expected root= only with one of {names}")


def _checked(data: CleanSet, sample_shape: tuple[int, ...] | None, source: PathLike) -> CleanSet:
    check_sample_shape(tuple(data.sample_shape or ()), sample_shape, shown(source))
    return data


def _encoded(
    source: PathLike, tokenizer: Any, max_length: int | None, sample_shape: tuple[int, ...] | None, **options: Any
) -> CleanSet:
    if sample_shape is not None:
        raise DataFileError(f"{shown(source)}: holds texts; expected images of {sample_shape} (C, H, W)")
    if tokenizer is None:
        raise InputError(f"load({shown(source)!r}) reads texts and needs tokenizer=, the tokenizer of the model")
    return _call(read_texts, source, **options).encoded(tokenizer, max_length)


def _call(reader: Callable[..., _Read], *args: Any, **options: Any) -> _Read:
    known = [p.name for p in inspect.signature(reader).parameters.values() if p.default is not p.empty]
    for name in options:
        if name not in known:
            others = ", ".join(sorted(set(known) - {"split", "root", "max_bytes", "sample_shape"}))
            raise InputError(f"{reader.__name__} takes no {name}=; expected {others}")
    return reader(*args, **options)
