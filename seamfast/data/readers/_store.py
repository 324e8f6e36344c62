"""Memory for decoded pixels; beyond a budget, a file that is mapped into memory."""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from seamfast.errors import DataFileError, InputError
from seamfast.untrusted import Bytes, allocate


def check_memory_budget(budget: int | None) -> int:
    """``budget`` in bytes; default: half of the machine's memory or of the limit of its control groups."""
    if budget is None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([machine, *_control_group_limits()]) // 2
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise InputError(f"memory_budget is {budget!r}; expected None or an integer of at least 0, in bytes")
    return budget


def pixel_store(shape: tuple[int, ...], memory_budget: int, where: str) -> Bytes:
    """Uninitialized bytes. Beyond the budget they are mapped from a file, which is freed with the array.

    The file has no name, so nothing remains of it when the process ends. Its blocks are allocated here: on a full disk,
    a write through a mapping would end the process by SIGBUS.
    """
    n_bytes = math.prod(shape)
    if n_bytes <= memory_budget:
        return allocate(shape, where)
    needed = f"{where}: would take {n_bytes:,} bytes, more than memory_budget={memory_budget:,}, so a file"
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        why = os.strerror(error.errno or errno.ENOENT)  # its own text names the folders
        raise DataFileError(f"{needed} in a temporary folder ({why}); name one in TMPDIR") from error
    try:
        if n_bytes > free:  # checked first: some file systems fill the disk before they report that it is too small
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            pixels: Bytes = np.ndarray(shape, np.uint8, buffer=mmap.mmap(file.fileno(), n_bytes))
    except OSError as error:
        raise DataFileError(
            f"{needed} in the temporary folder, which has {free:,} bytes free ({error.strerror}); "
            "name another in TMPDIR"
        ) from error
    return pixels


def _control_group_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Memory limits, in bytes, of the control groups of this process; empty without such files.

    Source: Linux kernel documentation, "Control Group v2" (``memory.max``) and "Memory Resource Controller"
    (``memory.limit_in_bytes``). In a container the group itself may be hidden, with its limit at the root.
    """
    limits: list[int] = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":
                base, name = root, "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = base / place.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((folder / name).read_text()))
                if folder == base:
                    break
    return limits
