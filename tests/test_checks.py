"""Checks of arguments: one table of what each function makes of a value, or of the message with which it refuses it."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from seamfast import checks
from seamfast.errors import ConfigError, DTypeError, InputError, ShapeError

CPU = torch.device("cpu")
INTEGERS: list[tuple[Any, int]] = [
    (3, 3), (-3, -3), (np.int8(3), 3), (np.uint64(2**63), 2**63), (np.array(3), 3), (torch.tensor(3), 3),
    (torch.tensor([3]), 3), (2**80, 2**80),
]  # fmt: skip
NO_INTEGERS = [
    True, np.bool_(True), torch.tensor(True), 3.0, np.float64(3), torch.tensor(3.0), "3", None, [3],
    torch.tensor([3, 4]), 3j, math.nan,
]  # fmt: skip
NO_NUMBERS = [
    True, np.bool_(True), "3", b"3", None, [3], 3j, math.nan, math.inf, np.float32("-inf"), 10**400,
    torch.tensor([3.0, 4.0]), torch.tensor(math.nan),
]  # fmt: skip

RESULTS: list[tuple[Any, tuple[Any, ...], Any]] = [
    *((checks.integer_or_none, (value,), wanted) for value, wanted in INTEGERS),
    *((checks.integer_or_none, (value,), None) for value in NO_INTEGERS),
    *((checks.number_or_none, (value,), wanted) for value, wanted in INTEGERS),
    *((checks.number_or_none, (value,), None) for value in NO_NUMBERS),
    (checks.number_or_none, (Fraction(1, 4),), 0.25),
    (checks.number_or_none, (torch.tensor([0.25], dtype=torch.bfloat16),), 0.25),
    *((checks.as_integer, ("pad", value, 3, 5), int(value)) for value in (3, 5, np.int64(4), torch.tensor(4))),
    *((checks.as_count, ("steps", value), int(value)) for value in (1, 2**70, np.uint8(3))),
    *((checks.as_seed, (value,), int(value)) for value in (0, 2**63 - 1, np.int64(5), torch.tensor(6))),
    (checks.as_seed, (2**64 - 1, 64), 2**64 - 1),
    *((checks.as_threads, (value,), value) for value in (None, 1, checks.MAX_THREADS, np.int32(2))),
    *((checks.as_level, (value,), float(value)) for value in (0.95, np.float32(0.5), 1e-300)),
    *((checks.as_rate, ("rate", value), value) for value in (0, 1, 0.5, -0.0)),
    *((checks.check_time_budget, (value,), None) for value in (None, 1, 0.1, 1e300)),
    *((checks.check_flag, ("flip", value), None) for value in (True, False)),
    *(
        (checks.check_declared, ("x", declared, value), None)
        for declared, value in (
            ("int", 2**70), ("float", 1), ("float", -1e9), ("bool", False), ("str", ""), ("float | None", None),
            ("float | None", 0.5), ("tuple[float, ...]", ()), ("tuple[float, ...]", (1, 0.5)),
            ("tuple[int, ...]", (1,)),
        )
    ),
    (checks.short, ("x" * 78,), repr("x" * 78)),
    (checks.short, ("x" * 79,), "'" + "x" * 76 + "..."),
    *((checks.check_name, (name,), None) for name in ("a", " ", "x" * checks.MAX_NAME, "ключ")),
    (checks.dtype_name, (torch.bfloat16,), "bfloat16"),
]  # fmt: skip

DECLARED: list[tuple[str, Any]] = [
    ("int", True), ("int", 1.0), ("int", None), ("int", "1"), ("int", np.int64(1)), ("float", True), ("float", "0.1"),
    ("float", math.nan), ("float", -math.inf), ("bool", 1), ("bool", None), ("str", 1), ("float | None", "x"),
    ("tuple[float, ...]", (1.0, "x")), ("tuple[float, ...]", (True,)), ("tuple[float, ...]", (math.nan,)),
    ("tuple[int, ...]", (1.5,)),
]  # fmt: skip

ERRORS: list[tuple[Any, tuple[Any, ...], type[Exception], str]] = [
    *(
        (checks.as_integer, ("pad", value, 3, 5), InputError, f"pad is {value!r}; expected an integer in [3, 5]")
        for value in (2, 6, *NO_INTEGERS)
    ),
    (
        checks.as_integer, ("pad", 6, 0, 5, " for images of 6"), InputError,
        "pad is 6; expected an integer in [0, 5] for images of 6",
    ),
    *(
        (checks.as_count, ("steps", value), InputError, f"steps is {value!r}; expected an integer of at least 1")
        for value in (0, -1, *NO_INTEGERS)
    ),
    *(
        (checks.as_seed, (value,), InputError, f"seed is {value!r}; expected an integer in [0, 2**63)")
        for value in (-1, 2**63, *NO_INTEGERS)
    ),
    (checks.as_seed, (2**64, 64), InputError, f"seed is {2**64}; expected an integer in [0, 2**64)"),
    (
        checks.as_seed, ("9" * 99,), InputError,
        f"seed is '{'9' * 76}...; expected an integer in [0, 2**63)",
    ),
    *(
        (checks.as_threads, (value,), InputError, f"threads is {value!r}; expected an integer in [1, 1024], or None")
        for value in (0, -1, 1025, True, 1.5, "2")
    ),
    *(
        (checks.as_level, (value,), InputError, f"level is {value!r}; expected a number in (0, 1)")
        for value in (0, 1, -0.1, 95, *NO_NUMBERS)
    ),
    *(
        (checks.as_rate, ("rate", value), InputError, f"rate is {value!r}; expected a number in [0, 1]")
        for value in (-1e-9, 1.5, True, "0.5", None, math.nan, [0.5])
    ),
    *(
        (
            checks.check_time_budget, (value,), InputError,
            f"time_budget_s is {value!r}; expected a number of seconds above 0, or None",
        )
        for value in (0, -1.0, math.nan, math.inf, "10", True, [1])
    ),
    *(
        (checks.check_flag, ("flip", value), InputError, f"flip is {value!r}; expected True or False")
        for value in (1, 0, "True", None, np.bool_(True))
    ),
    *(
        (checks.check_declared, ("x", declared, value), ConfigError, f"x is {value!r}; expected {declared}")
        for declared, value in DECLARED
    ),
    *(
        (checks.check_declared, ("x", "tuple[float, ...]", v), ConfigError, f"x is {v!r}; expected a tuple of numbers")
        for v in ([1.0], 1.0, "1", None)
    ),
    *(
        (checks.check_declared, ("x", "float", v), ConfigError, f"x is {v!r}; expected at most 1e+09 in size")
        for v in (1e10, -1e300, 10**400)
    ),
    *(
        (checks.check_name, (v,), InputError, f"trigger name is {v!r}; expected 1 to 128 printable characters")
        for v in ("", "a\n", "\x1b[2J", 3, None)
    ),
    (
        checks.check_name, ("x" * 129,), InputError,
        f"trigger name is '{'x' * 76}...; expected 1 to 128 printable characters",
    ),
    (checks.as_array, ([[1], [2, 3]], "mask"), ShapeError, "mask is ragged; expected an array"),
    *(
        (checks.as_array, (value, "mask"), DTypeError, f"mask has dtype {dtype}; expected numbers")
        for value, dtype in (("a", "<U1"), ([None], "object"), (1j, "complex128"))
    ),
    *(
        (checks.as_sample_ids, (value, 2, CPU), kind, message)
        for value, kind, message in (
            ([1], ShapeError, "sample_ids has shape (1,); expected (N,) = (2,)"),
            (torch.zeros(2, 1, dtype=torch.int64), ShapeError, "sample_ids has shape (2, 1); expected (N,) = (2,)"),
            ([0.0, 1.0], DTypeError, "sample_ids has dtype float64; expected an integer dtype"),
            (torch.tensor([True, False]), DTypeError, "sample_ids has dtype bool; expected an integer dtype"),
            ([3, -1], InputError, "sample_ids hold -1; expected integers from 0"),
            ("ab", DTypeError, "sample_ids has dtype <U2; expected numbers"),
        )
    ),
]  # fmt: skip


def shown(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)[:40]


@pytest.mark.parametrize(("function", "arguments", "wanted"), RESULTS, ids=shown)
def test_what_is_returned(function: Any, arguments: tuple[Any, ...], wanted: Any) -> None:
    got = function(*arguments)
    assert got == wanted
    if function is not checks.as_rate:  # which returns what it was given
        assert isinstance(got, (int, float, str, type(None)))
        assert not isinstance(got, np.generic)


@pytest.mark.parametrize(("function", "arguments", "kind", "message"), ERRORS, ids=shown)
def test_what_is_refused(function: Any, arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as caught:
        function(*arguments)
    assert caught.type is kind


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1, 2]], "int64"), (np.float16([[1, 2]]), "float16"), (torch.tensor([[1, 2]], dtype=torch.uint8), "uint8"),
        (torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True), "float64"), ([[True, True]], "bool"),
    ],
)  # fmt: skip
def test_numbers_as_an_array(value: Any, dtype: str) -> None:
    array = checks.as_array(value, "mask")
    assert (array.dtype, array.shape) == (np.dtype(dtype), (1, 2))
    assert array.astype(int).tolist() in ([[1, 2]], [[1, 1]])


def test_an_immutable_array_is_a_copy_whose_write_flag_stays_off() -> None:
    array = np.arange(6, dtype=np.int16)[::-2].reshape(3, 1)
    copy = checks.immutable(array)
    array[:] = 0
    assert (copy.tolist(), copy.dtype) == ([[5], [3], [1]], np.int16)
    with pytest.raises(ValueError, match="WRITEABLE"):
        copy.flags.writeable = True


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, [0, 1, 2]),
        ([5, 0, 5], [5, 0, 5]),
        (np.array([7, 8, 9], np.uint8), [7, 8, 9]),
        (torch.tensor([1, 2, 3], dtype=torch.int32), [1, 2, 3]),
    ],
)
def test_sample_ids(given: Any, wanted: list[int]) -> None:
    ids = checks.as_sample_ids(given, 3, CPU)
    assert (ids.tolist(), ids.dtype, ids.device) == (wanted, torch.int64, CPU)
    assert checks.as_sample_ids([], 0, CPU).tolist() == []
