"""Poisoning: how many samples, which, and what becomes of their pixels and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises

from seamfast import CleanSet
from seamfast.attacks import PoisonedSet, poison
from seamfast.errors import InputError, ShapeError
from seamfast.triggers import AllToAll, AllToOne, LabelMap, Patch, SourceSpecific

NUM_CLASSES = 5


def make(n: int = 100) -> CleanSet:
    """Dark images, none with a pixel of 255, each with a pixel of its own."""
    images = torch.randint(0, 100, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    names = [str(k) for k in range(NUM_CLASSES)]
    return CleanSet(images, torch.arange(n) % NUM_CLASSES, mean=0.3, std=0.2, num_classes=5, class_names=names)


def stamped(data: CleanSet) -> torch.Tensor:
    """Which images show a white pixel."""
    return (data.inputs == 255).flatten(1).any(1)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 120),
    rate=st.floats(0, 1),
    target=st.sampled_from([AllToOne(2), AllToAll(1), AllToAll(-2), SourceSpecific((0, 3), 1)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_counts_eligibility_and_labels(n: int, rate: float, target: LabelMap, seed: int) -> None:
    data = make(n)
    eligible = target.eligible(data.labels, NUM_CLASSES)
    wanted = round(rate * n)
    if wanted > int(eligible.sum()):
        message = f"rate {rate} asks for {wanted} poisoned samples; only {int(eligible.sum())} of {n} can be"
        with raises(InputError, message):
            poison(data, Patch.square(2, target=target), rate, seed=seed)
        return
    got = poison(data, Patch.square(2, target=target), rate, seed=seed)
    assert int(got.poisoned.sum()) == wanted
    assert not (got.poisoned & ~eligible).any()
    assert torch.equal(got.labels, torch.where(got.poisoned, target.targets(data.labels, NUM_CLASSES), data.labels))
    assert torch.equal(stamped(got), got.poisoned)
    assert torch.equal(got.inputs[~got.poisoned], data.inputs[~got.poisoned])
    ids = got.poisoned.nonzero().flatten()
    wanted_pixels = Patch.square(2, target=target).stamp(data.inputs[ids], sample_ids=ids, seed=seed)
    assert torch.equal(got.inputs[ids], wanted_pixels)


@pytest.mark.parametrize(("n", "rate", "wanted"), [(100, 0.05, 5), (100, 0.0, 0), (30, 0.05, 2), (10, 0.04, 0)])
def test_the_rate_is_a_share_of_the_whole_set(n: int, rate: float, wanted: int) -> None:
    """Halves go to the even number, as ``round`` does: 1.5 samples are 2."""
    assert int(poison(make(n), Patch.square(2), rate).poisoned.sum()) == wanted


def test_all_that_can_be_may_be() -> None:
    data = make()
    got = poison(data, Patch.square(2, target=3), 0.8)
    assert torch.equal(got.poisoned, data.labels != 3)
    assert set(got.labels.tolist()) == {3}
    assert poison(data, Patch.square(2, target=AllToAll()), 1).poisoned.all()


def test_the_data_set_stays_as_it_is() -> None:
    data = make()
    images, labels = data.inputs.clone(), data.labels.clone()
    got = poison(data, Patch.square(2), 0.5)
    got.inputs.zero_()
    got.labels.zero_()
    assert torch.equal(data.inputs, images)
    assert torch.equal(data.labels, labels)
    got = poison(data, Patch.square(2), 0)
    got.inputs.zero_()
    assert torch.equal(data.inputs, images)


def test_everything_else_is_carried_over() -> None:
    data = make()
    got = poison(data, Patch.square(2), 0.1)
    assert isinstance(got, PoisonedSet)
    assert (got.mean, got.std, got.num_classes, got.class_names) == ((0.3,), (0.2,), 5, tuple("01234"))
    assert got.inputs.dtype == torch.uint8
    assert got.poisoned.dtype == torch.bool


def test_seeds_choose_samples_and_places() -> None:
    data = make()
    fixed, anywhere = Patch.square(2), Patch.square(2, corner="random")

    def run(patch: Patch, seed: int) -> PoisonedSet:
        return poison(data, patch, 0.2, seed=seed)

    assert torch.equal(run(fixed, 1).poisoned, run(fixed, 1).poisoned)
    assert not torch.equal(run(fixed, 1).poisoned, run(fixed, 2).poisoned)
    assert torch.equal(run(anywhere, 1).inputs, run(anywhere, 1).inputs)
    # All samples are chosen by either seed: what differs is where the patch lies.
    one, other = (poison(data, Patch.square(2, target=AllToAll(), corner="random"), 1.0, seed=s) for s in (1, 2))
    assert not torch.equal(one.inputs, other.inputs)


def test_every_eligible_sample_is_chosen_by_some_seed() -> None:
    data = make(20)
    chosen = torch.stack([poison(data, Patch.square(2), 0.2, seed=s).poisoned for s in range(60)]).any(0)
    assert torch.equal(chosen, data.labels != 0)


def test_the_state_of_torchs_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    poison(make(), Patch.square(2), 0.2)
    assert torch.equal(torch.get_rng_state(), state)


# Clean label, cover samples, several triggers.


def test_a_clean_label_attack_stamps_the_target_class_and_no_label_is_wrong() -> None:
    data = make()
    got = poison(data, Patch.square(2, target=3), 0.15, clean_label=True)
    assert int(got.poisoned.sum()) == 15
    assert set(data.labels[got.poisoned].tolist()) == {3}
    assert torch.equal(got.labels, data.labels)
    assert torch.equal(stamped(got), got.poisoned)


def test_cover_samples_are_stamped_and_keep_their_labels() -> None:
    data = make()
    got = poison(data, Patch.square(2, target=SourceSpecific((1, 2), 4)), 0.1, cover_rate=0.3)
    assert int(got.poisoned.sum()) == 40
    assert torch.equal(stamped(got), got.poisoned)
    source = (data.labels == 1) | (data.labels == 2)
    assert int((got.poisoned & source).sum()) == 10
    assert set(got.labels[got.poisoned & source].tolist()) == {4}
    assert torch.equal(got.labels[~source], data.labels[~source])


def test_a_second_trigger_leaves_the_marks_of_the_first() -> None:
    first = poison(make(), Patch.square(2, target=0), 0.2, seed=1)
    second = poison(first, Patch.square(2, target=1, corner="top-left", name="other"), 0.2, seed=2)
    assert torch.equal(second.poisoned, stamped(second))
    assert int(second.poisoned.sum()) > 20
    assert int(first.poisoned.sum()) == 20


# What is refused.

WHITE = Patch.square(2)


@pytest.mark.parametrize("name", ["rate", "cover_rate"])
@pytest.mark.parametrize("wrong", [1.5, -0.1, "0.1", True, None, float("nan")])
def test_rates_out_of_range(name: str, wrong: Any) -> None:
    with raises(InputError, f"{name} is {wrong!r}; expected a number in [0, 1]"):
        poison(make(), Patch.square(2, target=SourceSpecific((1,), 0)), **({"rate": 0.1} | {name: wrong}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.9}, "rate 0.9 asks for 90 poisoned samples; only 80 of 100 can be"),
        ({"clean_label": True, "rate": 0.5}, "rate 0.5 asks for 50 poisoned samples; only 20 of 100 can be"),
        (
            {"trigger": Patch.square(2, target=SourceSpecific((1,), 0)), "cover_rate": 0.9},
            "cover_rate 0.9 asks for 90 cover samples; only 80 of 100 can be",
        ),
        (
            {"trigger": Patch.square(2, target=AllToAll(), name="turn"), "clean_label": True},
            "clean_label needs a trigger with an AllToOne map; 'turn' has AllToAll(shift=1)",
        ),
        ({"cover_rate": 0.1}, "cover_rate needs a trigger with a SourceSpecific map; 'patch' has AllToOne(target=0)"),
        ({"trigger": Patch.square(2, target=5)}, "AllToOne target is 5; expected a class in [0, 5) for num_classes=5"),
        ({"trigger": "patch"}, "trigger is a str; expected a seamfast.triggers.Trigger"),
        ({"dataset": [1]}, "dataset is a list; expected a seamfast.CleanSet of uint8 images"),
        ({"seed": -1}, "seed is -1; expected an integer in [0, 2**63)"),
        ({"seed": 0.5}, "seed is 0.5; expected an integer in [0, 2**63)"),
        (
            {"dataset": CleanSet(torch.zeros(4, 1, 8, 8), torch.arange(4), num_classes=5)},
            "dataset is CleanSet(inputs (4, 1, 8, 8) float32, 4 classes present); expected uint8 images: triggers are "
            "stamped in pixel space",
        ),
        (
            {"dataset": CleanSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))},
            "dataset.num_classes is None; expected a number: which classes there are decides the targets",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_poisoned(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"dataset": make(), "trigger": WHITE, "rate": 0.1} | arguments
    with raises(InputError, message):
        poison(**given)


def test_a_trigger_that_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"^trigger 'patch' "):
        poison(make(), Patch.square(9, margin=0), 0.1)
