"""What memory is there, and what to say where it does not suffice."""

from __future__ import annotations

from pathlib import Path

import torch

from seamfast.errors import InputError

_OF_SYSTEM = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device``; ``None`` where the system does not say.

    Of CUDA, ``torch.cuda.mem_get_info(device)[0]``; of a CPU, ``MemAvailable`` in ``/proc/meminfo``, which Linux has.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _OF_SYSTEM.is_file():
        return None
    for line in _OF_SYSTEM.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def check_memory(what: str, n_bytes: int, device: torch.device, less: str) -> None:
    """Raise where ``device`` has fewer than ``n_bytes`` free, before they are allocated.

    Args:
        what: needs them.
        n_bytes: needed.
        device: they are needed there.
        less: what takes fewer.

    Raises:
        InputError: e.g. ``the kernel needs 80.00 GB, and cpu has 3.21 GB free; expected fewer samples``.
    """
    free = free_bytes(device)
    if free is not None and n_bytes > free:
        raise InputError(f"{what} needs {_said(n_bytes)}, and {device} has {_said(free)} free; expected {less}")


def _said(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes} bytes"
