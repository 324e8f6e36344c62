"""The C++ backend: CPU tensors, through the compiled extension ``seamfast._native``, which is imported nowhere else."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from seamfast.errors import BackendUnavailableError
from seamfast.ops._check import out_of_range
from seamfast.ops.normalization import DTYPES, Normalization

DEVICE_TYPES = ("cpu",)

# The extension's calling convention that this file speaks: kInterface in csrc/module.cpp.
_INTERFACE = 1


@functools.cache
def _load() -> tuple[Any, str | None]:
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


def _native() -> Any:
    native, reason = _load()
    if reason is not None:
        raise BackendUnavailableError(f"backend 'cpp' cannot run: {reason}")
    return native


def why_unavailable() -> str | None:
    """Why the backend cannot run, or ``None`` if it can."""
    return _load()[1]


def isa() -> str:
    """The instruction set in use."""
    return str(_native().isas()[-1])


def default_threads() -> int:
    """What ``threads=0`` means: the CPUs in the affinity mask."""
    return int(_native().cpu_count())


def gather_augment(
    images: Tensor,
    indices: Tensor,
    *,
    normalization: Normalization,
    pad: int,
    flip: bool,
    seed: int,
    epoch: int | Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,
    out: Tensor | None,
    isa: str = "",
) -> Tensor:
    """Of checked arguments, ``seamfast.ops.gather_augment``. ``isa`` forces an instruction set, for tests."""
    native = _native()
    indices = indices.contiguous()
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty((len(indices), *images.shape[1:]), dtype=dtype, memory_format=layout)
    table = normalization.table(dtype, images.device)
    bad = native.gather_augment(
        images=images.data_ptr(),
        shape=tuple(images.shape),
        indices=indices.data_ptr(),
        batch=len(indices),
        out=out.data_ptr(),
        element=DTYPES.index(dtype),
        channels_last=channels_last,
        table=table.data_ptr(),
        scale=normalization.scale,
        bias=normalization.bias,
        pad=pad,
        flip=flip,
        seed=seed,
        epoch=int(epoch) & 0xFFFFFFFF,
        threads=threads,
        isa=isa,
    )
    if bad >= 0:
        raise out_of_range("indices", indices, bad, len(images))
    if not out.is_inference():
        # Autograd does not see a write through an address. Unless told, it would let a tensor that it saved for the
        # backward pass change, and compute a wrong gradient without a word.
        torch.autograd.graph.increment_version(out)
    return out
