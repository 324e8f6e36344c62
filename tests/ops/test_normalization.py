"""``normalization``: its accuracy, and which arguments it rejects."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seamfast.errors import InputError
from seamfast.ops.normalization import DTYPES, normalization

CPU = torch.device("cpu")


@given(mean=st.floats(-1, 2), std=st.floats(1e-3, 10))
def test_float32_is_the_true_value_rounded_once(mean: float, std: float) -> None:
    table = normalization(mean, std, 1).table(torch.float32, CPU)[0].numpy()
    scale = max(1.0, abs(mean)) / std  # float64 rounds the terms, so the slack is in units of the larger one
    for pixel in range(256):
        exact = (Fraction(pixel, 255) - Fraction(mean)) / Fraction(std)
        half_step = Fraction(float(np.spacing(np.abs(table[pixel])))) / 2
        assert abs(Fraction(float(table[pixel])) - exact) <= half_step + Fraction(scale) / 2**50


def test_the_default_is_pixel_over_255_to_the_bit() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalization(0.0, 1.0, 1).table(torch.float32, CPU)[0], pixels.float() / 255)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_16_bits_are_float32_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    norm = normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)
    assert torch.equal(norm.table(dtype, CPU), norm.table(torch.float32, CPU).to(dtype))


def test_one_number_is_used_for_all_channels() -> None:
    for mean, std in ((0.5, 0.25), ([0.5], (0.25,)), (np.float32(0.5), np.array([0.25])), (torch.tensor(0.5), 0.25)):
        assert normalization(mean, std, 3) == normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 3)  # type: ignore[arg-type]


def test_a_table_made_in_inference_mode_is_usable_outside() -> None:
    with torch.inference_mode():
        table = normalization(0.123, 0.456, 1).table(torch.float32, CPU)
    assert not table.is_inference()


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.0, 0.0), 1.0, "mean has 2 numbers; expected 1 or one for each of 3 channels"),
        (0.0, (), "std has 0 numbers; expected 1 or one for each of 3 channels"),
        (float("nan"), 1.0, "mean is (nan,); expected finite numbers"),
        (0.0, 0.0, "std is (0.0,); expected finite numbers above 0"),
        (0.0, (1.0, -1.0, 1.0), "std is (1.0, -1.0, 1.0); expected finite numbers above 0"),
        (0.0, 1e-39, "std is (1e-39,) with mean (0.0,); the normalized pixels leave the range of float32"),
        (0.0, 1e-310, "std is (1e-310,) with mean (0.0,); the normalized pixels leave the range of float32"),
    ],
)
def test_invalid_arguments_raise(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        normalization(mean, std, 3)
    assert str(caught.value) == message
