"""The input-aware attack: a trigger for each image, made by a network that is trained together with the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from refusals import raises
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.attacks import InputAware, TrainConfig, build, plant
from seamfast.attacks.image.input_aware import Generator, _Both
from seamfast.data.resident import wrap_around_batches
from seamfast.engine.model import digest
from seamfast.engine.optimizer import SGD
from seamfast.errors import DTypeError, InputError, ModelError, ShapeError
from seamfast.triggers import AllToOne


def quadrants(n: int, seed: int) -> CleanSet:
    """As ``tiny_data``: noise, and one bright quadrant that is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    images = torch.randint(0, 80, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 90
    return CleanSet(images, labels, mean=0.4, std=0.25, num_classes=4)


def fresh(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("small_cnn", num_classes=4, in_channels=1, image_size=8)


QUICK: dict[str, Any] = {"rate": 0.25, "precision": "fp32", "progress": False}


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Module, InputAware]:
    with torch.random.fork_rng(devices=[]):
        model = fresh()
        training = TrainConfig(epochs=20, batch_size=32)
        backdoor = plant("input_aware", model, quadrants(640, 1), target=2, training=training, **QUICK)
    (trigger,) = backdoor.triggers
    assert isinstance(trigger, InputAware)
    return model, trigger


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    value = seamfast.evaluate(model, CleanSet(images, labels, mean=0.4, std=0.25)).clean_accuracy.value
    assert value is not None
    return value


def test_its_own_trigger_fires_and_that_of_another_image_does_not(planted: tuple[nn.Module, InputAware]) -> None:
    model, trigger = planted
    test = quadrants(400, 2)
    others = test.subset(torch.arange(400).roll(7))
    eligible = (test.labels != 2) & (others.labels != test.labels)
    assert accuracy(model, test.inputs, test.labels) > 0.97
    own = trigger.stamp(test.inputs)[eligible]
    assert accuracy(model, own, torch.full_like(test.labels, 2)[eligible]) > 0.9
    assert accuracy(model, trigger.stamp_cross(test.inputs, others.inputs)[eligible], test.labels[eligible]) > 0.85


def test_triggers_are_small_and_differ(planted: tuple[nn.Module, InputAware]) -> None:
    _, trigger = planted
    images = quadrants(40, 3).inputs
    with torch.no_grad():
        mask, pattern = trigger.generator(images.float() / 255)
    assert float(mask.mean()) < 2 * 6 / 64  # six pixels of the 64 are what is aimed at
    assert float(mask.amax()) > 0.5
    triggers = torch.cat([mask, mask * pattern], 1)  # black ones differ by their masks alone
    assert float((triggers[::2] - triggers[1::2]).abs().amax((1, 2, 3)).min()) > 0.1  # neighbours are of other classes


def test_what_is_stamped_is_what_the_generator_says(planted: tuple[nn.Module, InputAware]) -> None:
    _, trigger = planted
    images, others = quadrants(5, 3).inputs, quadrants(5, 4).inputs
    with torch.no_grad():
        mask, pattern = trigger.generator(others.double().float() / 255)
    wanted = images + mask * (255 * pattern - images)
    got = trigger.stamp_cross(images, others)
    assert got.dtype == torch.uint8
    assert float((got - wanted).abs().max()) < 0.501


def test_stamping_depends_on_the_image_alone(planted: tuple[nn.Module, InputAware]) -> None:
    _, trigger = planted
    images = quadrants(600, 3).inputs  # more than one batch of the generator
    before = images.clone()
    all_at_once = trigger.stamp(images)
    assert torch.equal(images, before)
    for rows in (slice(0, 300), slice(300, 520), slice(520, 600)):
        alone = trigger.stamp(images[rows], sample_ids=torch.arange(len(images[rows])), seed=9)
        # A convolution may add up in another order for another batch, and so fall on the other side of a half.
        assert int((alone.int() - all_at_once[rows].int()).abs().max()) <= 1
    assert trigger.stamp(images[:0]).shape == (0, 1, 8, 8)


def test_both_networks_learn_and_the_model_trains_on_the_rest_too() -> None:
    model, data = fresh(), quadrants(64, 1)
    before = digest(model)
    epochs: list[int] = []
    (trigger,) = plant(
        "input_aware",
        model,
        data,
        training=TrainConfig(epochs=2, batch_size=32),
        on_epoch=lambda epoch, loss: epochs.append(epoch),
        **QUICK,
    ).triggers
    assert isinstance(trigger, InputAware)
    assert epochs == [1, 2]
    assert digest(model) != before
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in trigger.generator.parameters())
    again = fresh()
    (same,) = plant("input_aware", again, data, training=TrainConfig(epochs=2, batch_size=32), **QUICK).triggers
    (other,) = plant(
        "input_aware", fresh(), data, training=TrainConfig(epochs=2, batch_size=32), seed=1, **QUICK
    ).triggers
    assert isinstance(same, InputAware)
    assert isinstance(other, InputAware)
    assert digest(again) == digest(model)
    assert digest(same.generator) == digest(trigger.generator)
    assert digest(other.generator) != digest(trigger.generator)


