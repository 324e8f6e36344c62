"""The compiled extension ``seamfast._native``, which is imported nowhere else."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from seamfast.errors import BackendUnavailableError

# The numbers of LogitType in csrc/ops/rows.h.
LOGIT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# The extension's calling convention: kInterface in csrc/module.cpp.
_INTERFACE = 6


@functools.cache
def _found() -> tuple[Any, str | None]:
    """The extension, or ``None`` and why."""
    try:
        native = importlib.import_module("seamfast._native")
    except ImportError as error:
        how = "reinstall seamfast where a C++17 compiler is found"
        return None, f"the compiled extension seamfast._native did not import ({error}); {how}"
    interface = getattr(native, "INTERFACE", None)
    if interface != _INTERFACE:
        got = f"seamfast._native is of another build (interface {interface}; expected {_INTERFACE})"
        return None, f"{got}; reinstall seamfast"
    return native, None


def load() -> Any:
    """The extension, or a ``BackendUnavailableError`` with the reason."""
    native, reason = _found()
    if reason is not None:
        raise BackendUnavailableError(f"backend 'cpp' cannot run: {reason}")
    return native


def why_unavailable() -> str | None:
    """Why the backend cannot run, or ``None`` if it can."""
    return _found()[1]


def isa() -> str:
    """The instruction set in use."""
    return str(load().isas()[-1])


def default_threads() -> int:
    """What ``threads=0`` means: as many as PyTorch has, so that one setting holds for both."""
    return torch.get_num_threads()


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements lie; 0 for ``None``."""
    return 0 if tensor is None else tensor.data_ptr()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Memory that is freed in here stays with the process, to be used again: see ``csrc/memory.h``."""
    if why_unavailable() is not None:
        yield
        return
    native = load()
    native.keep_freed_memory(True)
    try:
        yield
    finally:
        native.keep_freed_memory(False)
