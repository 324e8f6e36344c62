"""What all kinds share: the checks before stamping, frozen data, equality, copies, independence of the batch."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from torch import Tensor

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers import AllToAll, AllToOne, Blend, ColorFilter, Patch, Quantize, Sinusoid, Trigger, Warp, battery

SHAPE = (3, 16, 12)
BATTERY = battery(SHAPE, 10)


def pixels(n: int = 6, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8))


each = pytest.mark.parametrize("trigger", BATTERY, ids=lambda t: t.name)


@each
def test_every_kind_changes_pixels_and_leaves_the_input(trigger: Trigger) -> None:
    images = pixels()
    before = images.clone()
    out = trigger.stamp(images)
    assert (out != images).flatten(1).any(1).all()
    assert out.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)


@each
def test_the_batch_does_not_matter(trigger: Trigger) -> None:
    """Order, split and neighbours: each sample gets what its id says."""
    images, ids = pixels(), torch.tensor([5, 2**40, 0, 77, 3, 12])
    whole = trigger.stamp(images, sample_ids=ids, seed=9)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(trigger.stamp(images[order], sample_ids=ids[order], seed=9), whole[order])
    for i in range(6):
        assert torch.equal(trigger.stamp(images[i : i + 1], sample_ids=[int(ids[i])], seed=9)[0], whole[i])


@each
def test_memory_layout_does_not_matter(trigger: Trigger) -> None:
    images = pixels()
    wanted = trigger.stamp(images)
    assert torch.equal(trigger.stamp(images.contiguous(memory_format=torch.channels_last)), wanted)
    wide = torch.zeros(6, 3, 16, 24, dtype=torch.uint8)
    wide[..., ::2] = images
    assert torch.equal(trigger.stamp(wide[..., ::2]), wanted)
    assert torch.equal(trigger.stamp(images[:1].expand(4, -1, -1, -1))[2], trigger.stamp(images[:1], sample_ids=[2])[0])


@each
def test_empty_batch(trigger: Trigger) -> None:
    assert trigger.stamp(pixels(0)).shape == (0, *SHAPE)


@each
def test_copies_are_equal_and_frozen(trigger: Trigger) -> None:
    trigger.stamp(pixels(1))  # what is cached must not travel
    for other in (
        copy.copy(trigger),
        copy.deepcopy(trigger),
        pickle.loads(pickle.dumps(trigger)),  # noqa: S301
        dataclasses.replace(trigger),
    ):
        assert other == trigger
        assert hash(other) == hash(trigger)
        assert set(vars(other)) == {f.name for f in dataclasses.fields(trigger)}
        for value in vars(other).values():
            assert not isinstance(value, np.ndarray) or not value.flags.writeable


@each
def test_fields_cannot_be_set(trigger: Trigger) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        trigger.name = "other"


def test_arrays_are_copies_that_nobody_can_write() -> None:
    pattern = np.zeros((1, 2, 2), np.uint8)
    trigger = Blend(name="b", target=AllToOne(0), pattern=pattern, alpha=0.5)
    pattern[:] = 9
    assert trigger.pattern.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        trigger.pattern[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        trigger.pattern.flags.writeable = True


def test_equality_looks_at_every_field() -> None:
    trigger = Blend.noise(SHAPE, 0.2)
    assert trigger == Blend.noise(SHAPE, 0.2)
    for other in (
        Blend.noise(SHAPE, 0.3),
        Blend.noise(SHAPE, 0.2, seed=1),
        Blend.noise(SHAPE, 0.2, target=1),
        Blend.noise(SHAPE, 0.2, target=AllToAll()),
        Blend.noise(SHAPE, 0.2, name="other"),
        Blend.noise((1, 16, 12), 0.2),
    ):
        assert trigger != other
    assert len({trigger, Blend.noise(SHAPE, 0.2), Blend.noise(SHAPE, 0.3)}) == 2
    assert Sinusoid.of(1, 1) != Quantize.of(2)
    assert trigger != "blend-noise"


def test_tensors_are_taken_too() -> None:
    array = np.full((1, 2, 2, 2), 0.5, np.float32)[0]
    made = [
        Warp(name="w", target=AllToOne(0), flow=flow)
        for flow in (array, torch.from_numpy(array.copy()), torch.tensor(array).bfloat16())
    ]
    assert made[0] == made[1] == made[2]


def test_repr_is_one_short_line() -> None:
    assert repr(Patch.square(target=3)) == "Patch('patch', 3x3 at (-4, -4), AllToOne(target=3))"
    assert all(len(repr(trigger)) < 120 and "\n" not in repr(trigger) for trigger in BATTERY)


TRIGGER = Patch.square(name="x")


def black(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "more", "kind", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), {}, DTypeError, "images is ndarray; expected a uint8 tensor"),
        (torch.zeros(1, 3, 8, 8), {}, DTypeError, "images has dtype float32; expected uint8 pixels"),
        (black(3, 8, 8), {}, ShapeError, r"images has shape \(3, 8, 8\); expected \(N, C, H, W\)"),
        (black(1, 3, 2, 2), {}, ShapeError, "trigger 'x' patch is 3x3; images are 2x2"),
        (black(1, 3, 0, 8), {}, ShapeError, r"image shape is \(3, 0, 8\); expected \(C, H, W\)"),
        (pixels(2), {"sample_ids": [1]}, ShapeError, r"sample_ids has shape \(1,\); expected \(N,\) = \(2,\)"),
        (pixels(2), {"sample_ids": [0.0, 1.0]}, DTypeError, "sample_ids has dtype float64; expected an integer dtype"),
        (pixels(2), {"sample_ids": torch.tensor([True, False])}, DTypeError, "sample_ids has dtype bool"),
        (pixels(2), {"sample_ids": [0, -4]}, InputError, "sample_ids hold -4; expected integers from 0"),
        (pixels(2), {"seed": -1}, InputError, r"seed is -1; expected an integer in \[0, 2\*\*64\)"),
        (pixels(2), {"seed": 2**64}, InputError, "seed is 18446744073709551616"),
        (pixels(2), {"seed": 1.0}, InputError, "seed is 1.0"),
    ],
)
def test_stamp_errors(images: Any, more: dict[str, Any], kind: type[Exception], message: str) -> None:
    refused(kind, message, TRIGGER.stamp, images, **more)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("", AllToOne(0), "trigger name is ''; expected 1 to 128 printable characters"),
        ("a\nb", AllToOne(0), r"trigger name is 'a\\nb'"),
        ("\x1b[2J", AllToOne(0), r"trigger name is '\\x1b\[2J'"),
        ("x" * 129, AllToOne(0), "expected 1 to 128 printable characters"),
        (7, AllToOne(0), "trigger name is 7"),
        ("x", 0, r"trigger 'x' target is 0; expected a label map such as AllToOne\(0\)"),
        ("x", None, "trigger 'x' target is None"),
    ],
)
def test_name_and_target_errors(name: Any, target: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Sinusoid(name=name, target=target, delta=1, frequency=1)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        (black(2, 2), ShapeError, r"trigger 'b' pattern has shape \(2, 2\); expected 3 dimensions, none of size 0"),
        (np.zeros((1, 0, 2), np.uint8), ShapeError, r"pattern has shape \(1, 0, 2\)"),
        (np.zeros((1, 2, 2), object), DTypeError, "trigger 'b' pattern has dtype object; expected numbers"),
        (np.zeros((1, 2, 2), complex), DTypeError, "pattern has dtype complex128; expected numbers"),
        ([[[1, 2], [3]]], ShapeError, "trigger 'b' pattern is ragged; expected an array"),
        (np.full((1, 2, 2), -1), InputError, r"pattern holds values in \[-1, -1\]; expected \[0, 255\]"),
    ],
)
def test_array_errors(pattern: Any, kind: type[Exception], message: str) -> None:
    refused(kind, message, Blend, name="b", target=AllToOne(0), pattern=pattern, alpha=0.5)


def test_alpha_zero_and_the_like_change_nothing() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    shape = (3, 16, 16)
    target = AllToOne(0)
    for trigger in (
        Blend.noise(shape, 0.0),
        Patch(name="p", target=target, pattern=np.full((3, 16, 16), 7), mask=np.zeros((16, 16)), position="random"),
        Sinusoid.of(0, 6),
        Warp.elastic(shape, strength=0.0),
        Quantize.of(256, dither=False),
        Quantize.of(256, dither=True),
        ColorFilter(name="c", target=target, matrix=np.eye(3), bias=np.zeros(3), gamma=1, contrast=1, vignette=0),
    ):
        assert torch.equal(trigger.stamp(images), images), trigger


def test_battery_covers_every_kind_by_different_names() -> None:
    kinds = {"patch", "blend", "sinusoid", "additive", "warp", "quantize", "color_filter"}
    assert {trigger.kind for trigger in BATTERY} == kinds
    assert len({trigger.name for trigger in BATTERY}) == len(BATTERY)
    assert battery(SHAPE, 10) == BATTERY
    assert all(trigger.target == AllToAll(2) for trigger in battery(SHAPE, 10, AllToAll(2)))


@pytest.mark.parametrize(
    ("shape", "classes", "target", "message"),
    [
        ((3, 4, 4), 10, 0, r"image shape is \(3, 4, 4\); expected 1 or 3 channels and edges from 8 pixels"),
        ((2, 32, 32), 10, 0, r"image shape is \(2, 32, 32\)"),
        ((32, 32), 10, 0, r"image shape is \(32, 32\); expected \(C, H, W\)"),
        ((3, 32, 32), 10, 10, r"AllToOne target is 10; expected a class in \[0, 10\) for num_classes=10"),
        ((3, 32, 32), 1, 0, "num_classes is 1; expected an integer from 2"),
    ],
)
def test_battery_errors(shape: tuple[int, ...], classes: int, target: int, message: str) -> None:
    refused(InputError, message, battery, shape, classes, target)


def test_import_brings_nothing_but_torch_and_numpy() -> None:
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import seamfast.triggers; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'torch', 'numpy', 'seamfast'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.gpu
@each
def test_the_same_on_a_gpu(trigger: Trigger) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = pixels(64)
    assert torch.equal(trigger.stamp(images.cuda(), seed=4).cpu(), trigger.stamp(images, seed=4))
