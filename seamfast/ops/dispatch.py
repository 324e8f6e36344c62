"""Which backend runs an op.

``auto`` takes the fastest that can run on the tensors' device, and falls back with one warning. A backend that is
named runs, or raises ``BackendUnavailableError`` with the reason. ``SEAMFAST_BACKEND`` names a backend for every
``auto``.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from types import ModuleType
from typing import TypedDict

import torch

from seamfast.errors import BackendUnavailableError, InputError

__all__ = ["BACKENDS", "BackendStatus", "backends", "package", "resolve"]

BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")

# The backends of each op; the last runs everywhere. A backend is the subpackage of its name.
_OPS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("cpp", "triton", "cuda", "reference"),
    "stamp_trigger": ("cpp", "triton", "cuda", "reference"),
    "count_outcomes": ("cpp", "triton", "reference"),
    "gather_augment": ("cpp", "triton", "reference"),
    "occlude": ("cpp", "triton", "reference"),
}

_warned = False


class BackendStatus(TypedDict):
    """One row of what ``seamfast doctor`` shows."""

    op: str
    backend: str
    available: bool
    reason: str | None
    devices: tuple[str, ...] | None
    isa: str | None
    threads: int | None


def backends() -> list[BackendStatus]:
    """The backends of each operation and whether they can run here, fastest first.

    Returns:
        One dict for each op and backend: ``op``, ``backend``, ``available``; ``reason`` why it is not available, else
        ``None``; ``devices``, the types of device that it runs on, or ``None`` for all; ``isa``, the instruction set in
        use, and ``threads``, what ``threads=0`` means (both ``None`` but for ``"cpp"`` where it is available).

    Example:
        >>> [row["backend"] for row in backends() if row["op"] == "gather_augment"]
        ['cpp', 'triton', 'reference']
    """
    rows: list[BackendStatus] = []
    for op, names in _OPS.items():
        for name in names:
            module = None if name == "reference" else package(name)
            reason = None if module is None else module.why_unavailable()
            native = module if name == "cpp" and reason is None else None
            rows.append(
                {
                    "op": op,
                    "backend": name,
                    "available": reason is None,
                    "reason": reason,
                    "devices": None if module is None else tuple(module.DEVICE_TYPES),
                    "isa": native.isa() if native else None,
                    "threads": native.default_threads() if native else None,
                }
            )
    return rows


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs ``op`` on tensors of ``device``: a member of ``BACKENDS`` other than ``auto``.

    Raises:
        InputError: ``backend is 'gpu'; expected one of auto, reference, cpp, triton, cuda``.
        BackendUnavailableError: ``gather_augment has no backend 'cpp' for tensors on cuda:0``, or why it cannot run.
    """
    if backend == "auto":
        return _automatic(op, os.environ.get("SEAMFAST_BACKEND") or "auto", device)
    return _named(op, backend, device, "backend")


def _automatic(op: str, wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return _named(op, wanted, device, "environment variable SEAMFAST_BACKEND")
    # Not Triton's interpreter on the CPU, which is for tests; not ``cuda``: no measurement shows that it is faster.
    fastest = "cpp" if device.type == "cpu" else "triton"
    reason = _why_not(op, fastest, device)
    if reason is None:
        return fastest
    _warn_once(reason)
    return "reference"


def _named(op: str, backend: str, device: torch.device, source: str) -> str:
    if backend not in BACKENDS:
        raise InputError(f"{source} is {backend!r}; expected one of {', '.join(BACKENDS)}")
    reason = _why_not(op, backend, device)
    if reason is not None:
        raise BackendUnavailableError(reason)
    return backend


def _why_not(op: str, backend: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    if backend not in _OPS[op]:
        return f"{op} has no backend {backend!r}; it has {', '.join(_OPS[op])}"
    module = package(backend)
    if device.type not in module.DEVICE_TYPES:
        return f"backend {backend!r} runs on {' and '.join(module.DEVICE_TYPES)} tensors; these are on {device}"
    reason = module.why_unavailable()
    return None if reason is None else f"backend {backend!r} cannot run: {reason}"


@functools.cache
def package(backend: str) -> ModuleType:
    """The package of a backend, imported on first use."""
    return importlib.import_module(f"seamfast.ops.{backend}")


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("seamfast.ops.", "torch.")):
            level, frame = level + 1, frame.f_back
        message = f"seamfast runs on its slower PyTorch reference: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=level)  # the caller of the op
