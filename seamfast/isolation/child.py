"""How a process of its own is started, with isolated Python and no variable that names code, and why one ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from seamfast.isolation.limits import Limits

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Loads seamfast from where this process has it, whatever else the search path holds; ``import`` would look there.
_BOOTSTRAP = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("seamfast", sys.argv[1], submodule_search_locations=[sys.argv[2]])
sys.modules["seamfast"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
importlib.import_module(sys.argv.pop(3)).main()
"""

_KEPT = frozenset(
    (
        *("LANG", "LANGUAGE", "TZ", "TERM", "COLUMNS", "NO_COLOR", "SOURCE_DATE_EPOCH", "SEAMFAST_BACKEND"),
        *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "OMP_WAIT_POLICY", "OMP_STACKSIZE"),
        *("OMP_THREAD_LIMIT", "OMP_SCHEDULE", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
        *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "OPENBLAS_NUM_THREADS", "ATEN_CPU_CAPABILITY"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG"),
        *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE"),
    )
)
"""Variables that a run may depend on, none of which names code, as hooks of Python, the loader and torch do."""


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that calls ``main()`` of ``module``, of this seamfast; ``arguments`` begin at ``sys.argv[3]``."""
    python = [sys.executable, "-I", "-B", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _BOOTSTRAP]
    return [*python, os.path.join(_PACKAGE, "__init__.py"), _PACKAGE, module, *arguments]


def environment(temporary: Path) -> dict[str, str]:
    """The variables of a process whose home and temporary folder is ``temporary``."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    kept["PATH"] = os.pathsep.join(folders) or os.defpath
    # Where a container has the library of NVIDIA's driver, the loader finds it by this variable alone.
    libraries = [
        folder
        for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        if os.path.isabs(folder) and os.path.exists(os.path.join(folder, "libcuda.so.1"))
    ]
    if libraries:
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    # scikit-learn, which reads digits, would warn that there is no shared memory to run processes with.
    quiet = {"JOBLIB_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false"}  # the latter starts threads otherwise
    return kept | {"HOME": str(temporary), "TMPDIR": str(temporary), **quiet}


def user_site() -> list[str]:
    """The user's own site folder, where seamfast is installed in it."""
    site = sys.modules.get("site")
    folder = None if site is None else site.USER_SITE
    return [folder] if folder and os.path.dirname(_PACKAGE) == os.path.realpath(folder) else []


def why_ended(status: int, limits: Limits) -> str:
    """Why a process that left no result ended with ``status``, as ``subprocess`` counts: below 0, by that signal."""
    # Libraries that get no memory end the process in their own ways.
    limit = limits.reached(MemoryError())
    perhaps = f" ({limit})" if limit else ""
    if status >= 0:
        return f"the process of the run ended with status {status} and without a verdict{perhaps if status else ''}"
    name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
    if -status == signal.SIGXCPU:
        return f"the process of the run used {limits.cpu_s:,} s of processor time, the limit that --max-time sets"
    if -status == signal.SIGKILL:
        perhaps = ", as the system does where memory runs out"
    elif -status not in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        perhaps = ""
    return f"the process of the run was ended by {name}{perhaps}"
