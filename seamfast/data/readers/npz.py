"""NumPy ``.npz`` archives, read without ``pickle``; every header is checked."""

from __future__ import annotations

import ast
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers._zip import open_member, open_zip
from seamfast.data.readers.labels import check_counts, check_labels, check_split
from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import (
    MAX_BYTES,
    PathLike,
    check_budget,
    check_expansion,
    check_sample_shape,
    listed,
    printable,
    read_bytes,
    shown,
)

_PAIRS = (("images", "labels"), ("x", "y"), ("data", "target"))
_SPLIT_PAIRS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))

_MAX_DIRECTORY = 1 << 20  # about ten thousand arrays
_MAX_HEADER = 4096  # NumPy itself writes 128 bytes for a plain array
_MAGIC = b"\x93NUMPY"
_PLAIN_DTYPE = re.compile(r"[<>|=]?(?:[ui][1248]|f[248])|\|?b1")


def read_npz(
    path: PathLike,
    *,
    split: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``CleanSet(archive[images], archive[labels])`` with ``archive = numpy.load(path, allow_pickle=False)``.

    Args:
        path: archive of arrays, stored or deflated.
        split: ``"train"`` takes ``x_train`` and ``y_train``, or ``train_images`` and ``train_labels``; ``"test"``
            likewise. ``None`` takes the pair that exists: ``images`` and ``labels``, ``x`` and ``y``, or ``data`` and
            ``target``.
        images, labels: names of the two arrays, if they differ from these. Images are uint8 ``(N, C, H, W)``,
            ``(N, H, W, C)`` or ``(N, H, W)`` with 1 or 3 channels; labels are integers ``(N,)`` or ``(N, 1)``.
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none, that is ``pixels / 255``.
        num_classes: labels at or above it are refused; ``None`` leaves the number to the model's logits.
        class_names: one name for each class.
        max_bytes: limit on the two arrays in memory, in bytes; ``(N, H, W, C)`` briefly takes twice as much.
        sample_shape: ``(C, H, W)`` that the images must have; compared before they are unpacked. ``None``: any.

    Returns:
        Images ``(N, C, H, W)`` uint8, labels ``(N,)`` int64.

    Raises:
        DataFileError: e.g. ``a.npz: no arrays named images and labels, or x and y, or data and target; found x_test,
            y_test; pass split=, or name them by images= and labels=``, ``a.npz: array 'x' holds Python objects, that
            is pickle, which seamfast never reads; save it as plain numbers``, ``a.npz: array 'x' has shape (9, 8, 8)
            of uint8, 576 bytes; its member holds 575``, ``a.npz: 1,043,504 bytes would unpack to 1,073,741,952;
            expected at most 104,350,400``.
        InputError: ``got images='x' and labels=None; expected both or neither``.

    Source: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays"; the zip layer as in ``_zip.py``.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/tiny.npz"
        >>> np.savez(path, x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4))
        >>> read_npz(path).image_shape
        (3, 8, 8)
    """
    if (images is None) != (labels is None):
        raise InputError(f"got images={images!r} and labels={labels!r}; expected both or neither")
    where = shown(path)
    with open_zip(path, "an .npz archive", max_directory=_MAX_DIRECTORY) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        if images is None or labels is None:
            images, labels = _pick(list(members), split, where)
        elif missing := [key for key in (images, labels) if key not in members]:
            raise DataFileError(f"{where}: no array named {listed(missing)}; found {listed(sorted(members)) or 'none'}")
        pixel_member = _Member(archive, members[images], f"{where}: array {printable(images)!r}")
        label_member = _Member(archive, members[labels], f"{where}: array {printable(labels)!r}")
        pixel_header, label_header = pixel_member.header(), label_member.header()
        _check_pixels(pixel_header, pixel_member.where)
        _check_label_shape(label_header, label_member.where)
        check_sample_shape(_sample_shape(pixel_header.shape), sample_shape, pixel_member.where)
        check_counts(pixel_header.shape[0], label_header.shape[0], pixel_member.where, label_member.where)
        n_bytes = pixel_header.n_bytes + label_header.n_bytes
        check_budget(n_bytes, max_bytes, where)
        check_expansion(n_bytes, pixel_member.info.compress_size + label_member.info.compress_size, where)
        checked = check_labels(label_member.read(label_header).reshape(-1), label_member.where, num_classes)
        pixels = pixel_member.read(pixel_header)
    return CleanSet(pixels, checked, mean=mean, std=std, num_classes=num_classes, class_names=class_names)


def _pick(keys: list[str], split: str | None, where: str) -> tuple[str, str]:
    pairs = _PAIRS if split is None else [(x.format(check_split(split)), y.format(split)) for x, y in _SPLIT_PAIRS]
    present = [pair for pair in pairs if pair[0] in keys and pair[1] in keys]
    if len(present) == 1:
        return present[0]
    names = ", or ".join(f"{x} and {y}" for x, y in pairs)
    advice = ("pass split=, or " if split is None else "") + "name them by images= and labels="
    problem = "more than one pair of" if present else "no"
    raise DataFileError(f"{where}: {problem} arrays named {names}; found {listed(sorted(keys)) or 'none'}; {advice}")


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    length: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Member:
    """One array of an archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    where: str

    def header(self) -> _Header:
        """The parsed header, checked against the size of the member."""
        with open_member(self.archive, self.info, self.where) as stream:
            start = self._bytes(stream, 8)
            if start[:6] != _MAGIC:
                message = f"{self.where} does not start as .npy data does; expected the magic string {_MAGIC!r}"
                raise DataFileError(message)
            version = (start[6], start[7])
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise DataFileError(f"{self.where} has .npy version {version}; expected (1, 0), (2, 0) or (3, 0)")
            width = 2 if version == (1, 0) else 4
            length = int.from_bytes(self._bytes(stream, width), "little")
            if length > _MAX_HEADER:
                raise DataFileError(f"{self.where} has a header of {length:,} bytes; the limit is {_MAX_HEADER:,}")
            header = _parse_header(self._bytes(stream, length), 8 + width + length, self.where)
        held = self.info.file_size - header.length
        if held != header.n_bytes:
            raise DataFileError(
                f"{self.where} has shape {header.shape} of {header.dtype}, {header.n_bytes:,} bytes; "
                f"its member holds {held:,}"
            )
        return header

    def read(self, header: _Header) -> npt.NDArray[Any]:
        with open_member(self.archive, self.info, self.where) as stream:
            self._bytes(stream, header.length)
            data = read_bytes(stream, (header.n_bytes,), self.where)
        order: Literal["C", "F"] = "F" if header.fortran_order else "C"
        return data.view(header.dtype).reshape(header.shape, order=order)

    def _bytes(self, stream: Any, n: int) -> bytes:
        return read_bytes(stream, (n,), self.where).tobytes()


