"""Learning-rate schedules as functions of how far through a phase a run is, in [0, 1]; values in [0, 1]."""

from __future__ import annotations

import math


def cosine(fraction: float, warmup: float = 0.1) -> float:
    """Linear up to 1 over the first ``warmup``, then half a cosine down to 0."""
    if fraction < warmup:
        return (fraction + 0.01) / (warmup + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def triangle(fraction: float, n_cycles: int) -> float:
    """``n_cycles`` triangles, each from 0 up to 1 and back."""
    within = (fraction * n_cycles) % 1.0
    return 1 - abs(2 * within - 1)