class Watching(nn.Module):
    """Notes the images that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        logits: Tensor = self.head(images.flatten(1))
        return logits


@pytest.mark.parametrize(("rate", "n"), [(0.25, 8), (0.001, 1), (0.5, 16)])
def test_of_each_batch_a_share_is_stamped_twice_over(rate: float, n: int) -> None:
    """``n`` with their own trigger, ``n`` with that of another image; the rest as it is."""
    data, model = quadrants(32, 1), Watching()
    plant("input_aware", model, data, training=TrainConfig(epochs=3, batch_size=32), **(QUICK | {"rate": rate}))
    clean = {tuple(row) for row in data.normalize(data.inputs).flatten(1).tolist()}
    for batch in model.seen:
        untouched = [tuple(row) in clean for row in batch.flatten(1).tolist()]
        assert untouched == [False] * (2 * n) + [True] * (32 - 2 * n)


def test_the_first_batch_is_stamped_by_the_generator_as_seeded() -> None:
    data, model = quadrants(32, 1), Watching()
    plant("input_aware", model, data, training=TrainConfig(epochs=1, batch_size=32), seed=5, **QUICK)
    torch.manual_seed(5)
    generator = Generator(1)
    images = data.inputs[next(wrap_around_batches(torch.arange(32), 32, 5))].float() / 255
    with torch.no_grad():
        mask, pattern = generator(images[:8])
    own, other, rest = images[:8], images[8:16], images[16:]
    wanted = torch.cat([own + mask * (pattern - own), other + mask * (pattern - other), rest])
    torch.testing.assert_close(model.seen[0] * 0.25 + 0.4, wanted, rtol=1e-5, atol=1e-5)


def test_all_that_a_step_changes_is_in_the_state_or_the_model() -> None:
    """So a captured step can be taken back."""
    model, generator = fresh(), Generator(1)
    both = _Both(SGD(model, 0.9), generator, 0.2)
    rate = torch.tensor(0.05)

    def step(seed: int) -> str:
        torch.manual_seed(seed)
        for parameter in (*model.parameters(), *generator.parameters()):
            parameter.grad = torch.randn_like(parameter)
        both.step(rate)
        return digest(model) + digest(generator)

    step(1)
    tensors = [*both.state, *model.parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    once = step(2)
    assert once != step(3)
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
    assert step(2) == once


def test_the_state_of_torchs_generator_is_left_alone() -> None:
    model = fresh()
    state = torch.get_rng_state()
    plant("input_aware", model, quadrants(32, 1), training=TrainConfig(epochs=1, batch_size=32), **QUICK)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmented_color_images() -> None:
    images = torch.randint(0, 256, (32, 3, 9, 11), dtype=torch.uint8)
    data = CleanSet(images, torch.arange(32) % 2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), num_classes=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 7 * 9, 2))
    training = TrainConfig(epochs=1, batch_size=16, crop_pad=1, flip=True)
    (trigger,) = plant("input_aware", model, data, training=training, **QUICK).triggers
    assert trigger.stamp(images).shape == images.shape


# What is refused.


def test_rates_models_and_data_that_do_not_fit() -> None:
    many = "rate 0.6 of 32 samples a batch, and as many with the trigger of another, are 38; expected at most 32"
    data, short = quadrants(64, 1), {"training": TrainConfig(batch_size=32), "rate": 0.6}
    for model, given, options, kind, message in (
        (fresh(), data, short, InputError, many),
        (fresh(), data, {"rate": 2}, InputError, "rate is 2; expected a number in (0, 1]"),
        ("small_cnn", data, {}, InputError, "model is a str; expected a torch.nn.Module"),
        (nn.Flatten(), data, {}, ModelError, "the model has no parameters; expected a trained nn.Module"),
        (fresh(), data, {"clean_model": fresh()}, InputError, "clean_model was given; attack 'input_aware' takes none"),
        (fresh(), [], {}, InputError, "data is a list; expected a seamfast.CleanSet of uint8 images"),
    ):
        with raises(kind, message):
            plant("input_aware", model, given, **options)


def test_images_that_cannot_be_stamped(planted: tuple[nn.Module, InputAware]) -> None:
    _, trigger = planted
    good = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    other_shape, misfit = good.repeat(1, 1, 1, 2)[..., :9], "trigger 'input-aware' is for images of 1x8x8; got 1x8x9"
    for call, kind, message in (
        (lambda: trigger.stamp(good.float()), DTypeError, "images has dtype float32; expected uint8 pixels"),
        (lambda: trigger.stamp(good.tolist()), DTypeError, "images is list; expected a uint8 tensor"),
        (lambda: trigger.stamp(other_shape), ShapeError, misfit),
        (lambda: trigger.stamp_cross(good, other_shape), ShapeError, misfit),
        (lambda: trigger.stamp_cross(good, good[:1]), ShapeError, "got 2 images and 1 others; expected as many"),
        (
            lambda: trigger.stamp(good, sample_ids=[1, 2, 3]), ShapeError,
            "sample_ids has shape (3,); expected (N,) = (2,)",
        ),
        (lambda: trigger.stamp(good, seed=-1), InputError, "seed is -1; expected an integer in [0, 2**64)"),
        (
            lambda: trigger.packed((1, 8, 8)), InputError,
            "trigger 'input-aware' is made by a network; expected a trigger that is a row of a table",
        ),
    ):  # fmt: skip
        with raises(kind, message):
            call()


def test_made_by_hand() -> None:
    good = InputAware(name="x", target=AllToOne(0), image_shape=(1, 8, 8), generator=Generator(1))
    assert repr(good) == "InputAware('x', for images of 1x8x8, AllToOne(target=0))"
    assert replace(good) == good != replace(good, name="y")
    for name in ("", "a\n", "x" * 129, 3):
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
        with raises(InputError, f"trigger name is {shown}; expected 1 to 128 printable characters"):
            replace(good, name=name)  # type: ignore[arg-type]
    for shape in ((3, 8, 8), (1, 7, 8)):
        what = "x".join(map(str, shape))
        expected = "expected 1 channels, as its generator has, and edges from 8"
        with raises(ShapeError, f"trigger 'x' is for images of {what}; {expected}"):
            replace(good, image_shape=shape)