def _parse_header(text: bytes, length: int, where: str) -> _Header:
    try:
        fields = ast.literal_eval(text.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: deeply nested brackets
        raise DataFileError(f"{where} has a header that is no Python literal") from None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise DataFileError(f"{where} has a header without exactly the keys descr, fortran_order and shape")
    descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if isinstance(descr, str) and descr.lstrip("<>|=").startswith("O"):
        message = f"{where} holds Python objects, that is pickle, which seamfast never reads; save it as plain numbers"
        raise DataFileError(message)
    if not isinstance(descr, str) or not _PLAIN_DTYPE.fullmatch(descr):
        raise DataFileError(f"{where} has dtype {printable(descr, 60)}; expected plain numbers")
    if not isinstance(fortran_order, bool):
        raise DataFileError(f"{where} has fortran_order {printable(fortran_order, 60)}; expected True or False")
    # type(), since bool is an int too
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
        raise DataFileError(f"{where} has shape {printable(shape, 60)}; expected at most 8 dimensions of at least 1")
    return _Header(shape, np.dtype(descr), fortran_order, length)


def _check_pixels(header: _Header, where: str) -> None:
    if header.dtype != np.uint8:
        message = f"{where} has dtype {header.dtype}; expected uint8 pixels; other arrays go to seamfast.CleanSet"
        raise DataFileError(message)
    shape = header.shape
    if len(shape) == 3 or (len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3))):
        return
    message = f"{where} has shape {shape}; expected (N, C, H, W), (N, H, W, C) or (N, H, W) with 1 or 3 channels"
    raise DataFileError(message)


def _sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(C, H, W)`` of one image, which ``CleanSet`` makes of it."""
    if len(shape) == 3:
        return (1, *shape[1:])
    return shape[1:] if shape[1] in (1, 3) else (shape[3], *shape[1:3])


def _check_label_shape(header: _Header, where: str) -> None:
    if header.dtype.kind not in "iu":
        raise DataFileError(f"{where} has dtype {header.dtype}; expected integer labels")
    if len(header.shape) != 1 and not (len(header.shape) == 2 and header.shape[1] == 1):
        raise DataFileError(f"{where} has shape {header.shape}; expected (N,) or (N, 1)")
