"""Whether Triton is installed, and on which devices its kernels run."""

from __future__ import annotations

import functools
import importlib.util
import os

# Triton itself reads the variable when it is imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

DEVICE_TYPES = ("cuda", "cpu") if INTERPRETED else ("cuda",)


@functools.cache
def why_unavailable() -> str | None:
    """Why the backend cannot run, or ``None`` if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install seamfast[triton]"
    return None
