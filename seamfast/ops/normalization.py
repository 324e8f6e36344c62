"""``(pixel / 255 - mean) / std`` for uint8 pixels, defined to the bit.

A pixel has 256 values, so the definition is a table of 256 entries a channel:
``float32(pixel * scale + bias)`` with ``scale = 1 / (255 * std)`` and ``bias = -mean / std``, in float64 but for the
last rounding; and for bfloat16 and float16 that float32, rounded to nearest even. All backends give these bits. With
``mean = 0`` and ``std = 1`` it is ``pixel.float() / 255`` to the bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seamfast.errors import InputError

__all__ = ["DTYPES", "MAX_CHANNELS", "Normalization", "as_numbers", "normalization"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of logits, and of normalized pixels."""
MAX_CHANNELS = 4
"""The most channels that an image may have."""


@dataclass(frozen=True)
class Normalization:
    """``pixel * scale + bias`` for each channel."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def table(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """``(C, 256)``: the value of every pixel."""
        return _table(self, dtype, device)


def normalization(mean: float | Sequence[float], std: float | Sequence[float], channels: int) -> Normalization:
    """The normalization of images of ``channels`` channels.

    Args:
        mean, std: one number a channel, or one for all, in units of the ``[0, 1]`` pixel scale; finite, and ``std``
        above 0.

    Raises:
        InputError: ``mean has 2 numbers; expected 1 or one for each of 3 channels``,
            ``std is (0.0,); expected finite numbers above 0``.
    """
    return _normalization(as_numbers(mean), as_numbers(std), channels)


def as_numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    """One number, or several, as a tuple of floats."""
    try:
        return tuple(float(v) for v in value)  # type: ignore[union-attr]
    except TypeError:
        return (float(value),)  # type: ignore[arg-type]


@functools.cache
def _normalization(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> Normalization:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; expected 1 or one for each of {channels} channels")
    if not all(math.isfinite(m) for m in mean):
        raise InputError(f"mean is {mean}; expected finite numbers")
    if not all(math.isfinite(s) and s > 0 for s in std):
        raise InputError(f"std is {std}; expected finite numbers above 0")
    means, stds = (values * channels if len(values) == 1 else values for values in (mean, std))
    pairs = list(zip(means, stds, strict=True))
    result = Normalization(tuple(1 / (255 * s) for _, s in pairs), tuple(-m / s for m, s in pairs))
    if not result.table(torch.float32, torch.device("cpu")).isfinite().all():
        raise InputError(f"std is {std} with mean {mean}; the normalized pixels leave the range of float32")
    return result


# Never evicted: a captured CUDA graph reads the table at its address for as long as the graph lives. An entry is some
# kilobytes, and a program uses few normalizations.
@functools.cache
def _table(normalization: Normalization, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an ordinary tensor, in whatever mode the first caller is
        scale, bias = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (normalization.scale, normalization.bias))
        values = torch.arange(256, dtype=torch.float64) * scale + bias
        return values.to(torch.float32).to(dtype).to(device)
