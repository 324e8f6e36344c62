"""IDX files, the format of MNIST and its variants: a short big-endian header, then the bytes."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers._gunzip import Gunzip
from seamfast.data.readers.labels import check_counts, check_labels, check_split
from seamfast.errors import DataFileError
from seamfast.untrusted import (
    DEFLATE_RATIO,
    MAX_BYTES,
    Bytes,
    PathLike,
    Readable,
    check_budget,
    check_expansion,
    check_sample_shape,
    existing_folder,
    file_size,
    open_regular,
    read_bytes,
    read_some,
    shown,
)

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_ELEMENT_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_UINT8 = 0x08
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(
    images: PathLike,
    labels: PathLike,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``CleanSet(images[:, None], labels)`` of two IDX files, gzipped or plain.

    Args:
        images: file of ``(N, H, W)`` uint8 pixels, magic number 0x00000803. Gzip is recognized by its first bytes.
        labels: file of ``(N,)`` uint8 labels, magic number 0x00000801.
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none, that is ``pixels / 255``.
        num_classes: labels at or above it are refused; ``None`` leaves the number to the model's logits.
        class_names: one name for each class.
        max_bytes: limit on the data of one file in memory, in bytes.
        sample_shape: ``(C, H, W)`` that the images must have; compared before they are unpacked. ``None``: any.

    Returns:
        Images ``(N, 1, H, W)`` uint8, labels ``(N,)`` int64.

    Raises:
        DataFileError: e.g. ``a-idx3: magic number is 0x00000801 (uint8, 1 dimension); expected 0x00000803 (uint8, 3
            dimensions)``, ``a-idx3: header promises shape (10, 28, 28), 7,840 bytes; the file holds 7,839 after its
            header``, ``a-idx3: 1,043 bytes would unpack to 1,073,741,840; expected at most 67,108,864``, ``a-idx1:
            label 10 in row 3; expected integers in [0, 10) for num_classes=10``.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database", file formats, http://yann.lecun.com/exdb/mnist/;
        gzip: RFC 1952.
    """
    with _open_idx(images, 3, max_bytes) as pixel_file, _open_idx(labels, 1, max_bytes) as label_file:
        check_sample_shape((1, *pixel_file.shape[1:]), sample_shape, pixel_file.where)
        check_counts(pixel_file.shape[0], label_file.shape[0], pixel_file.where, label_file.where)
        label_bytes = label_file.read()
        pixels = pixel_file.read()
    checked = check_labels(label_bytes, label_file.where, num_classes)
    return CleanSet(pixels, checked, mean=mean, std=std, num_classes=num_classes, class_names=class_names)


