"""What Linux denies a run of the gate: writing anywhere but to its folders, connections, other processes."""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from seamfast.isolation.limits import machine_memory
from seamfast.isolation.state import Isolation

_CUDA_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*")


def confine(folders: Sequence[str], *, cuda: bool, isolation: Isolation) -> None:
    """Deny this process, for good, all writing but beneath ``folders``, all connections, and control of others.

    Reading stays allowed everywhere, and so does starting programs, which inherit all of this. To be called before
    there are other threads. What the system cannot do is added to ``isolation.missing``, what holds is noted there.

    Args:
        folders: where files are written, made, renamed and removed.
        cuda: also allow NVIDIA's devices, and shared memory where there are any.
        isolation: of this process.
    """
    native = _native()
    if native is None:
        isolation.missing.append(
            "the run was not confined by the system: seamfast is installed without its extension _confine"
        )
        return
    devices = [path for pattern in _CUDA_DEVICES if cuda for path in glob.glob(pattern) if not os.path.isdir(path)]
    shared = ["/dev/shm"] if devices and os.path.isdir("/dev/shm") else []
    try:
        native.no_new_privileges()
    except OSError as error:
        isolation.missing.append(f"the run could have gained privileges: {error.strerror}")
        return
    try:
        isolation.landlock_abi = native.confine_files([*folders, *shared], [os.devnull, *devices])
    except OSError as error:
        isolation.missing.append(
            f"the run could have written to other places than its own: Landlock is not available ({error.strerror})"
        )
    try:
        native.filter_calls()
        isolation.seccomp = True
    except OSError as error:
        isolation.missing.append(f"the run could have connected to others: seccomp is not available ({error.strerror})")


def available() -> dict[str, Any]:
    """What this machine offers, for ``seamfast doctor``: plain JSON values."""
    native = _native()
    return {
        "extension": native is not None,
        "landlock_abi": (native.landlock_abi() or None) if native is not None else None,
        "seccomp": native is not None and native.has_seccomp(),
        "memory_bytes": machine_memory(),
    }


def die_with_parent(parent: int) -> bool:
    """Whether the system ends this process with its parent from now on; ends it at once where it has ended already."""
    native = _native()
    if native is not None:
        native.die_with_parent()
    if os.getppid() != parent:
        os._exit(2)
    return native is not None


def adopt_orphans() -> bool:
    """Whether descendants whose own parent has ended become children of this process from now on."""
    native = _native()
    if native is None:
        return False
    native.adopt_orphans()
    return True


def _native() -> ModuleType | None:
    try:
        return importlib.import_module("seamfast._confine")
    except ImportError:
        return None
