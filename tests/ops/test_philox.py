"""Philox4x32-10: known answers, and the same words from C++ and PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.ops.philox import STREAM_AUGMENT, STREAM_LABELS, as_seed, as_when, below, draw, philox4x32

WORD = st.integers(0, 2**32 - 1)

# Source: Random123 (Salmon et al., D. E. Shaw Research), kat_vectors, the lines of philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (  # the digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def torch_words(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return tuple(int(word) for word in philox4x32((c0, c1, c2, c3), (key[0], key[1])))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_torch_gives_the_known_answers(counter: Any, key: Any, words: Any) -> None:
    assert torch_words(counter, key) == words


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_cpp_gives_the_known_answers(native: Any, counter: Any, key: Any, words: Any) -> None:
    assert tuple(native.philox4x32(counter, key)) == words


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_cpp_and_torch_give_the_same_words(native: Any, counter: Any, key: Any) -> None:
    assert tuple(native.philox4x32(counter, key)) == torch_words(counter, key)


def test_streams_have_the_same_numbers_in_cpp_and_differ(native: Any) -> None:
    assert (native.STREAM_AUGMENT, native.STREAM_LABELS) == (STREAM_AUGMENT, STREAM_LABELS)
    assert STREAM_AUGMENT != STREAM_LABELS


def test_draw_splits_seed_and_sample_id_into_words() -> None:
    sample, seed = (7 << 32) | 5, (3 << 32) | 11
    words = draw(seed, torch.tensor([sample]), 13, STREAM_LABELS)
    assert tuple(int(word) for word in words) == torch_words((5, 7, 13, STREAM_LABELS), (11, 3))


def test_draw_takes_its_step_from_a_tensor_modulo_32_bits() -> None:
    ids = torch.arange(5)
    expected = draw(1, ids, 9, STREAM_LABELS)
    for step in (9, 9 + 2**32, 9 - 2**32):
        for got, want in zip(draw(1, ids, torch.tensor(step), STREAM_LABELS), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("word", "bound", "value"),
    [
        (0, 9, 0),
        (2**32 - 1, 9, 8),  # the largest word stays below the bound
        (2**31, 2, 1),  # the halves meet in the middle
        (2**31 - 1, 2, 0),
        (2**32 - 1, 2**31, 2**31 - 1),  # the largest bound: the product still fits int64
        (12345, 1, 0),
    ],
)
def test_below_is_multiply_high(word: int, bound: int, value: int) -> None:
    assert int(below(torch.tensor([word]), bound)) == value


def test_invalid_seeds_and_steps_raise() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(
        InputError, match=r"^seed is -1; expected an integer in \[0, 18446744073709551615\] or an int64 0-d tensor$"
    ):
        as_seed(-1, cpu)
    with pytest.raises(InputError, match=r"^seed is True; expected an integer"):
        as_seed(True, cpu)
    message = r"^step is 4294967296; expected an integer in \[0, 4294967295\] or an int64 0-d tensor$"
    with pytest.raises(InputError, match=message):
        as_when("step", 2**32, cpu)
    with pytest.raises(DTypeError, match=r"^step has dtype int32; expected int64$"):
        as_when("step", torch.tensor(0, dtype=torch.int32), cpu)
    with pytest.raises(ShapeError, match=r"^step has shape \(1,\); expected \(\) for a counter on the device$"):
        as_when("step", torch.tensor([0]), cpu)
    with pytest.raises(InputError, match=r"^step is on meta; expected cpu$"):
        as_when("step", torch.tensor(0, device="meta"), cpu)
