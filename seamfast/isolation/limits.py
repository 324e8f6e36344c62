"""How much of the machine a run may take."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_OPEN_FILES = 4096
_FILE_BYTES = 16 << 30  # the weights of a model, or the pixels of a set of images that does not fit into memory
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        memory_bytes: that it may write to and shares with no other; ``None``: as much as there is.
        time_s: by the clock, from its start to its end.
        cpu_s: processor time of all of its threads; a bound on ``time_s`` that holds without anyone who watches.
        open_files: at a time.
        file_bytes: in one file.
    """

    memory_bytes: int | None
    time_s: float
    cpu_s: int
    open_files: int = _OPEN_FILES
    file_bytes: int = _FILE_BYTES

    @classmethod
    def of(cls, max_memory: int | None, max_time_s: float) -> Limits:
        """Those for a run; ``max_memory`` is in bytes, ``None`` for what the machine or its control group has."""
        cpu_s = math.ceil(max_time_s * len(os.sched_getaffinity(0))) + 1
        return cls(machine_memory() if max_memory is None else max_memory, max_time_s, min(cpu_s, 1 << 62))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def apply(self) -> None:
        """Set them for this process and those that it starts, for good; lower ones that hold already stay."""
        for limit, value in (
            (resource.RLIMIT_DATA, self.memory_bytes),  # not RLIMIT_AS: CUDA reserves addresses that it does not use
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_CORE, 0),  # a core dump would hold the data
        ):
            if value is None:
                continue
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))

    def reached(self, error: BaseException) -> str | None:
        """The limit that ``error`` may come of, in words; ``None`` where it does not come of one."""
        if is_out_of_memory(error) and self.memory_bytes is not None:
            return f"the memory limit is {self.memory_bytes:,} bytes; --max-memory sets it"
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EFBIG:
            return f"the limit on a file is {self.file_bytes:,} bytes"
        if number == errno.EMFILE:
            return f"the limit on open files is {self.open_files:,}"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's allocator for the CPU has no exception of its own."""
    if isinstance(error, RuntimeError):
        told = ("can't allocate memory", "could not create a primitive")  # the latter by oneDNN
        return any(text in str(error) for text in told) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def machine_memory() -> int | None:
    """Bytes of memory of the machine, or of the control group that this process is in; ``None`` where unknown."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (OSError, ValueError):
        found = []
    for file in _group_files():
        try:
            text = file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():  # else it is "max"
            found.append(int(text))
    return min(found) if found else None


def _group_files() -> Iterator[Path]:
    """What holds the limits of this process's control group and of those that it lies in, in both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = Path(os.path.normpath(f"{root}/{path}"))
        while root in (place, *place.parents):
            yield place / name
            place = place.parent
