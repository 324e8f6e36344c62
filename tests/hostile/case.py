"""One hostile input: how to make it, and what it is refused as."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from seamfast.intake.refusal import RefusedError


@dataclass(frozen=True)
class Case:
    """``make`` writes the input into a folder and returns its path; ``code`` is that of the ``RefusedError``."""

    make: Callable[[Path], Path]
    code: str


@contextmanager
def refuses(code: str, match: str) -> Iterator[None]:
    """What is done inside raises a ``RefusedError`` of this code."""
    with pytest.raises(RefusedError, match=match) as caught:
        yield
    assert caught.value.code == code
    assert str(caught.value).isprintable()
