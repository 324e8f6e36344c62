"""A program of its own, started by ``pickles.py`` and never imported: a torch archive in, safetensors out, confined.

It must run without seamfast: isolated Python sees only what is installed.

    python -I _pickle_child.py ARCHIVE OUT MEMORY_BYTES FILE_BYTES CPU_SECONDS TORCH_VERSION

Exit status 0: ``OUT`` is written. Otherwise the last line on stdout is ``{"code": ..., "reason": ...}``.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import stat
import sys
from typing import Any


def die_with_parent() -> None:
    """SIGKILL for this process when the pipe that is its stdin is closed, as it is where its parent is killed."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it was closed before
        os._exit(1)


if __name__ == "__main__":
    die_with_parent()  # before the imports, which take seconds

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# What no reader of weights has a use for. `pickle.find_class` is how Python's own unpickler would look up a global;
# torch's restricted one never does.
_FORBIDDEN = (
    *("pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"),
    *("socket.__new__", "socket.connect", "ctypes.dlopen"),
)


class NotAStateDict(Exception):
    """The archive holds something else than tensors by name."""


def confine(memory_bytes: int, file_bytes: int, cpu_s: int) -> None:
    """Bound what this process may still take, for good: memory beyond what it has now, bytes in a file, CPU time."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, mapped + memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),  # root is not bound by it
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_refuse_event)


def _refuse_event(event: str, _: Any) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not for a reader of weights")


def convert(archive: str, out: str) -> None:
    """Write the tensors of ``torch.load(archive, weights_only=True)`` to ``out``."""
    loaded = torch.load(archive, weights_only=True, map_location="cpu")
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise NotAStateDict("holds no tensors by name")
    for name, value in loaded.items():
        plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
        if not plain or value.is_quantized or value.device.type != "cpu" or value.is_conj() or value.is_neg():
            raise NotAStateDict(f"holds {name!r}, which is no plain dense tensor")
    # Cloned, since a file has no views, and tied tensors share their memory.
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in loaded.items()}, out)


def main(archive: str, out: str, memory_bytes: str, file_bytes: str, cpu_s: str, torch_version: str) -> int:
    """``convert``, confined; the exit status."""
    try:
        if str(torch.__version__) != torch_version:
            raise RuntimeError(f"isolated Python finds torch {torch.__version__}; expected {torch_version}")
        torch.set_num_threads(1)
        confine(int(memory_bytes), int(file_bytes), int(cpu_s))
        convert(archive, out)
    except BaseException as error:  # whatever hostile bytes bring up: one answer, no traceback
        code = "pickle"
        if isinstance(error, NotAStateDict):
            code = "pickle-not-a-state-dict"
        elif isinstance(error, MemoryError) or "allocate memory" in str(error):
            code = "pickle-limits"
        reason = f"{type(error).__name__}: {str(error)[:400]}"
        os.write(1, ("\n" + json.dumps({"code": code, "reason": reason})).encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
