"""Calls that must raise: with the whole of a message, or with a pattern in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


def raises(kind: type[Exception], message: str) -> Any:
    """``pytest.raises(kind)`` with the whole of ``message``."""
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def refused(error: type[Exception], match: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> str:
    """The message of the ``error`` that ``call(*args, **options)`` raises; the pattern ``match`` occurs in it."""
    with pytest.raises(error, match=match) as caught:
        call(*args, **options)
    return str(caught.value)
