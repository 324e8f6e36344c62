"""Bounds from resamples."""

from __future__ import annotations

import torch
from torch import Tensor


def percentile_bounds(drawn: Tensor, level: float) -> tuple[float, float]:
    """``torch.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])``: of the percentile bootstrap.

    Args:
        drawn: ``(n_boot,)`` floats: the figure of each resample.
        level: in (0, 1).

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype)
    low, high = torch.quantile(drawn, ends).tolist()
    return low, high
