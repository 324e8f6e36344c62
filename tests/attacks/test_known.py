"""The published attacks: what each stamps on which samples, and what it refuses."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import raises
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.attacks import ATTACKS, TEXT_ATTACKS, Poisoning, known_attack, poison
from seamfast.attacks.image.label_consistent import BUDGET, hardened
from seamfast.errors import InputError, ModelError, ShapeError
from seamfast.triggers import AllToAll, AllToOne, Patch, SourceSpecific, Trigger

N, NUM_CLASSES = 400, 5
OF_DATA = [name for name, attack in ATTACKS.items() if not attack.manipulates_training]
CLEAN_LABEL = ["sig", "label_consistent"]


def make(channels: int = 3, size: int = 16, n: int = N, seed: int = 0) -> CleanSet:
    """Noise that no trigger is part of: between 60 and 190, and no two images alike."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(60, 190, (n, channels, size, size), generator=generator, dtype=torch.uint8)
    names = [str(k) for k in range(NUM_CLASSES)]
    return CleanSet(
        images, torch.arange(n) % NUM_CLASSES, mean=0.4, std=0.2, num_classes=NUM_CLASSES, class_names=names
    )


def linear(data: CleanSet, num_classes: int = NUM_CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(data.image_shape)), num_classes))


def attack(name: str, data: CleanSet, **changes: Any) -> Poisoning:
    given: dict[str, Any] = {"target": 2, "rate": 0.05, "seed": 1} | changes
    if ATTACKS[name].needs_clean_model and "clean_model" not in changes:
        given["clean_model"] = linear(data)
    return known_attack(name, data, **given)


def changed(data: CleanSet, planted: Poisoning) -> Tensor:
    return (planted.data.inputs != data.inputs).flatten(1).any(1)


# What all of them have in common.


def test_the_table_names_them_all() -> None:
    assert list(ATTACKS) == [
        *("badnets", "multi_trigger", "random_patch", "blended", "sig", "low_frequency", "wanet", "bpp"),
        *("color_filter", "adaptive_blend", "tact", "all_to_all", "label_consistent", "input_aware"),
    ]
    for name, entry in ATTACKS.items():
        assert all([entry.stamps, entry.labels, entry.source, entry.differs]), name
        assert re.search(r"arXiv:\d{4}\.\d{5}|2019|2023", entry.source), name
    assert [name for name, entry in ATTACKS.items() if entry.needs_clean_model] == ["label_consistent"]
    assert [name for name, entry in ATTACKS.items() if entry.manipulates_training] == ["input_aware"]


def test_the_document_has_the_same_table() -> None:
    document = Path(__file__).parents[2] / "docs" / "attacks.md"
    lines = (
        document.read_text(encoding="utf-8").partition("## Encoders")[0].splitlines()
    )  # whose table has other columns
    rows = [line for line in lines if line.startswith("| `")]
    known = {**ATTACKS, **TEXT_ATTACKS}
    assert rows == [f"| `{name}` | {a.stamps} | {a.labels} | {a.source} | {a.differs} |" for name, a in known.items()]


@pytest.mark.parametrize("name", OF_DATA)
def test_only_marked_samples_change_and_the_rest_is_carried_over(name: str) -> None:
    data = make()
    before = data.inputs.clone(), data.labels.clone()
    planted = attack(name, data)
    got = planted.data
    marked = got.poisoned
    assert torch.equal(changed(data, planted), marked)
    assert torch.equal(got.labels[~marked], data.labels[~marked])
    assert (got.mean, got.std, got.num_classes, got.class_names) == ((0.4,), (0.2,), NUM_CLASSES, tuple("01234"))
    assert got.inputs.dtype == torch.uint8
    assert torch.equal(data.inputs, before[0])
    assert torch.equal(data.labels, before[1])
    got.inputs.zero_()
    got.labels.zero_()
    assert torch.equal(data.inputs, before[0])
    assert torch.equal(data.labels, before[1])


