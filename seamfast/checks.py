"""Checks of arguments: return the value in one form, or raise with the received and the expected value."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seamfast.errors import ConfigError, DTypeError, InputError, ShapeError

Array = npt.NDArray[Any]

MAX_NAME = 128
MAX_THREADS = 1024
LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
"""The packages that Lightning is installed as."""

_LARGEST = 1e9  # float in a config: products of several must stay within float32


# ---- Numbers ----


def integer_or_none(value: Any) -> int | None:
    """``value`` as an int if it is an integer of any kind (no bool), else ``None``."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):  # torch: only one-element integer tensors have an index
        return None


def number_or_none(value: Any) -> float | None:
    """``value`` as a float if it is one finite real number (no bool, no string), else ``None``."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_integer(name: str, value: object, low: int, high: int, condition: str = "") -> int:
    """``value`` as an int in ``[low, high]``: ``pad is 4; expected an integer in [0, 3]``."""
    if type(value) is int and low <= value <= high:
        return value
    number = integer_or_none(value)
    if number is None or not low <= number <= high:
        raise InputError(f"{name} is {value!r}; expected an integer in [{low}, {high}]{condition}")
    return number


def as_count(name: str, value: Any) -> int:
    """``value`` as an int of at least 1: ``batch_size is 0; expected an integer of at least 1``."""
    number = integer_or_none(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {value!r}; expected an integer of at least 1")
    return number


def as_seed(seed: Any, n_bits: int = 63) -> int:
    """``seed`` as an int in ``[0, 2**n_bits)``; torch's generators take 63 bits, Philox takes 64."""
    number = integer_or_none(seed)
    if number is None or not 0 <= number < 2**n_bits:
        raise InputError(f"seed is {short(seed)}; expected an integer in [0, 2**{n_bits})")
    return number


def as_threads(threads: Any) -> int | None:
    """``threads`` as an int in ``[1, 1024]``, or ``None``."""
    return None if threads is None else as_integer("threads", threads, 1, MAX_THREADS, ", or None")


def as_level(level: Any) -> float:
    """``level`` of confidence as a float in (0, 1)."""
    number = number_or_none(level)
    if number is None or not 0 < number < 1:
        raise InputError(f"level is {level!r}; expected a number in (0, 1)")
    return number


def as_rate(name: str, value: Any) -> float:
    """``value`` as a number in [0, 1]: ``rate is 1.5; expected a number in [0, 1]``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; expected a number in [0, 1]")
    return value


def as_positive(name: str, value: Any) -> float:
    """``value`` as a float above 0: ``rate is 0; expected a number above 0``."""
    number = number_or_none(value)
    if number is None or number <= 0:
        raise InputError(f"{name} is {value!r}; expected a number above 0")
    return number


def check_time_budget(seconds: Any) -> None:
    """Raise unless ``seconds`` is a finite number above 0, or ``None``."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds < math.inf):
        raise InputError(f"time_budget_s is {seconds!r}; expected a number of seconds above 0, or None")


def check_flag(name: str, value: object) -> None:
    """Raise unless ``value`` is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; expected True or False")


def check_declared(name: str, declared: str, value: Any) -> None:
    """Raise ``ConfigError`` unless ``value`` has the declared type.

    ``declared`` is the annotation's text: ``int``, ``float``, ``bool``, ``str`` or ``tuple[float, ...]``, each with an
    optional ``| None``. Configs may come from files, so ``"0.1"`` and ``true`` are refused for ``0.1`` and ``1``.
    """
    kind = declared.removesuffix(" | None")
    if value is None and kind != declared:
        return
    is_tuple = kind.startswith("tuple")
    if is_tuple and not isinstance(value, tuple):
        raise ConfigError(f"{name} is {value!r}; expected a tuple of numbers")
    inner = kind.removeprefix("tuple[").split(",")[0]
    accepted: tuple[type, ...] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[inner]
    for item in value if is_tuple else (value,):
        wrong_bool = isinstance(item, bool) != (inner == "bool")
        if wrong_bool or not isinstance(item, accepted) or (isinstance(item, float) and not abs(item) < math.inf):
            raise ConfigError(f"{name} is {value!r}; expected {declared}")
        if inner == "float" and isinstance(item, (int, float)) and abs(item) > _LARGEST:
            raise ConfigError(f"{name} is {value!r}; expected at most {_LARGEST:g} in size")


# ---- Text ----


def short(value: object) -> str:
    """``repr(value)``, cut to 80 characters, as the value may be from a file."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_name(name: Any) -> None:
    """Raise unless ``name`` is a valid trigger name."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InputError(f"trigger name is {short(name)}; expected 1 to {MAX_NAME} printable characters")


# ---- Arrays and tensors ----


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def as_array(value: Any, what: str) -> Array:
    """``value`` as a NumPy array of bools, integers or floats."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} is ragged; expected an array") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{what} has dtype {array.dtype}; expected numbers")
    return array


