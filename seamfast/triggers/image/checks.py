"""Checks of images and of their shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seamfast.checks import dtype_name, integer_or_none, short
from seamfast.errors import DTypeError, ShapeError

ImageShape = tuple[int, int, int]

SMALLEST_EDGE = 8
"""In pixels; the published triggers need this size."""


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` is an ``(N, C, H, W)`` uint8 tensor."""
    if not isinstance(images, Tensor):
        raise DTypeError(f"images is {type(images).__name__}; expected a uint8 tensor")
    if images.dtype != torch.uint8:
        raise DTypeError(f"images has dtype {dtype_name(images.dtype)}; expected uint8 pixels")
    if images.ndim != 4:
        raise ShapeError(f"images has shape {tuple(images.shape)}; expected (N, C, H, W)")


def as_image_shape(shape: Sequence[int]) -> ImageShape:
    """``shape`` as three ints from 1."""
    sizes = tuple(integer_or_none(n) for n in shape)
    if len(sizes) != 3 or any(n is None or n < 1 for n in sizes):
        raise ShapeError(f"image shape is {short(tuple(shape))}; expected (C, H, W), each at least 1")
    c, h, w = (n for n in sizes if n is not None)
    return c, h, w
