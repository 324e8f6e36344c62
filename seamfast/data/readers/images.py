"""JPEG and PNG images in one folder for each class, on disk or in a zip; Pillow decodes them, in threads."""

from __future__ import annotations

import io
import itertools
import math
import os
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from seamfast.checks import as_count
from seamfast.data.clean_set import CleanSet
from seamfast.data.readers._encoded import without_extras
from seamfast.data.readers._store import check_memory_budget, pixel_store
from seamfast.data.readers._zip import open_member, open_zip
from seamfast.data.readers.labels import MAX_CLASSES
from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import (
    MAX_BYTES,
    Bytes,
    ImageSizeError,
    PathLike,
    Readable,
    check_budget,
    check_expansion,
    check_sample_shape,
    existing_folder,
    file_size,
    listed,
    open_regular,
    printable,
    read_bytes,
    shown,
)

EXTENSIONS = (".jpeg", ".jpg", ".png")

MAX_PIXELS = 1 << 25
"""Default limit on the pixels of one image, before any resizing: 33.5 million, about 5,800 x 5,800."""

_MAX_FILE = 64 << 20  # bytes of one encoded image
_MAX_DIRECTORY = 32 << 20  # bytes of a zip's directory: about 300,000 images
_MAX_ENTRIES = 1 << 21  # names in the folders of a data set
_FEW_BYTES, _BYTES_A_PIXEL = 64 << 10, 8  # what an encoded image may take: more is work without pixels
_DECODED = 8  # times max_bytes: what may be read and decoded in all, of which resizing drops a part
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
_CHUNK = 32  # images for a thread to decode in one go


