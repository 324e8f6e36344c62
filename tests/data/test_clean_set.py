from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from refusals import raises
from torch import Tensor

from seamfast import CleanSet
from seamfast.data import PoisonedSet
from seamfast.errors import DTypeError, InputError, ShapeError

LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
N = len(LABELS)
RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (N, 8, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (N, 8, 7, 3), dtype=np.uint8)
NCHW = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (COLOUR, NCHW),
        (COLOUR.transpose(0, 3, 1, 2), NCHW),
        (torch.from_numpy(COLOUR), NCHW),
        (NCHW, NCHW),
        (GREY, torch.from_numpy(GREY)[:, None]),
        (GREY[:, None], torch.from_numpy(GREY)[:, None]),
        (GREY[..., None], torch.from_numpy(GREY)[:, None]),
        (torch.from_numpy(GREY).transpose(1, 2), torch.from_numpy(GREY).transpose(1, 2)[:, None]),
        (COLOUR[:, :, :3], torch.from_numpy(COLOUR[:, :, :3]).permute(0, 3, 1, 2)),
    ],
    ids=["NHWC", "NCHW-view", "NHWC-tensor", "NCHW-tensor-view", "NHW", "N1HW", "NHW1", "NHW-tensor-view", "NH33"],
)
def test_uint8_images_in_every_layout_become_contiguous_nchw(inputs: Any, wanted: Tensor) -> None:
    data = CleanSet(inputs, LABELS)
    assert isinstance(data.inputs, Tensor)
    assert data.is_pixels
    assert torch.equal(data.inputs, wanted)
    assert data.inputs.is_contiguous()
    assert data.image_shape == tuple(wanted.shape[1:])
    assert (data.mean, data.std) == ((0.0,), (1.0,))
    assert len(data) == N
    assert data.n_labelled_classes == 3


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "<f8", ">f8", "g"])
def test_floats_are_held_as_the_model_takes_them(dtype: str) -> None:
    values = np.linspace(-2, 2, N * 5).reshape(N, 5).astype(dtype)
    data = CleanSet(values, LABELS)
    assert isinstance(data.inputs, Tensor)
    assert data.inputs.dtype == (torch.float16 if dtype == "f2" else torch.float32)
    assert torch.allclose(data.inputs.double(), torch.from_numpy(values.astype("f8")), atol=1e-7)
    assert not data.is_pixels
    assert (data.mean, data.std) == (None, None)


def test_mappings_keep_their_names_and_integer_dtypes() -> None:
    ids = RNG.integers(0, 99, (N, 4))
    data = CleanSet({"input_ids": ids, "weight": np.ones((N, 2))}, LABELS)
    assert isinstance(data.inputs, dict)
    assert {k: v.dtype for k, v in data.inputs.items()} == {"input_ids": torch.int64, "weight": torch.float32}
    assert data.inputs["input_ids"].tolist() == ids.tolist()
    assert not data.is_pixels
    assert repr(data) == "CleanSet(input_ids (6, 4) int64, weight (6, 2) float32, 3 classes present)"


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<u4", ">i8", "<u8"])
@pytest.mark.parametrize("form", ["array", "read-only", "reversed", "list", "scalars"])
def test_labels_of_any_integer_kind(dtype: str, form: str) -> None:
    array = LABELS.numpy().astype(dtype)
    if form == "read-only":
        array.flags.writeable = False
    given: Any = {
        "reversed": array[::-1].copy()[::-1],
        "list": array.tolist(),
        "scalars": [torch.tensor(int(v)) for v in array],
    }.get(form, array)
    data = CleanSet(GREY, given)
    assert torch.equal(data.labels, LABELS)
    assert data.labels.dtype == torch.int64