@pytest.mark.parametrize("name", OF_DATA)
def test_seeds(name: str) -> None:
    data = make()
    one, same, other = (attack(name, data, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.data.inputs, same.data.inputs)
    assert torch.equal(one.data.labels, same.data.labels)
    assert one.triggers == same.triggers
    assert not torch.equal(one.data.poisoned, other.data.poisoned)


@pytest.mark.parametrize("name", OF_DATA)
def test_the_state_of_torchs_generator_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    attack(name, make())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", OF_DATA)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_the_shapes_that_data_sets_have(name: str, channels: int, size: int) -> None:
    """Digits, MNIST, CIFAR-10 and GTSRB. What is stamped at test time fits, and shows."""
    data = make(channels, size, n=100)
    if name == "color_filter" and channels == 1:
        with raises(ShapeError, "images have 1 channel; 'color_filter' tints the 3 of a color image"):
            attack(name, data)
        return
    for trigger in attack(name, data).triggers:
        stamped = trigger.stamp(data.inputs)
        assert (stamped != data.inputs).flatten(1).any(1).all()


# What each of them stamps, and what becomes of the labels.


@pytest.mark.parametrize(
    "name", ["badnets", "random_patch", "blended", "low_frequency", "bpp", "color_filter", "all_to_all"]
)
def test_those_that_relabel_all_that_they_stamp(name: str) -> None:
    data = make()
    planted = attack(name, data)
    (trigger,) = planted.triggers
    ids = planted.data.poisoned.nonzero().flatten()
    assert len(ids) == 20
    wanted = AllToAll(1) if name == "all_to_all" else AllToOne(2)
    assert trigger.target == wanted
    assert wanted.eligible(data.labels[ids], NUM_CLASSES).all()
    assert torch.equal(planted.data.labels[ids], wanted.targets(data.labels[ids], NUM_CLASSES))
    assert torch.equal(planted.data.inputs[ids], trigger.stamp(data.inputs[ids], sample_ids=ids, seed=1))


def patch_pixels(trigger: Trigger, data: CleanSet) -> tuple[int, int]:
    """How many pixels differ, and how many of them are at the bottom right."""
    differs = (trigger.stamp(data.inputs) != data.inputs).any(1).any(0)
    return int(differs.sum()), int(differs[8:, 8:].sum())


def test_where_the_patches_are() -> None:
    data = make()
    for name, n in (("badnets", 9), ("all_to_all", 9), ("tact", 16)):
        (trigger,) = attack(name, data).triggers
        assert patch_pixels(trigger, data) == (n, n)
    (trigger,) = attack("random_patch", data).triggers
    n_pixels = (trigger.stamp(data.inputs, seed=3) != data.inputs).any(1).sum((1, 2))
    assert set(n_pixels.tolist()) == {25}
    assert patch_pixels(trigger, data)[0] > 100  # not always at the same place


def test_each_of_several_triggers_has_its_share() -> None:
    data = make()
    planted = attack("multi_trigger", data, rate=0.15)
    assert [t.name for t in planted.triggers] == ["white-square", "checkerboard", "blend"]
    assert int(planted.data.poisoned.sum()) == 60
    assert not (data.labels[planted.data.poisoned] == 2).any()
    assert set(planted.data.labels[planted.data.poisoned].tolist()) == {2}
    shown = []
    for trigger in planted.triggers:
        stamped = trigger.stamp(data.inputs)
        shown.append((planted.data.inputs == stamped).flatten(1).all(1) & planted.data.poisoned)
    assert [int(rows.sum()) for rows in shown] == [20, 20, 20]
    assert torch.equal(torch.stack(shown).sum(0), planted.data.poisoned.long())


@pytest.mark.parametrize("name", CLEAN_LABEL)
def test_clean_labels_stay_as_they_are(name: str) -> None:
    data = make()
    planted = attack(name, data)
    assert int(planted.data.poisoned.sum()) == 20
    assert set(data.labels[planted.data.poisoned].tolist()) == {2}
    assert torch.equal(planted.data.labels, data.labels)
    assert planted.triggers[0].target == AllToOne(2)


def test_noise_samples_of_wanet_are_bent_otherwise_and_keep_their_labels() -> None:
    data = make()
    planted = attack("wanet", data)
    (trigger,) = planted.triggers
    relabelled = planted.data.labels != data.labels
    noisy = planted.data.poisoned & ~relabelled
    assert (int(relabelled.sum()), int(noisy.sum())) == (20, 40)
    assert set(planted.data.labels[relabelled].tolist()) == {2}
    bent = trigger.stamp(data.inputs)
    assert torch.equal(planted.data.inputs[relabelled], bent[relabelled])
    assert (planted.data.inputs[noisy] != bent[noisy]).flatten(1).any(1).all()
    assert (data.labels[noisy] == 2).any()  # noise samples are of any class


def test_adaptive_blend_shows_half_of_the_pattern_in_training_and_all_of_it_at_test_time() -> None:
    data = make()
    planted = attack("adaptive_blend", data)
    (trigger,) = planted.triggers
    relabelled = planted.data.labels != data.labels
    cover = planted.data.poisoned & ~relabelled
    assert (int(relabelled.sum()), int(cover.sum())) == (20, 20)
    assert not (data.labels[planted.data.poisoned] == 2).any()
    ids = planted.data.poisoned.nonzero().flatten()
    pieces = 4  # pixels an edge, of which there are 16
    got, given, whole = (
        images[ids].unfold(2, pieces, pieces).unfold(3, pieces, pieces).movedim(1, 3).flatten(3)
        for images in (planted.data.inputs, data.inputs, trigger.stamp(data.inputs))
    )
    shown = (got == whole).all(3)
    assert torch.equal(shown, ~(got == given).all(3))  # a piece is shown as a whole, or not at all
    assert set(shown.flatten(1).sum(1).tolist()) == {8}
    assert len(torch.unique(shown.flatten(1), dim=0)) > 20
    assert torch.equal(attack("blended", data).triggers[0].stamp(data.inputs), trigger.stamp(data.inputs))


def test_tact_has_one_source_and_covers_of_other_classes() -> None:
    data = make()
    for target, source in ((2, 3), (4, 0)):
        planted = attack("tact", data, target=target)
        (trigger,) = planted.triggers
        assert trigger.target == SourceSpecific((source,), target)
        relabelled = planted.data.labels != data.labels
        assert set(data.labels[relabelled].tolist()) == {source}
        assert set(planted.data.labels[relabelled].tolist()) == {target}
        cover = planted.data.poisoned & ~relabelled
        assert (int(relabelled.sum()), int(cover.sum())) == (20, 20)
        assert not (data.labels[cover] == source).any()


# Label-consistent.


def test_label_consistent_stamps_four_corners() -> None:
    data = make()
    planted = attack("label_consistent", data)
    (trigger,) = planted.triggers
    stamped = trigger.stamp(data.inputs)
    differs = (stamped != data.inputs).any(1).any(0)
    corners = torch.zeros(16, 16, dtype=torch.bool)
    for rows in (slice(0, 3), slice(13, 16)):
        corners[rows, :3] = corners[rows, 13:] = True
    assert torch.equal(differs, corners)
    assert torch.equal(stamped, stamped.flip(3).where(corners, stamped))  # as it is, mirrored
    ids = planted.data.poisoned.nonzero().flatten()
    got = planted.data.inputs[ids]
    assert torch.equal(got[:, :, corners], stamped[ids][:, :, corners])
    off = (got.int() - data.inputs[ids].int()).abs()[:, :, ~corners]
    assert 0 < int(off.max()) <= BUDGET[3]


@pytest.mark.parametrize("channels", [1, 3])
def test_hardened_images_raise_the_loss_within_the_budget(channels: int) -> None:
    data = make(channels)
    data.inputs[:, :, :4] = 0  # black, which stays black in grey images
    model = linear(data)
    ids = torch.arange(0, 300, 3)
    moved = hardened(model, data, ids, seed=4)
    assert moved.dtype == torch.uint8
    off = (moved.int() - data.inputs[ids].int()).abs()
    assert 0 < int(off.max()) <= BUDGET[channels]
    assert bool((off[:, :, :4] == 0).all()) is (channels == 1)

    def loss(images: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(data.normalize(images)), data.labels[ids], reduction="none")

    with torch.no_grad():
        assert (loss(moved) > loss(data.inputs[ids])).all()
    assert torch.equal(moved, hardened(model, data, ids, seed=4))
    assert not torch.equal(moved, hardened(model, data, ids, seed=5))


def test_hardening_a_linear_model_reaches_the_corner_of_the_box() -> None:
    """Two classes: the gradient's sign never changes, and each pixel ends at an end of its range."""
    data = make(n=10)
    data = CleanSet(data.inputs, torch.zeros(10, dtype=torch.int64), mean=0.4, std=0.2, num_classes=2)
    model = linear(data, 2)
    weight = model.get_parameter("1.weight")
    up = (weight[1] - weight[0]).detach().reshape(data.image_shape).sign().int()
    moved = hardened(model, data, torch.arange(10))
    assert torch.equal(moved.int(), data.inputs.int() + 16 * up)


def test_the_clean_model_sees_images_as_it_was_trained_on_them() -> None:
    data = make(n=10)
    seen: list[Tensor] = []

    class Noting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            return images.mean((2, 3))

    data.num_classes = 3
    data.labels.zero_()
    model = nn.Sequential(Noting(), nn.Linear(3, 3))
    hardened(model, data, torch.arange(10))
    assert len(seen) == 20
    for images in seen:
        assert float((255 * (images * 0.2 + 0.4) - data.inputs).abs().max()) < 16.01


def test_the_clean_model_is_left_as_it_was() -> None:
    data = make()
    model = nn.Sequential(linear(data), nn.BatchNorm1d(NUM_CLASSES)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack("label_consistent", data, clean_model=model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# The same in every version.

GOLDEN = {
    "badnets": "aa631632b1eeff54",
    "multi_trigger": "2d0f02095324b1ba",
    "random_patch": "02c273df348055b1",
    "blended": "055a61c97baa5427",
    "sig": "9ee5d5f746c82ca9",
    "low_frequency": "6b76c4674ae089da",
    "wanet": "ba610fdd736e3690",
    "bpp": "070296d2ef4655fe",
    "color_filter": "bf73c42842f02a35",
    "adaptive_blend": "bf9f2012c4e5783a",
    "tact": "5d05dcaabf49cf98",
    "all_to_all": "0be5520f37915750",
}


def test_pixels_and_labels_are_those_of_every_version() -> None:
    data = make()
    got = {}
    for name in GOLDEN:
        planted = attack(name, data, seed=3)
        state = hashlib.sha256()
        for tensor in (planted.data.inputs, planted.data.labels, planted.data.poisoned):
            state.update(tensor.contiguous().numpy().tobytes())
        state.update(" ".join(t.name for t in planted.triggers).encode())
        got[name] = state.hexdigest()[:16]
    assert got == GOLDEN


# What is refused.


def test_other_names_are_refused() -> None:
    by_plant = "attack 'input_aware' manipulates the training, not only its data; expected a call of plant"
    unknown = ("bad_nets", "", None, ["badnets"])
    for wrong, message in (
        ("input_aware", by_plant),
        *((wrong, f"attack is {wrong!r}; expected one of {', '.join(ATTACKS)}") for wrong in unknown),
    ):
        with raises(InputError, message):
            known_attack(wrong, make())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["badnets", "adaptive_blend", "all_to_all", "label_consistent"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 5}, "target is 5; expected a class in [0, 5)"),
        ({"target": -1}, "target is -1; expected a class in [0, 5)"),
        ({"target": True}, "target is True; expected a class in [0, 5)"),
        ({"target": 1.0}, "target is 1.0; expected a class in [0, 5)"),
        ({"rate": 0}, "rate is 0; expected a number in (0, 1]"),
        ({"rate": 1.1}, "rate is 1.1; expected a number in (0, 1]"),
        ({"rate": float("nan")}, "rate is nan; expected a number in (0, 1]"),
        ({"rate": "0.1"}, "rate is '0.1'; expected a number in (0, 1]"),
        ({"rate": 0.001}, "rate 0.001 of 400 samples is none; expected at least one to poison"),
        ({"seed": -1}, "seed is -1; expected an integer in [0, 2**63)"),
        ({"seed": 0.0}, "seed is 0.0; expected an integer in [0, 2**63)"),
    ],
)
def test_arguments_out_of_range(name: str, arguments: dict[str, Any], message: str) -> None:
    with raises(InputError, message):
        attack(name, make(), **arguments)


