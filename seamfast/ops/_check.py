"""Argument checks that the operations share. Each message names the value and what is expected."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError

MAX_THREADS = 1024


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, value: object, dtype: torch.dtype) -> None:
    """Raises ``DTypeError`` unless ``value`` is a tensor of ``dtype``."""
    if not isinstance(value, Tensor):
        raise DTypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
    if value.dtype != dtype:
        raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected {dtype_name(dtype)}")


def check_vector(
    name: str, value: Tensor, dtype: torch.dtype, length: int | None = None, device: torch.device | None = None
) -> None:
    """Raises unless ``value`` is a vector of ``dtype`` and, where given, of ``length`` and on ``device``."""
    if type(value) is Tensor and value.dtype == dtype and value.shape == (length,) and value.device == device:
        return
    check_tensor(name, value, dtype)
    if value.ndim != 1 or (length is not None and len(value) != length):
        wanted = "(N,)" if length is None else f"(N,) = ({length},)"
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected {wanted}")
    if device is not None and value.device != device:
        raise InputError(f"{name} is on {value.device}; expected {device}")


def as_integer(name: str, value: object, low: int, high: int, condition: str = "") -> int:
    """``value`` as an ``int``, or an ``InputError`` unless it is an integer (of NumPy, too) in ``[low, high]``."""
    if type(value) is int and low <= value <= high:
        return value
    try:
        integer = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        integer = None
    if integer is None or isinstance(value, bool) or not low <= integer <= high:
        raise InputError(f"{name} is {value!r}; expected an integer in [{low}, {high}]{condition}")
    return integer


def check_flag(name: str, value: object) -> None:
    """Raises ``InputError`` unless ``value`` is ``True`` or ``False``: many a wrong argument is truthy."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; expected True or False")


def check_in_range(name: str, values: Tensor, size: int, low: int = 0) -> None:
    """Raises ``InputError`` unless all of ``values`` are in ``[low, size)``. Waits for the device of ``values``."""
    wrong = (values < low) | (values >= size)
    if wrong.any():
        raise out_of_range(name, values, int(wrong.nonzero()[0]), size, low)


def out_of_range(name: str, values: Tensor, position: int, size: int, low: int = 0) -> InputError:
    """The error to raise for ``values[position]``, which is outside ``[low, size)``."""
    got = f"{name} hold {int(values[position])} at position {position}"
    return InputError(f"{got}; expected integers in [{low}, {size})")