def test_read_only_arrays_are_copied_unwarned_and_never_written_through() -> None:
    images, labels = GREY.copy(), LABELS.numpy().copy()
    images.flags.writeable = labels.flags.writeable = False
    data = CleanSet(images, labels)
    assert isinstance(data.inputs, Tensor)
    data.inputs.fill_(0)
    data.labels.fill_(0)
    assert np.array_equal(images, GREY)
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("kind", "message", "inputs", "labels"),
    [
        (ShapeError, "labels has shape (6, 1); expected (N,) = (6,)", GREY, LABELS[:, None]),
        (ShapeError, "labels has shape (); expected (N,) = (1,)", GREY, 3),
        (ShapeError, "labels has rows of different lengths; expected one array", GREY, [[0], [1, 2]]),
        (DTypeError, "labels has dtype float32; expected an integer dtype", GREY, LABELS.float()),
        (DTypeError, "labels has dtype bool; expected an integer dtype", GREY, LABELS > 0),
        (DTypeError, "labels has dtype <U3; expected numbers", GREY, ["cat"] * N),
        (DTypeError, "labels has dtype object; expected numbers", GREY, None),
        (InputError, "labels hold -1; expected integers from 0", GREY, LABELS - 1),
        (
            ShapeError,
            "inputs has shape (5, 1, 8, 7) and labels (6,); expected the same number of samples in both",
            GREY[:5],
            LABELS,
        ),
        (
            ShapeError,
            "mask has shape () and labels (6,); expected the same number of samples in both",
            {"ids": np.zeros((N, 2)), "mask": np.float32(1)},
            LABELS,
        ),
        (
            ShapeError,
            "uint8 images have shape (6, 4, 8, 7); expected (N, C, H, W), (N, H, W, C) or (N, H, W) with 1 or 3 "
            "channels",
            np.zeros((N, 4, 8, 7), np.uint8),
            LABELS,
        ),
        (DTypeError, "inputs has dtype <U3; expected numbers", "abc", LABELS),
        (DTypeError, "inputs has dtype object; expected numbers", None, LABELS),
        (DTypeError, "inputs has dtype torch.complex64; expected real numbers", torch.zeros(N, 2) + 0j, LABELS),
        (DTypeError, "inputs has dtype complex128; expected numbers", np.zeros((N, 2)) + 0j, LABELS),
        (InputError, "inputs is an empty mapping; expected at least one named tensor", {}, LABELS),
    ],
)
def test_what_cannot_be_used_is_named(kind: type[Exception], message: str, inputs: Any, labels: Any) -> None:
    with raises(kind, message):
        CleanSet(inputs, labels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_samples_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    values = torch.zeros(N, 2, 3, dtype=dtype)
    CleanSet(values, LABELS)
    values[4, 1, 2] = bad
    with raises(InputError, "inputs holds NaN or Inf, first in sample 4; expected finite numbers"):
        CleanSet(values, LABELS)
    with raises(InputError, "x holds NaN or Inf, first in sample 4; expected finite numbers"):
        CleanSet({"x": values}, LABELS)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("got mean=0.5 and std=None; expected both or neither", {"mean": 0.5}),
        ("got mean=None and std=1; expected both or neither", {"std": 1}),
        ("mean has 2 numbers; expected 1 or one for each of 3 channels", {"mean": (0, 0), "std": 1}),
        ("std has 4 numbers; expected 1 or one for each of 3 channels", {"mean": 0, "std": (1, 1, 1, 1)}),
        ("mean is (nan,); expected finite numbers", {"mean": float("nan"), "std": 1}),
        ("std is (1.0, 0.0, 1.0); expected numbers above 0", {"mean": 0, "std": (1, 0, 1)}),
        ("std is (-1.0,); expected numbers above 0", {"mean": 0, "std": -1}),
        ("labels hold 2; expected integers in [0, 2) for num_classes=2", {"num_classes": 2}),
        ("class_names has 2 names; expected num_classes=3", {"num_classes": 3, "class_names": "ab"}),
        ("class_names has 2 names; expected one for each label up to 2", {"class_names": "ab"}),
    ],
)
def test_options_that_do_not_fit_are_named(message: str, options: dict[str, Any]) -> None:
    with raises(InputError, message):
        CleanSet(COLOUR, LABELS, **options)


def test_normalization_needs_images() -> None:
    for inputs in (torch.zeros(N, 5), {"x": torch.zeros(N, 3, 8, 8)}):
        with raises(InputError, "mean and std need images of shape (N, C, H, W)"):
            CleanSet(inputs, LABELS, mean=0, std=1)


