"""Fixtures of the tests of the ops."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from seamfast.ops import cpp, dispatch
from seamfast.ops.cpp import native as native_module


@pytest.fixture(scope="session")
def native() -> Any:
    """The compiled extension; skips where it is not built."""
    reason = cpp.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return native_module.load()


@dataclass(frozen=True)
class Backend:
    """A backend, and the device on which it is tested."""

    name: str
    device: torch.device

    @property
    def is_slow(self) -> bool:
        """Whether it is Triton's interpreter: so slow that grids are thinned for it."""
        return self.name == "triton" and self.device.type == "cpu"

    def needs_classes(self, classes: int) -> None:
        """Skip where the loss does not support so many."""
        if self.name == "cuda" and classes > 1024:
            pytest.skip("backend 'cuda' takes at most 1024 classes")


# The interpreter computes with NumPy, which warns of Inf - Inf; kernels compute that.
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PARAMETERS = [
    pytest.param("reference-cpu"),
    pytest.param("cpp-cpu"),
    pytest.param("triton-cpu", marks=QUIET),
    *(pytest.param(f"{name}-cuda", marks=pytest.mark.gpu) for name in ("reference", "triton", "cuda")),
]


@pytest.fixture(params=PARAMETERS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; skips with the reason where it cannot run."""
    name, device = request.param.split("-")
    if name != "reference":
        package = dispatch.package(name)
        reason = package.why_unavailable()
        if reason is None and device not in package.DEVICE_TYPES:
            reason = f"{name} runs on {' and '.join(package.DEVICE_TYPES)} tensors here"
        if reason is not None:
            pytest.skip(reason)
    op = request.module.__name__.removeprefix("test_")
    if name not in dispatch._OPS.get(op, (name,)):
        pytest.skip(f"{op} has no backend {name!r}")
    return Backend(name, torch.device(device))


@pytest.fixture(scope="session", autouse=True)
def quiet_without_native() -> Iterator[None]:
    """Without the extension, ``auto`` takes the reference without a warning, which would be an error here."""
    with pytest.MonkeyPatch.context() as patch:
        if cpp.why_unavailable() is not None:
            patch.setenv("SEAMFAST_BACKEND", "reference")
        yield


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which the compiled extension does not import, before the first warning."""
    monkeypatch.setitem(sys.modules, "seamfast._native", None)
    monkeypatch.setattr(dispatch, "_warned", False)
    native_module._found.cache_clear()
    yield
    native_module._found.cache_clear()
