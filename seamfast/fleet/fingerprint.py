"""What a file or folder holds, told from its names, sizes and times in no time, or from its bytes for certain."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seamfast.errors import DataFileError
from seamfast.fleet.jobs import SOURCES, Job
from seamfast.report import write_atomically
from seamfast.untrusted import CHUNK, open_regular, shown

_MOST_FILES = 1_000_000
_OF_DATA = (*SOURCES, "root", "triggers")


def stamp_of(path: str | os.PathLike[str]) -> str:
    """A digest of the names, kinds, sizes and times of all files at ``path``: equal while nobody writes to them.

    Raises:
        DataFileError: ``'a/model' cannot be looked into (...)``.
    """
    digest = hashlib.sha256()
    for name, status in _files(Path(path)):
        digest.update(json.dumps([name, status.st_mode, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def digest_of(path: str | os.PathLike[str]) -> str:
    """A digest of the names and the bytes of all files at ``path``; of other entries, of their names and kinds.

    Raises:
        DataFileError: as ``stamp_of``, and where a file cannot be read.
    """
    root, digest = Path(path), hashlib.sha256()
    for name, status in _files(root):
        digest.update(json.dumps([name, stat.S_IFMT(status.st_mode), status.st_size]).encode())
        if stat.S_ISREG(status.st_mode):
            with open_regular(root / name if name else root, "a file to read", where=shown(path)) as file:
                while part := file.read(CHUNK):
                    digest.update(part)
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All entries but folders below ``root``, in the order of their names; no link below it is followed."""
    try:
        status = os.stat(root)
        if not stat.S_ISDIR(status.st_mode):
            yield "", status
            return
        waiting, n_files = [""], 0
        while waiting:
            folder = waiting.pop()
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                name = f"{folder}{entry.name}"
                n_files += 1
                if n_files > _MOST_FILES:
                    raise DataFileError(f"{shown(root)} holds more than {_MOST_FILES:,} files; expected fewer")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False)
    except OSError as error:
        reason = f"cannot be looked into ({error.strerror}); expected a file or folder"
        raise DataFileError(f"{shown(root)!r} {reason}") from None


class Inputs:
    """Digests of what the operator gives: data, triggers, policies. Each is read once, and again only when changed.

    Args:
        path: the file that keeps them for the next call.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[str]] = {}
        self._checked: dict[str, str] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._known = {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 2}
        except (OSError, ValueError, AttributeError):
            pass  # they are computed anew

    def digest(self, path: str) -> str:
        """``digest_of(path)``, or the name itself where it is of a data set, or of no file that can be read."""
        if path not in self._checked:
            self._checked[path] = f"name:{path}"
            if os.path.isabs(path) and os.path.exists(path):
                with contextlib.suppress(DataFileError):  # which the job meets too, and reports
                    self._checked[path] = self._digest(path)
        return self._checked[path]

    def _digest(self, path: str) -> str:
        stamp = stamp_of(path)
        if self._known.get(path, [""])[0] != stamp:
            self._known[path] = [stamp, digest_of(path)]
            write_atomically(self._path, json.dumps(self._known, indent=1).encode())
        return self._known[path][1]

    def of_job(self, job: Job) -> dict[str, str]:
        """The digests of a job's data and of its settings; ``"data"`` and ``"config"``."""
        settings = job.settings
        data = {name: self.digest(settings[name]) for name in _OF_DATA if name in settings}
        config = {name: value for name, value in settings.items() if name not in (*_OF_DATA, "model")}
        if "policy" in config:
            config["policy"] = self.digest(config["policy"])
        return {"data": canonical_digest(data), "config": canonical_digest(config)}


def canonical_digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of ``values`` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