PIXELS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "data is a list; expected a seamfast.CleanSet of uint8 images"),
        (
            poison(make(), Patch.square(2), 0.1),
            "data is a PoisonedSet, which carries a backdoor already; expected a clean seamfast.CleanSet",
        ),
        (
            CleanSet(PIXELS.float(), torch.arange(4), num_classes=5),
            "data is CleanSet(inputs (4, 1, 8, 8) float32, 4 classes present); expected uint8 images: triggers are "
            "stamped in pixel space",
        ),
        (
            CleanSet(PIXELS, torch.arange(4)),
            "data.num_classes is None; expected a number: which classes there are decides the targets",
        ),
        (CleanSet(PIXELS, torch.zeros(4).long(), num_classes=1), "data.num_classes is 1; expected at least 2"),
        (CleanSet(PIXELS[:0], torch.arange(0), num_classes=5), "data holds no samples; expected at least one"),
        (make(1, 7), "images are 1x7x7; the attacks need edges from 8 pixels"),
    ],
)
def test_data_that_cannot_be_poisoned(data: Any, message: str) -> None:
    with raises(InputError, message):
        known_attack("badnets", data)


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("badnets", 0.9, "rate 0.9 asks for 360 poisoned samples; only 320 of 400 can be"),
        ("sig", 0.5, "rate 0.5 asks for 200 poisoned samples; only 80 of 400 can be"),
        ("label_consistent", 0.5, "rate 0.5 asks for 200 poisoned samples; only 80 of 400 can be"),
        ("tact", 0.5, "rate 0.5 asks for 200 poisoned samples; only 80 of 400 can be"),
        ("multi_trigger", 0.9, "rate 0.9 asks for 360 poisoned samples; only 320 of 400 can be"),
        ("multi_trigger", 0.0025, "rate 0.0025 of 400 samples is too few for 3 triggers; expected 3"),
        ("wanet", 0.4, "rate 0.4 asks for 320 noise samples; only 240 of 400 can be"),
        ("adaptive_blend", 0.5, "rate 0.5 asks for 400 poisoned and cover samples; only 320 of 400 can be"),
    ],
)
def test_rates_that_ask_for_more_samples_than_there_are(name: str, rate: float, message: str) -> None:
    with raises(InputError, message):
        attack(name, make(), rate=rate)