def read_mnist(
    root: PathLike,
    split: str = "train",
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``read_idx`` of the two MNIST files of ``split``, found by their usual names, with 10 classes.

    Args:
        root: folder with ``train-images-idx3-ubyte`` and the other files, plain or ``.gz``, in it, in ``raw`` or in
            ``MNIST/raw``. Of a plain file and a gzipped one, the plain one is read.
        split: ``"train"`` or ``"test"`` (the ``t10k`` files).
        mean, std, max_bytes, sample_shape: as for ``read_idx``.

    Returns:
        Images ``(N, 1, 28, 28)`` uint8, labels ``(N,)`` int64 in ``[0, 10)``.

    Raises:
        DataFileError: e.g. ``data: no MNIST test files; looked for t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte,
            with or without .gz, in ., raw, MNIST/raw``; and what ``read_idx`` raises.
        InputError: ``split is 'val'; expected 'train' or 'test'``.

    Source: as ``read_idx``.
    """
    images, labels = find_idx(root, split, "MNIST")
    limits: dict[str, Any] = {"max_bytes": max_bytes, "sample_shape": sample_shape}
    return read_idx(images, labels, mean=mean, std=std, num_classes=10, class_names=DIGIT_NAMES, **limits)


def read_fashion_mnist(
    root: PathLike,
    split: str = "train",
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``read_mnist`` with the class names of Fashion-MNIST, whose files have the same names.

    Args:
        root: as for ``read_mnist``, with ``FashionMNIST/raw`` for ``MNIST/raw``.
        split, mean, std, max_bytes, sample_shape: as for ``read_mnist``.

    Returns, Raises: as ``read_mnist``.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv 1708.07747, table 1 (class names).
    """
    images, labels = find_idx(root, split, "FashionMNIST")
    limits: dict[str, Any] = {"max_bytes": max_bytes, "sample_shape": sample_shape}
    return read_idx(images, labels, mean=mean, std=std, num_classes=10, class_names=FASHION_NAMES, **limits)


def find_idx(root: PathLike, split: str, name: str = "IDX") -> tuple[Path, Path]:
    """The images and the labels of ``split`` in ``root`` or in the subfolders of the data set ``name``."""
    prefix = _PREFIX[check_split(split)]
    files = f"{prefix}-images-idx3-ubyte and {prefix}-labels-idx1-ubyte, with or without .gz"
    looked_for = f"{files}, in {', '.join(_places(name))}"
    base = existing_folder(root, looked_for)
    for place in _places(name):
        if pair := _pair(base / place, prefix):
            return pair
    raise DataFileError(f"{shown(base)}: no {name} {split} files; looked for {looked_for}")


def holds_idx(root: Path) -> bool:
    """Whether ``find_idx`` would find files of any split."""
    return any(_pair(root / place, prefix) for place in _places("IDX") for prefix in _PREFIX.values())


def _places(name: str) -> tuple[str, ...]:
    return (".", "raw") if name == "IDX" else (".", "raw", f"{name}/raw")


def _pair(place: Path, prefix: str) -> tuple[Path, Path] | None:
    images, labels = (_existing(place / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return (images, labels) if images and labels else None


def _existing(plain: Path) -> Path | None:
    return next((path for path in (plain, plain.with_name(plain.name + ".gz")) if os.path.isfile(path)), None)


@dataclass(frozen=True)
class _IdxFile:
    """An open IDX file whose header has been checked, positioned at its first data byte."""

    stream: Readable
    shape: tuple[int, ...]
    where: str

    def read(self) -> Bytes:
        data = read_bytes(self.stream, self.shape, self.where)
        # Reading past the end returns nothing, and makes gzip check its CRC.
        if read_some(self.stream, 1, self.where):
            raise DataFileError(f"{self.where}: holds more than the {data.size:,} bytes that its header promises")
        return data


@contextmanager
def _open_idx(path: PathLike, ndim: int, max_bytes: int) -> Iterator[_IdxFile]:
    where = shown(path)
    with open_regular(path, f"an IDX file of uint8 with {ndim} dimension{'s' * (ndim > 1)}") as raw:
        size = file_size(raw)
        gzipped = raw.read(2) == b"\x1f\x8b"  # an IDX file starts with two zero bytes
        raw.seek(0, os.SEEK_SET)
        stream: Readable = Gunzip(raw) if gzipped else raw
        shape = _read_header(stream, ndim, where)
        promised = math.prod(shape)
        declared = f"{where}: header promises shape {shape}, {promised:,} bytes"
        header = 4 + 4 * ndim
        if not gzipped and size - header != promised:
            raise DataFileError(f"{declared}; the file holds {size - header:,} after its header")
        if gzipped:
            check_expansion(header + promised, size, where)
            if header + promised > DEFLATE_RATIO * size:
                raise DataFileError(f"{declared}; its {size:,} compressed bytes cannot hold as much")
        check_budget(promised, max_bytes, where)
        yield _IdxFile(stream, shape, where)


def _read_header(stream: Readable, ndim: int, where: str) -> tuple[int, ...]:
    magic = _read_exactly(stream, 4, where)
    if magic != bytes((0, 0, _UINT8, ndim)):
        known = magic[:2] == b"\0\0" and magic[2] in _ELEMENT_TYPES
        got = _magic(magic[2], magic[3]) if known else f"0x{magic.hex().upper()}"
        raise DataFileError(f"{where}: magic number is {got}; expected {_magic(_UINT8, ndim)}")
    shape = struct.unpack(f">{ndim}I", _read_exactly(stream, 4 * ndim, where))
    if min(shape) == 0:
        raise DataFileError(f"{where}: header promises shape {shape}; expected at least 1 in every dimension")
    return shape


def _magic(element: int, ndim: int) -> str:
    return f"0x0000{element:02X}{ndim:02X} ({_ELEMENT_TYPES[element]}, {ndim} dimension{'s' * (ndim != 1)})"


def _read_exactly(stream: Readable, n: int, where: str) -> bytes:
    data = b""
    while len(data) < n:
        part = read_some(stream, n - len(data), where)
        if not part:
            raise DataFileError(f"{where}: ends inside its header")
        data += part
    return data