def read_image_folder(
    root: PathLike,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    max_bytes: int = MAX_BYTES,
    memory_budget: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    progress: bool | None = None,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``CleanSet`` of ``root/<class>/<image>``: class ``i`` is the ``i``-th folder name in code-point order.

    Read: ``.png``, ``.jpg``, ``.jpeg`` in any case, directly inside a class folder. Ignored: hidden files and folders,
    ``Thumbs.db``, ``desktop.ini``, ``__MACOSX``, and files with other extensions, such as nested archives. Refused: a
    class folder with files but no image, a folder inside a class folder, any symbolic link, an image outside all class
    folders. An empty class folder keeps its number. EXIF rotation is not applied; transparency is dropped.

    Args:
        root: the folder of class folders.
        size: ``(H, W)`` to which every image is resized, bilinear, without keeping its aspect ratio. ``None``: all must
            have one size.
        channels: 1 converts all to grayscale (ITU-R 601-2 luma), 3 to RGB. ``None``: all must have as many as the
            first image.
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none, that is ``pixels / 255``.
        max_bytes: limit on the decoded images, in memory or on disk, in bytes; checked before decoding. Eight times as
            much may be read and decoded in all, with what resizing drops.
        memory_budget: limit on the decoded images in memory, in bytes. Larger sets are mapped from an unnamed file in
            the temporary folder (``TMPDIR``), which is freed with the set. Default: half of the memory of the machine
            or container.
        max_pixels: limit on the pixels of one image, before resizing.
        threads: number of decoding threads; default one per core, at most 8.
        progress: show a progress bar on stderr; ``None``: if stderr is a terminal.
        sample_shape: ``(C, H, W)`` that the images must have, after ``size`` and ``channels``; compared before they are
            decoded. ``None``: any.

    Returns:
        Images ``(N, C, H, W)`` uint8 in order of class, then file name; labels ``(N,)`` int64; ``class_names`` the
        folder names, ``num_classes`` their number.

    Raises:
        DataFileError: e.g. ``data/cat/1.png: is 9 x 8 (height x width), the first image 8 x 8; pass size=(H, W) to
            resize``, ``data/cat/1.png: is not a JPEG or PNG image``, ``data/cat/1.png: cannot be decoded (image file is
            truncated (0 bytes not processed))``, ``data: would take 12,582,912 bytes; the limit is
            max_bytes=1,000,000``, ``data: would take 12,582,912 bytes, more than memory_budget=1,000,000, so a file in
            the temporary folder, which has 8,192 bytes free (No space left on device); name another in TMPDIR``,
            ``data/cat: is a symbolic link; links below the root are not followed``, ``data/cat/1.png: takes 70,000
            bytes for 64 pixels; expected at most 66,048``.
        InputError: ``reading images needs Pillow: pip install seamfast[images]``; an argument out of range.

    Source: ITU-T T.81 (JPEG); W3C, "Portable Network Graphics", third edition.
    """
    how = _Decoding(size, channels, mean, std, max_bytes, memory_budget, max_pixels, threads, progress, sample_shape)
    base = existing_folder(root, "a folder of class folders")

    where = shown(base)

    def title(name: str) -> str:
        return f"{where}/{printable(name)}"

    def fetch(name: str) -> bytes:
        with open_regular(base / name, "an image", follow=False, where=title(name)) as stream:
            return _encoded(stream, file_size(stream), title(name))

    return _decode_all(_scan_folder(base, where), title, fetch, where, how)


def read_image_zip(
    path: PathLike,
    *,
    folder: str = "",
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    max_bytes: int = MAX_BYTES,
    memory_budget: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    progress: bool | None = None,
    sample_shape: tuple[int, ...] | None = None,
) -> CleanSet:
    """``read_image_folder`` of the same layout in a zip, without unpacking it to disk.

    Args:
        path: archive whose members are stored or deflated. Refused: members that are encrypted, links, duplicates or
            overlapping, that declare impossible sizes, or whose names are absolute, hold ``..``, a backslash or a
            control character.
        folder: the folder of the class folders in the archive, e.g. ``"dataset/train"``; default the top. Members
            outside it are ignored.
        size, channels, mean, std, max_bytes, memory_budget, max_pixels, threads, progress, sample_shape: as
            ``read_image_folder``.

    Returns:
        As ``read_image_folder``.

    Raises:
        DataFileError: as ``read_image_folder``; e.g. ``a.zip: member '../cat/1.png' leaves the archive; expected names
            like class/image.png``.
        InputError: as ``read_image_folder``.

    Source: PKWARE, ".ZIP File Format Specification" (APPNOTE), 6.3.10; the images as in ``read_image_folder``.
    """
    how = _Decoding(size, channels, mean, std, max_bytes, memory_budget, max_pixels, threads, progress, sample_shape)
    where = shown(path)
    with open_zip(path, "a zip of class folders with images", max_directory=_MAX_DIRECTORY) as archive:
        prefix = "/".join(part for part in folder.split("/") if part not in ("", "."))
        lock = threading.Lock()  # ZipFile shares one file position and one count of open members

        def title(name: str) -> str:
            return f"{where}: {printable(name)}"

        def fetch(name: str) -> bytes:
            info = archive.getinfo(name)
            with lock, open_member(archive, info, title(name)) as stream:
                return _encoded(stream, info.file_size, title(name))

        found = _scan_zip(archive, prefix, where)
        members = [archive.getinfo(name) for name in found.names]
        check_expansion(sum(i.file_size for i in members), sum(i.compress_size for i in members), where)
        return _decode_all(found, title, fetch, where, how)


@dataclass
class _Found:
    """Names of the classes; names and labels of the images."""

    class_names: list[str]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Decoding:
    """The arguments that both readers share, checked."""

    size: tuple[int, int] | None
    channels: int | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    max_bytes: int
    memory_budget: int | None
    max_pixels: int
    threads: int | None
    progress: bool | None
    sample_shape: tuple[int, ...] | None

    def __post_init__(self) -> None:
        check_memory_budget(self.memory_budget)
        if self.size is not None:
            pair = tuple(self.size) if isinstance(self.size, (tuple, list)) else ()
            if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair):
                raise InputError(f"size is {self.size!r}; expected (H, W), two integers of at least 1")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels is {self.channels!r}; expected 1, 3 or None")
        if self.threads is not None:
            as_count("threads", self.threads)


def _scan_folder(base: Path, where: str) -> _Found:
    classes: list[str] = []
    loose: list[str] = []
    n_entries = itertools.count(1)
    for entry in _visible(base, where, n_entries):
        if entry.is_dir(follow_symlinks=False):
            classes.append(entry.name)
        elif _is_image(entry.name):
            loose.append(entry.name)
    _check_classes(classes, loose, where)
    found = _Found(sorted(classes))
    for label, name in enumerate(found.class_names):
        title = f"{where}/{printable(name)}"
        files: list[str] = []
        for entry in _visible(base / name, title, n_entries):
            if entry.is_dir(follow_symlinks=False):
                raise DataFileError(f"{title}: holds a folder, {printable(entry.name)}; expected images only")
            files.append(entry.name)
        _add_class(found, label, files, f"{name}/", title)
    return found


def _scan_zip(archive: zipfile.ZipFile, prefix: str, where: str) -> _Found:
    files: dict[str, list[str]] = {}
    loose: list[str] = []
    top = f"{prefix}/" if prefix else ""
    for info in archive.infolist():
        _check_member_name(info.filename, where)
        if not info.filename.startswith(top) or info.filename == top:
            continue
        parts = info.filename[len(top) :].rstrip("/").split("/")
        if any(_is_junk(part) for part in parts):
            continue
        if info.is_dir():
            if len(parts) == 1:
                files.setdefault(parts[0], [])
        elif len(parts) == 2:
            files.setdefault(parts[0], []).append(parts[1])
        elif _is_image(parts[-1]) and len(parts) > 2:
            raise DataFileError(
                f"{where}: {printable(info.filename)} lies too deep; expected class/image.png: pass folder= for where"
            )
        elif _is_image(parts[-1]):
            loose.append(parts[0])
    _check_classes(list(files), loose, where + (f" in {printable(prefix)}" if prefix else ""))
    found = _Found(sorted(files))
    for label, name in enumerate(found.class_names):
        _add_class(found, label, files[name], f"{top}{name}/", f"{where}: {printable(name)}")
    return found


def _visible(base: Path, where: str, n_entries: Iterator[int]) -> Iterator[os.DirEntry[str]]:
    """Entries that are neither hidden nor junk. Raises on a symbolic link, whose target may be anywhere."""
    try:
        with os.scandir(base) as entries:
            for entry in entries:
                if next(n_entries) > _MAX_ENTRIES:
                    raise DataFileError(f"{where}: with it, there are more than {_MAX_ENTRIES:,} names; expected fewer")
                if _is_junk(entry.name):
                    continue
                if entry.is_symlink():
                    link = f"{where}/{printable(entry.name)}"
                    raise DataFileError(f"{link}: is a symbolic link; links below the root are not followed")
                yield entry
    except OSError as error:
        raise DataFileError(f"{where}: cannot be listed ({error.strerror})") from error


def _check_member_name(name: str, where: str) -> None:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts or name[1:2] == ":":
        message = f"{where}: member {printable(name)!r} leaves the archive; expected names like class/image.png"
        raise DataFileError(message)
    if not name.isprintable() or "\\" in name or "" in parts or "." in parts:
        message = f"{where}: member {printable(name)!r} has an unusable name; expected names like class/image.png"
        raise DataFileError(message)


def _check_classes(classes: list[str], loose: list[str], where: str) -> None:
    if loose:
        raise DataFileError(f"{where}: {printable(min(loose))} lies outside any class folder; expected class/image.png")
    if not classes:
        raise DataFileError(f"{where}: no class folders; expected class/image.png, with {', '.join(EXTENSIONS)}")
    if len(classes) > MAX_CLASSES:
        raise DataFileError(f"{where}: {len(classes):,} class folders; the limit is {MAX_CLASSES:,}")
    for name in classes:
        if not name.isprintable():  # the name is written to reports and terminals
            raise DataFileError(f"{where}: class folder {printable(name)} has unprintable characters in its name")


def _add_class(found: _Found, label: int, files: list[str], prefix: str, where: str) -> None:
    images = sorted(name for name in files if _is_image(name))
    if files and not images:
        message = f"{where}: holds {listed(sorted(files), 3)}, but no image; looked for {', '.join(EXTENSIONS)}"
        raise DataFileError(message)
    found.names += [prefix + name for name in images]
    found.labels += [label] * len(images)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _encoded(stream: Readable, n: int, where: str) -> bytes:
    """The ``n`` bytes of one encoded image."""
    if n > _MAX_FILE:
        raise DataFileError(f"{where}: {n:,} bytes; the limit for one encoded image is {_MAX_FILE:,}")
    return read_bytes(stream, (n,), where).tobytes()


def _decode_all(
    found: _Found, title: Callable[[str], str], fetch: Callable[[str], bytes], where: str, how: _Decoding
) -> CleanSet:
    names = found.names
    n = len(names)
    if not names:
        message = f"{where}: no images in {len(found.class_names)} class folders; looked for {', '.join(EXTENSIONS)}"
        raise DataFileError(message)
    pil = _pillow()
    if how.sample_shape is not None:
        check_budget(n * math.prod(how.sample_shape), how.max_bytes, where)
    with _open(pil, fetch(names[0]), title(names[0]), how.max_pixels) as first:
        size = how.size or (first.height, first.width)
        channels = how.channels or _natural_channels(first, title(names[0]))
    shape = (n, channels, *size)
    check_sample_shape(shape[1:], how.sample_shape, title(names[0]))
    check_budget(math.prod(shape), how.max_bytes, where)
    work = _Work(how.max_bytes, where)
    pixels = pixel_store(shape, check_memory_budget(how.memory_budget), where)

    def decode(start: int) -> int:
        rows = range(start, min(start + _CHUNK, n))
        for row in rows:
            encoded = fetch(names[row])
            with _open(pil, encoded, title(names[row]), how.max_pixels) as image:
                work.add(len(encoded) + image.width * image.height * len(image.getbands()))
                pixels[row] = _decode(pil, image, title(names[row]), size, channels, how)
        return len(rows)

    threads = how.threads or min(8, os.cpu_count() or 1)
    hidden = not sys.stderr.isatty() if how.progress is None else not how.progress
    with ThreadPoolExecutor(threads, "seamfast-decode") as pool, tqdm(total=n, unit="image", disable=hidden) as bar:
        for done in pool.map(decode, range(0, n, _CHUNK)):  # in order: the first of several bad images is reported
            bar.update(done)
    labels = np.asarray(found.labels, dtype=np.int64)
    classes = found.class_names
    return CleanSet(pixels, labels, mean=how.mean, std=how.std, num_classes=len(classes), class_names=classes)


class _Work:
    """What was read and decoded in all, by any thread."""

    def __init__(self, max_bytes: int, where: str) -> None:
        self._limit, self._max_bytes, self._where = _DECODED * max_bytes, max_bytes, where
        self._done, self._lock = 0, threading.Lock()

    def add(self, n_bytes: int) -> None:
        """Raise ``DataFileError`` where it becomes too much."""
        with self._lock:
            self._done += n_bytes
            if self._done > self._limit:
                of = f"{_DECODED} times max_bytes={self._max_bytes:,}"
                message = f"{self._where}: its images decode from and to {self._done:,} bytes; the limit is {of}"
                raise DataFileError(message)


def _open(pil: ModuleType, data: bytes, name: str, max_pixels: int) -> Any:
    """The image with its header read and its size checked, not decoded. Only the two named decoders are tried."""
    data = without_extras(data, name)
    try:
        image = pil.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except pil.UnidentifiedImageError:
        raise DataFileError(f"{name}: is not a JPEG or PNG image") from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        message = f"{name}: declares too many pixels; the limit is max_pixels={max_pixels:,} ({error})"
        raise DataFileError(message) from None
    except Exception as error:  # hostile headers: Pillow's parsers raise nearly every built-in error
        raise DataFileError(f"{name}: cannot be opened ({error})") from error
    n = image.width * image.height
    if n > max_pixels:
        raise DataFileError(
            f"{name}: declares {image.height:,} x {image.width:,} (height x width), {n:,} pixels; "
            f"the limit is max_pixels={max_pixels:,}"
        )
    if len(data) > _FEW_BYTES + _BYTES_A_PIXEL * n:
        message = f"{name}: takes {len(data):,} bytes for {n:,} pixels; expected at most"
        raise DataFileError(f"{message} {_FEW_BYTES + _BYTES_A_PIXEL * n:,}")
    return image


def _natural_channels(image: Any, name: str) -> int:
    if image.mode.startswith(("I", "F")):
        raise DataFileError(f"{name}: has pixels of more than 8 bits (mode {image.mode}); expected 8 bits a channel")
    return 1 if image.mode in ("1", "L", "LA") else 3


def _decode(
    pil: ModuleType, image: Any, name: str, size: tuple[int, int], channels: int, how: _Decoding
) -> npt.NDArray[np.uint8]:
    """``(C, H, W)`` uint8."""
    if how.size is None and (image.height, image.width) != size:
        raise ImageSizeError(
            f"{name}: is {image.height} x {image.width} (height x width), the first image {size[0]} x {size[1]}; "
            "pass size=(H, W) to resize",
            (size, (image.height, image.width)),
        )
    natural = _natural_channels(image, name)
    if how.channels is None and natural != channels:
        kind = {1: "grey", 3: "color"}
        message = f"{name}: is {kind[natural]}, the first image {kind[channels]}; pass channels=1 or 3 to convert"
        raise DataFileError(message)
    try:
        if image.mode == "P":  # through RGBA, since Pillow warns when it drops a palette's transparency
            image = image.convert("RGBA")
        image = image.convert("L" if channels == 1 else "RGB")
        if how.size is not None:
            image = image.resize((size[1], size[0]), pil.Resampling.BILINEAR)
        array: Bytes = np.asarray(image, dtype=np.uint8)
    except Exception as error:  # hostile data: Pillow's decoders raise nearly every built-in error
        raise DataFileError(f"{name}: cannot be decoded ({error})") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _pillow() -> ModuleType:
    try:
        from PIL import Image, ImageFile
    except ImportError as error:
        raise InputError("reading images needs Pillow: pip install seamfast[images]") from error
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # process-wide, so a reader does not change it
        raise InputError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, which hides truncated images; expected False")
    return Image
