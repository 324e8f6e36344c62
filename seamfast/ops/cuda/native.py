"""The compiled extension ``seamfast._cuda``, which is imported nowhere else."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from seamfast.errors import BackendUnavailableError
from seamfast.ops.philox import Counter

# The extension's calling convention: kInterface in csrc/cuda/module.cpp.
_INTERFACE = 2


@functools.cache
def _found() -> tuple[Any, str | None]:
    """The extension, or ``None`` and why."""
    how = "install with SEAMFAST_CUDA=1 where nvcc is"
    try:
        native = importlib.import_module("seamfast._cuda")
    except ModuleNotFoundError:
        return None, f"the extension seamfast._cuda is not built: {how}"
    except ImportError as error:
        return None, f"the extension seamfast._cuda did not import ({error}): {how}"
    interface = getattr(native, "INTERFACE", None)
    if interface != _INTERFACE:
        got = f"seamfast._cuda is of another build (interface {interface}; expected {_INTERFACE})"
        return None, f"{got}: {how}"
    if not torch.cuda.is_available():
        return None, "torch sees no CUDA device"
    if reason := native.why_unavailable():
        return None, f"seamfast._cuda and this machine's driver do not go together: {reason}"
    return native, None


def load() -> Any:
    """The extension, or a ``BackendUnavailableError`` with the reason."""
    native, reason = _found()
    if reason is not None:
        raise BackendUnavailableError(f"backend 'cuda' cannot run: {reason}")
    return native


def why_unavailable() -> str | None:
    """Why the backend cannot run, or ``None`` if it can."""
    return _found()[1]


def address(tensor: Tensor | None) -> int:
    """Where a tensor's elements lie; 0 for ``None``."""
    return 0 if tensor is None else tensor.data_ptr()


def counter(value: Counter) -> tuple[int, int]:
    """A seed or step as the extension takes it: ``(unsigned number, 0)``, or ``(0, address)`` of one on the device."""
    return (0, value.data_ptr()) if isinstance(value, Tensor) else (value & 0xFFFFFFFFFFFFFFFF, 0)


def queue(device: int) -> tuple[int, int]:
    """Where to launch: ``(device, stream)``, the stream that is current."""
    return device, torch._C._cuda_getCurrentRawStream(device)  # torch.cuda.current_stream makes an object for it