def test_normalize_is_its_formula() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    data = CleanSet(COLOUR, LABELS, mean=mean, std=std)
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    wanted = (NCHW.double() / 255 - m) / s
    got = data.normalize(NCHW)
    assert got.dtype == torch.float32
    # Exact but for the last rounding, and for products of which one rounding is left over.
    assert (got.double() - wanted).abs().max() < 2 * torch.finfo(torch.float32).eps
    assert torch.equal(data.normalize(NCHW, torch.bfloat16), got.to(torch.bfloat16))
    assert torch.equal(CleanSet(COLOUR, LABELS).normalize(NCHW), NCHW.float() / 255)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 1.0), (0.5, 0.5), ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)), ((0.0, 120.0, -3.0), (1.0, 58.4, 7.0))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_come_back_from_floats(mean: Any, std: Any, dtype: torch.dtype) -> None:
    """All 256 values in every channel."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    m, s = (torch.tensor(v, dtype=dtype).view(1, -1, 1, 1) for v in (mean, std))
    floats = (images.to(dtype) / 255 - m) / s
    data = CleanSet(floats, [0, 1], mean=mean, std=std)
    pixels = data.pixels(torch.tensor([1, 0]))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, images)


def test_pixels_that_floats_cannot_show_are_cut_off() -> None:
    data = CleanSet(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1), [0, 1], mean=0.5, std=0.5)
    assert data.pixels(torch.arange(2)).flatten().tolist() == [0, 255]


def test_pixels_picks_in_order_and_needs_images_with_a_known_normalization() -> None:
    order = torch.tensor([5, 0, 0, 3])
    assert torch.equal(CleanSet(COLOUR, LABELS).pixels(order), NCHW[order])
    with raises(
        InputError,
        "triggers are stamped in pixel space, before normalization; the inputs are floats without a known "
        "normalization: pass seamfast.CleanSet(inputs, labels, mean=..., std=...), or a "
        "loader as seamfast.data.as_clean_set(loader, mean=..., std=...)",
    ):
        CleanSet(torch.zeros(N, 3, 8, 8), LABELS).pixels(order)
    for inputs in (torch.zeros(N, 5), {"x": torch.zeros(N, 3, 8, 8)}):
        data = CleanSet(inputs, LABELS)
        with raises(InputError, f"triggers are stamped on images of shape (N, C, H, W); got {data!r}"):
            data.pixels(order)


def test_image_shape_needs_images() -> None:
    data = CleanSet(torch.zeros(N, 5), LABELS)
    with raises(ShapeError, f"{data!r} holds no images of shape (N, C, H, W)"):
        _ = data.image_shape


@pytest.mark.parametrize("indices", [[3, 1, 3], torch.tensor([3, 1, 3], dtype=torch.int32), np.array([3, 1, 3])])
def test_subset_keeps_everything_else(indices: Any) -> None:
    data = CleanSet(COLOUR, LABELS, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), num_classes=5, class_names="abcde")
    part = data.subset(indices)
    assert torch.equal(part.labels, LABELS[[3, 1, 3]])
    assert torch.equal(part.pixels(torch.arange(3)), NCHW[[3, 1, 3]])
    kept = ("mean", "std", "num_classes", "class_names")
    assert [getattr(part, k) for k in kept] == [getattr(data, k) for k in kept]
    named = CleanSet({"a": np.arange(N), "b": np.arange(N) * 2.0}, LABELS).subset(indices)
    assert isinstance(named.inputs, dict)
    assert [v.tolist() for v in named.inputs.values()] == [[3, 1, 3], [6.0, 2.0, 6.0]]
    assert len(data.subset([])) == 0


def test_subset_refuses_a_mask() -> None:
    with raises(DTypeError, "indices has dtype bool; expected an integer dtype"):
        CleanSet(COLOUR, LABELS).subset(LABELS == 2)


def test_a_part_of_a_poisoned_set_still_counts_as_poisoned() -> None:
    data = PoisonedSet(COLOUR, LABELS, poisoned=LABELS == 2, mean=0.5, std=0.2, num_classes=3)
    part = data.subset([1, 0, 3])
    assert isinstance(part, PoisonedSet)
    assert part.poisoned.tolist() == [True, False, True]
    assert (part.mean, part.std, part.num_classes) == ((0.5,), (0.2,), 3)
    assert torch.equal(part.labels, LABELS[[1, 0, 3]])