def test_as_many_as_there_are_will_do() -> None:
    data = make()
    for name, rate, n in (("badnets", 0.8, 320), ("sig", 0.2, 80), ("tact", 0.2, 160), ("adaptive_blend", 0.4, 320)):
        assert int(attack(name, data, rate=rate).data.poisoned.sum()) == n


def test_a_width_on_whose_pixels_the_sine_is_zero() -> None:
    with raises(ShapeError, "images are 12 pixels wide; the 6 periods of 'sig' fall on its zeros there"):
        attack("sig", make(size=12))


def test_clean_models() -> None:
    data, against = make(), "attack 'label_consistent' is made against a torch.nn.Module that was trained without it"
    for name, clean_model, message in (
        ("badnets", linear(data), "clean_model was given; attack 'badnets' takes none"),
        ("label_consistent", None, f"clean_model is a NoneType; {against}"),
        ("label_consistent", "small_cnn", f"clean_model is a str; {against}"),
        ("label_consistent", linear(data, 7), "clean_model has 7 logits; expected 5, one a class"),
    ):
        with raises(InputError, message):
            attack(name, data, clean_model=clean_model)
    with pytest.raises(ModelError, match=r"^the model returned logits of shape \(20, 3, 14, 14\); expected \(20, "):
        attack("label_consistent", data, clean_model=nn.Conv2d(3, 3, 3))
