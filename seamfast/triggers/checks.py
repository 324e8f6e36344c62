"""What the trigger code takes from a caller, checked: each function gives it in one form, or says what it was."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError

ImageShape = tuple[int, int, int]
Array = npt.NDArray[Any]

MAX_NAME = 128


def check_name(name: Any) -> None:
    """Nothing, or an error where a trigger cannot be called so."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InputError(f"trigger name is {short(name)}; expected 1 to {MAX_NAME} printable characters")


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` is an ``(N, C, H, W)`` uint8 tensor."""
    if not isinstance(images, Tensor):
        raise DTypeError(f"images is {type(images).__name__}; expected a uint8 tensor")
    if images.dtype != torch.uint8:
        raise DTypeError(f"images has dtype {str(images.dtype).removeprefix('torch.')}; expected uint8 pixels")
    if images.ndim != 4:
        raise ShapeError(f"images has shape {tuple(images.shape)}; expected (N, C, H, W)")


def as_image_shape(shape: Sequence[int]) -> ImageShape:
    """``shape`` as three ints from 1."""
    sizes = tuple(as_integer(n) for n in shape)
    if len(sizes) != 3 or any(n is None or n < 1 for n in sizes):
        raise ShapeError(f"image shape is {short(tuple(shape))}; expected (C, H, W), each at least 1")
    c, h, w = (n for n in sizes if n is not None)
    return c, h, w


def as_sample_ids(sample_ids: Tensor | Sequence[int] | None, n: int, device: torch.device) -> Tensor:
    """``(n,)`` int64 on ``device``; ``None`` is ``0 .. n-1``. Values are checked on the CPU only: no read-back."""
    if sample_ids is None:
        return torch.arange(n, device=device)
    ids = sample_ids.detach() if isinstance(sample_ids, Tensor) else torch.tensor(as_array(sample_ids, "sample_ids"))
    if ids.shape != (n,):
        raise ShapeError(f"sample_ids has shape {tuple(ids.shape)}; expected (N,) = ({n},)")
    if n and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise DTypeError(f"sample_ids has dtype {str(ids.dtype).removeprefix('torch.')}; expected an integer dtype")
    ids = ids.to(torch.int64)
    if n and ids.device.type == "cpu" and int(ids.min()) < 0:
        raise InputError(f"sample_ids hold {int(ids.min())}; expected integers from 0")
    return ids.to(device)


def as_seed(seed: Any) -> int:
    """``seed`` as an int in ``[0, 2**64)``."""
    number = as_integer(seed)
    if number is None or not 0 <= number < 2**64:
        raise InputError(f"seed is {short(seed)}; expected an integer in [0, 2**64)")
    return number


def as_integer(value: Any) -> int | None:
    """``value`` as an int if it is an integer of any kind (no bool), else ``None``."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):  # torch: only one-element integer tensors have an index
        return None


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is one finite real number (no bool, no string), else ``None``."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_array(value: Any, what: str) -> Array:
    """``value`` as a NumPy array of bools, integers or floats."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()  # NumPy knows no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} is ragged; expected an array") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{what} has dtype {array.dtype}; expected numbers")
    return array


def immutable(array: Array) -> Array:
    """A copy over ``bytes``: its write flag cannot be set again, unlike that of an array which owns its memory."""
    return np.frombuffer(array.tobytes(), dtype=array.dtype).reshape(array.shape)


def short(value: object) -> str:
    """``repr``, cut to a length that a message can take: the value may come from a file."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
