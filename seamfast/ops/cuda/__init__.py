"""The CUDA C++ backend: CUDA tensors, through the compiled extension ``seamfast._cuda``."""

DEVICE_TYPES = ("cuda",)


def why_unavailable() -> str | None:
    """Why the backend cannot run, or ``None`` if it can."""
    return "not built"
