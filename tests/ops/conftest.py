"""What the tests of the ops share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from seamfast.ops import cpp, dispatch


@pytest.fixture(scope="session")
def native() -> Any:
    """The compiled extension; skips where it is not built."""
    reason = cpp.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    return cpp._native()


@pytest.fixture(scope="session", autouse=True)
def quiet_without_native() -> Iterator[None]:
    """Where the extension is not built, ``auto`` takes the reference unwarned: a warning would be an error here."""
    with pytest.MonkeyPatch.context() as patch:
        if cpp.why_unavailable() is not None:
            patch.setenv("SEAMFAST_BACKEND", "reference")
        yield


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which the compiled extension does not import and nobody has been warned yet."""
    monkeypatch.setitem(sys.modules, "seamfast._native", None)
    monkeypatch.setattr(dispatch, "_warned", False)
    cpp._load.cache_clear()
    yield
    cpp._load.cache_clear()
