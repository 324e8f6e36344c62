"""One line for what a call refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refused(error: type[Exception], match: str, call: Callable[..., Any], /, *args: Any, **options: Any) -> str:
    """The message of the ``error`` that ``call(*args, **options)`` raises; the pattern ``match`` occurs in it."""
    with pytest.raises(error, match=match) as caught:
        call(*args, **options)
    return str(caught.value)
