"""One hostile input: how to make it, and what it is refused as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """``make`` writes the input into a folder and returns its path; ``code`` is that of the ``RefusedError``."""

    make: Callable[[Path], Path]
    code: str
