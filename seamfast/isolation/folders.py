"""Where a run may write: whether ``--out`` can be used, and private folders that no killed run leaves for good."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_LOCK = "lock"
_N_HEX = 16
_MOST_LINKS = 40  # as Linux follows


def why_not_free(out: str | os.PathLike[str]) -> str | None:
    """Why a folder cannot appear at ``out`` by a rename, as the message of an error; ``None`` where it can.

    E.g. ``out is 'gate', which is not empty; expected a folder that does not exist yet``.
    """
    path, expected = os.fspath(out), "expected a folder that does not exist yet"
    try:
        if not os.path.lexists(path):
            return None
        if os.path.islink(path) or not os.path.isdir(path) or os.listdir(path):
            return f"out is {path!r}, which is not empty; {expected}"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"out is {path!r}, which cannot be looked into ({reason}); {expected}"
    if os.path.ismount(path):
        return f"out is {path!r}, where a file system is mounted; {expected}"
    return None


def why_unusable(model: str, out: str | None, architecture_path: Sequence[str]) -> str | None:
    """Why the gate cannot write to ``out`` or import from ``architecture_path``; ``None`` where it can.

    E.g. ``architecture-path is 'model/code', which lies in the model's folder; expected code from elsewhere``.
    """
    if out is not None:
        if reason := why_not_free(out):
            return reason
        if lies_in(out, model):
            return f"out is {out!r}, which lies in the model's folder; expected a folder elsewhere"
    for folder in architecture_path:
        if not os.path.isdir(folder):
            return f"architecture-path is {folder!r}; expected a folder"
        if lies_in(folder, model):
            return f"architecture-path is {folder!r}, which lies in the model's folder; expected code from elsewhere"
    return None


def lies_in(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is in ``folder``, or a symbolic link on the way to it, or is ``folder`` itself.

    Who fills the folder would choose where such a link leads. Neither need exist.
    """
    root = os.path.realpath(folder)
    return any(os.path.commonpath([place, root]) == root for place in _ways(path))


def _ways(path: str | os.PathLike[str]) -> Iterator[str]:
    """Where each symbolic link lies that leads to ``path``, and where that is at last."""
    whole = Path(os.path.join(os.path.realpath(os.curdir), path))
    here, parts, n_links = "/", list(whole.parts[1:]), 0
    while parts:
        part = parts.pop(0)
        there = os.path.dirname(here) if part == ".." else os.path.join(here, part)
        if part != ".." and os.path.islink(there) and n_links < _MOST_LINKS:
            yield there
            n_links += 1
            target = PurePosixPath(os.readlink(there))
            if target.is_absolute():
                here = "/"
            parts[:0] = [name for name in target.parts if name != "/"]
        else:
            here = there
    yield here


def open_to_others(folder: Path) -> None:
    """Give a private folder the mode that a new one has."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)


@contextlib.contextmanager
def private_folder(parent: Path, prefix: str) -> Iterator[tuple[Path, int]]:
    """A new folder ``parent/PREFIX.HEX`` of this user alone, which goes at the end, and the descriptor of its lock.

    The folder is in use while any process holds the descriptor. Folders of such a name that are in use no more are of
    runs that were killed, and are removed first.
    """
    for name in _names(parent):
        if re.fullmatch(rf"{re.escape(prefix)}\.[0-9a-f]{{{_N_HEX}}}", name):
            remove_left(parent / name)
    folder, lock = _new_folder(parent, prefix)
    try:
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}.{secrets.token_hex(_N_HEX // 2)}"
        folder.mkdir(mode=0o700)
        lock = -1
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
                return folder, lock
        except (BlockingIOError, FileNotFoundError):
            pass  # another run took it for one that was left
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock >= 0:
            os.close(lock)


def _names(parent: Path) -> list[str]:
    try:
        return os.listdir(parent)
    except OSError:
        return []


def remove_left(folder: Path) -> None:
    """Remove a private folder of this user that is in use no more."""
    with contextlib.suppress(OSError):
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            folder.rmdir()  # killed before there was a lock, which fails where there is anything in it
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