def immutable(array: Array) -> Array:
    """A copy backed by ``bytes``, whose write flag cannot be set, unlike that of an array which owns its memory."""
    return np.frombuffer(array.tobytes(), dtype=array.dtype).reshape(array.shape)


def as_sample_ids(sample_ids: Tensor | Sequence[int] | None, n: int, device: torch.device) -> Tensor:
    """``(n,)`` int64 on ``device``; ``None`` is ``0 .. n-1``. Values are checked on the CPU only, to avoid a sync."""
    if sample_ids is None:
        return torch.arange(n, device=device)
    ids = sample_ids.detach() if isinstance(sample_ids, Tensor) else torch.tensor(as_array(sample_ids, "sample_ids"))
    if ids.shape != (n,):
        raise ShapeError(f"sample_ids has shape {tuple(ids.shape)}; expected (N,) = ({n},)")
    if n and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise DTypeError(f"sample_ids has dtype {dtype_name(ids.dtype)}; expected an integer dtype")
    ids = ids.to(torch.int64)
    if n and ids.device.type == "cpu" and int(ids.min()) < 0:
        raise InputError(f"sample_ids hold {int(ids.min())}; expected integers from 0")
    return ids.to(device)


def check_tensor(name: str, value: object, dtype: torch.dtype) -> None:
    """Raise ``DTypeError`` unless ``value`` is a tensor of ``dtype``."""
    if not isinstance(value, Tensor):
        raise DTypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor")
    if value.dtype != dtype:
        raise DTypeError(f"{name} has dtype {dtype_name(value.dtype)}; expected {dtype_name(dtype)}")


def check_vector(
    name: str, value: Tensor, dtype: torch.dtype, length: int | None = None, device: torch.device | None = None
) -> None:
    """Raise unless ``value`` is a vector of ``dtype`` and, where given, of ``length`` and on ``device``."""
    if type(value) is Tensor and value.dtype == dtype and value.shape == (length,) and value.device == device:
        return
    check_tensor(name, value, dtype)
    if value.ndim != 1 or (length is not None and len(value) != length):
        expected = "(N,)" if length is None else f"(N,) = ({length},)"
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected {expected}")
    if device is not None and value.device != device:
        raise InputError(f"{name} is on {value.device}; expected {device}")


def check_in_range(name: str, values: Tensor, size: int, low: int = 0) -> None:
    """Raise ``InputError`` unless all ``values`` are in ``[low, size)``. Synchronizes with their device."""
    wrong = (values < low) | (values >= size)
    if wrong.any():
        raise out_of_range(name, values, int(wrong.nonzero()[0]), size, low)


def out_of_range(name: str, values: Tensor, position: int, size: int, low: int = 0) -> InputError:
    """The error for ``values[position]`` outside ``[low, size)``."""
    value = int(values[position])
    return InputError(f"{name} hold {value} at position {position}; expected integers in [{low}, {size})")


# ---- Objects of other libraries ----


def base_of(instance: Any, name: str, packages: tuple[str, ...]) -> type | None:
    """The class of that name, from one of these packages, that ``instance`` is of; ``None`` if it is of none."""
    bases = type(instance).__mro__
    return next((b for b in bases if b.__name__ == name and b.__module__.split(".")[0] in packages), None)
