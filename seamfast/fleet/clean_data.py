"""The clean data of a node: each set is read once, and mapped into the memory of every worker without a copy."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seamfast.data import CleanSet
from seamfast.data.readers import load
from seamfast.data.readers.tables import holds_numbers
from seamfast.data.readers.texts import is_text_source, read_texts
from seamfast.data.texts import Texts
from seamfast.errors import InputError
from seamfast.fleet.fingerprint import stamp_of
from seamfast.modalities.batch import named_tensors
from seamfast.models.folder import Description, ModelDescription, TextDescription
from seamfast.report import write_atomically

_PREFIX = "seamfast-fleet"
_INDEX = "set.json"


class CleanData:
    """Clean sets of one fleet on this machine.

    The folder is in the machine's temporary one, and goes with the last process that has it open. Folders that killed
    processes left are removed by the next fleet.

    Args:
        key: of the fleet.
    """

    def __init__(self, key: str) -> None:
        parent = Path(tempfile.gettempdir())
        _remove_left(parent)
        self._texts: dict[str, Texts] = {}
        self._stamps: dict[str, str] = {}  # of what was shared, which a child knows too
        self.folder = parent / f"{_PREFIX}-{os.getuid()}-{key[:16]}"
        while True:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700)
            try:
                found = os.lstat(self.folder)
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    expected = "expected to make one, see TMPDIR"
                    raise InputError(f"{self.folder} is not a folder of this user alone; {expected}")
                self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # the last process that had it open removed it
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._lock), os.stat(self.folder / "lock")):
                    return
            os.close(self._lock)  # another process took it for one that was left

    def close(self) -> None:
        """Remove the folder, if no other process has it open."""
        _remove_if_unused(self.folder, self._lock)
        os.close(self._lock)

    def share(self, source: str, root: str | None, split: str | None) -> None:
        """Read a set, unless this was done on this machine.

        Raises:
            InputError: as ``seamfast.load``.
        """
        key = self._key(source, root, split)
        if _is_text(source):
            if key not in self._texts:
                self._texts[key] = read_texts(source, root=root, split=split)
            return
        place = self.folder / key
        if (place / _INDEX).exists():
            return
        with _alone(self.folder / f"{key}.lock"):
            if not (place / _INDEX).exists():
                _write(place, load(source, root=root, split=split))

    def get(self, source: str, root: str | None, split: str | None, description: Description) -> CleanSet:
        """A set as a model takes it: images with its normalization, texts by its tokenizer.

        Raises:
            InputError: it is of another kind, or does not fit the model.
        """
        key = self._key(source, root, split)
        if isinstance(description, TextDescription):
            texts = self._texts.get(key) or read_texts(source, root=root, split=split)
            if description.tokenizer is None:
                raise InputError(f"{description.architecture} has no tokenizer; expected one, to encode texts")
            data = texts.encoded(description.tokenizer, description.max_length)
        elif _is_text(source):
            raise InputError(f"data are texts; {description.architecture} takes none")
        else:
            self.share(source, root, split)
            data = _read(self.folder / key, description)
        description.check_data(data)
        return data

    def _key(self, source: str, root: str | None, split: str | None) -> str:
        """Of a set as its files are when this process first shares it: a shard that began before they changed has
        another."""
        stamps = []
        for path in (source, root):
            if path is not None and path not in self._stamps:
                self._stamps[path] = stamp_of(path) if os.path.exists(path) else ""
            stamps.append(self._stamps.get(path or "", ""))
        return hashlib.sha256(json.dumps([source, root, split, *stamps]).encode()).hexdigest()[:24]


def _is_text(source: str) -> bool:
    return is_text_source(source) and not holds_numbers(source)


def _write(place: Path, data: CleanSet) -> None:
    """All tensors as raw bytes, then what says how to read them."""
    place.mkdir(exist_ok=True)
    index: dict[str, Any] = {"num_classes": data.num_classes, "class_names": data.class_names, "tensors": {}}
    for number, (name, value) in enumerate({**named_tensors(data.inputs), "labels": data.labels}.items()):
        array = value.contiguous().numpy()
        array.tofile(place / f"{number}.bin")
        index["tensors"][name] = [f"{number}.bin", array.dtype.str, list(array.shape)]
    index["single"] = not isinstance(data.inputs, dict)
    write_atomically(place / _INDEX, json.dumps(index).encode())


def _read(place: Path, description: Description) -> CleanSet:
    """The set, mapped: its pages are shared by all processes, can be read alone, and count for no limit on memory."""
    index = json.loads((place / _INDEX).read_text(encoding="utf-8"))
    tensors = {}
    for name, (file, dtype, shape) in index["tensors"].items():
        mapped = np.memmap(place / file, dtype=np.dtype(dtype), mode="r", shape=tuple(shape))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            tensors[name] = torch.from_numpy(mapped)  # which no run writes to
    labels = tensors.pop("labels")
    inputs: Any = next(iter(tensors.values())) if index["single"] else tensors
    how: dict[str, Any] = {"num_classes": index["num_classes"], "class_names": index["class_names"]}
    if isinstance(description, ModelDescription):
        how |= {"mean": description.mean, "std": description.std}
    return CleanSet(inputs, labels, **how)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_if_unused(folder: Path, lock: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(parent: Path) -> None:
    """Remove the folders of this user's fleets that no process has open."""
    for folder in parent.glob(f"{_PREFIX}-{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            try:
                lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                folder.rmdir()  # who has just made it makes it again
                continue
            try:
                _remove_if_unused(folder, lock)
            finally:
                os.close(lock)
