"""Which backend runs an op.

``auto`` takes the fastest that can run on the tensors' device, and falls back with one warning. A backend that was
named runs, or raises ``BackendUnavailableError`` with the reason. ``SEAMFAST_BACKEND`` names a backend for every
``auto``.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType
from typing import TypedDict

import torch

from seamfast.errors import BackendUnavailableError, InputError

__all__ = ["BACKENDS", "BackendStatus", "backends", "resolve"]

BACKENDS = ("auto", "reference", "cpp")

# Each op's backends, fastest first; the last runs everywhere. A backend is the module of its name in this package.
_OPS: dict[str, tuple[str, ...]] = {
    "gather_augment": ("cpp", "reference"),
    "random_labels": ("reference",),
}

_warned = False


class BackendStatus(TypedDict):
    """One row of what ``seamfast doctor`` shows."""

    op: str
    backend: str
    available: bool
    reason: str | None
    isa: str | None
    threads: int | None


def backends() -> list[BackendStatus]:
    """What each op can run on here, fastest first.

    Returns:
        One dict for each op and backend: ``op``, ``backend``, ``available``; ``reason`` why it is not available, else
        ``None``; ``isa``, the instruction set in use, and ``threads``, what ``threads=0`` means (both ``None`` where
        PyTorch decides or the backend is not available).

    Example:
        >>> [row["backend"] for row in backends() if row["op"] == "gather_augment"]
        ['cpp', 'reference']
    """
    rows: list[BackendStatus] = []
    for op, names in _OPS.items():
        for name in names:
            reason = None if name == "reference" else _module(name).why_unavailable()
            native = _module(name) if name != "reference" and reason is None else None
            rows.append(
                {
                    "op": op,
                    "backend": name,
                    "available": reason is None,
                    "reason": reason,
                    "isa": native.isa() if native else None,
                    "threads": native.default_threads() if native else None,
                }
            )
    return rows


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs ``op`` on tensors of ``device``: a member of ``BACKENDS`` other than ``auto``.

    Raises:
        InputError: ``backend is 'gpu'; expected one of auto, reference, cpp``.
        BackendUnavailableError: ``gather_augment has no backend 'cpp' for tensors on cuda:0``, or why it cannot run.
    """
    source = "backend"
    if backend == "auto":
        backend = os.environ.get("SEAMFAST_BACKEND", "") or "auto"
        source = "environment variable SEAMFAST_BACKEND"
    if backend not in BACKENDS:
        raise InputError(f"{source} is {backend!r}; expected one of {', '.join(BACKENDS)}")

    if backend != "auto":
        reason = _why_not(op, backend, device)
        if reason is not None:
            raise BackendUnavailableError(reason)
        return backend

    for name in _OPS[op]:
        reason = _why_not(op, name, device)
        if reason is None:
            return name
        if device.type == "cpu":
            _warn_once(reason)
    raise BackendUnavailableError(f"{op} runs on no backend for tensors on {device}")  # pragma: no cover


def _why_not(op: str, backend: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    if backend not in _OPS[op]:
        return f"{op} has no backend {backend!r}; it has {', '.join(_OPS[op])}"
    module = _module(backend)
    if device.type not in module.DEVICE_TYPES:
        return f"backend {backend!r} runs on {' and '.join(module.DEVICE_TYPES)} tensors; these are on {device}"
    reason = module.why_unavailable()
    return None if reason is None else f"backend {backend!r} cannot run: {reason}"


def _module(backend: str) -> ModuleType:
    return importlib.import_module(f"seamfast.ops.{backend}")


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        message = f"seamfast runs on its slower PyTorch reference: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)  # the caller of the op
