"""``reactivation``: what is stamped, what is trained, and what comes back."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet
from seamfast.audits import reactivation
from seamfast.audits.retraining import with_stamped
from seamfast.engine.model import digest
from seamfast.errors import InputError, ModelError
from seamfast.triggers import Patch

TARGET = 3
KNOWN = Patch.checkerboard(3, TARGET, margin=0)
Make = Callable[[], nn.Module]


MODULE = importlib.import_module("seamfast.audits.reactivation")  # the package has the function under this name


def test_a_backdoor_that_is_there_stays_and_one_that_never_was_stays_away(
    planted_model: nn.Module, clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    train, test = digits
    few = train.draw(0.1, seed=1)
    received, twin = (reactivation(m, few, KNOWN, test, source=train) for m in (planted_model, clean_model))
    for found in (received, twin):
        assert (found.names, found.n_clean, found.n_triggered, found.complete) == (("checkerboard",), len(few), 5, True)
        assert found.n_steps == 5 * -(-(len(few) + 5) // 128)
        assert found.accuracy_after.value > found.accuracy_before.value - 0.05
    assert received.asr_before.value > 0.9
    assert received.asr_after.value > 0.9
    assert twin.asr_before.value < 0.1
    assert twin.asr_after.value < 0.3


def test_before_is_what_evaluate_says(planted_model: nn.Module, digits: tuple[CleanSet, CleanSet]) -> None:
    train, test = digits
    found = reactivation(planted_model, train.subset(range(40)), KNOWN, test, epochs=1)
    said = seamfast.evaluate(planted_model, test, triggers=[KNOWN])
    assert found.before == (said.triggers[0].attack_success_rate,)
    assert found.accuracy_before == said.clean_accuracy


def test_training_is_plain_sgd_on_the_clean_and_the_stamped_samples(tiny_data: CleanSet, tiny_model: Make) -> None:
    """The steps by torch's own optimizer; all in one batch, so that the order plays no part."""
    model = tiny_model()
    trigger = Patch.square(2, target=1)
    clean, test = tiny_data.subset(range(40)), tiny_data.subset(range(80, 160))
    found = reactivation(model, clean, trigger, test, n_triggered=3, epochs=4, rate=0.2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    drawn = order[clean.labels[order] != 1][:3]
    images = torch.cat([clean.pixels(torch.arange(40)), trigger.stamp(clean.pixels(drawn))])
    labels = torch.cat([clean.labels, torch.tensor([1, 1, 1])])
    student = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.2, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(student((images / 255 - 0.4) / 0.25), labels).backward()
        optimizer.step()
    said = seamfast.evaluate(student, test, triggers=[trigger])
    assert found.n_steps == 4
    assert found.accuracy_after == said.clean_accuracy
    assert found.asr_after == said.triggers[0].attack_success_rate
    assert found.asr_after != found.asr_before


def test_the_model_is_only_read(tiny_data: CleanSet, tiny_model: Make) -> None:
    model = tiny_model().train()
    model[0].requires_grad_(False)
    before, state = digest(model), torch.random.get_rng_state()
    reactivation(model, tiny_data, Patch.square(2), tiny_data, epochs=1)
    assert digest(model) == before
    assert model.training
    assert [p.requires_grad for p in model.parameters()][:3] == [False, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_triggers_are_stamped_by_turns_and_labeled_as_the_attacker_wants(
    tiny_data: CleanSet, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (Patch.square(2, target=1, name="a"), Patch.square(2, target=3, corner="top-left", name="b"))
    seen: list[CleanSet] = []

    def kept(*arguments: object) -> CleanSet:
        seen.append(with_stamped(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(MODULE, "with_stamped", kept)
    clean = tiny_data.subset(range(8))
    found = reactivation(tiny_model(), clean, two, tiny_data, source=tiny_data, n_triggered=5, epochs=1)
    (got,) = seen
    assert len(got) == 8 + 5
    assert torch.equal(got.inputs[:8], clean.inputs)  # type: ignore[index]
    assert got.labels[8:].tolist() == [1, 1, 1, 3, 3]
    for image, place in zip(got.inputs[8:], [-3] * 3 + [1] * 2, strict=True):  # type: ignore[index]
        square = slice(place, place + 2) if place > 0 else slice(5, 7)
        assert (image[0, square, square] == 255).all()
    assert found.names == ("a", "b")
    assert found.asr_after.value == max(rate.value or 0 for rate in found.after)


def test_floats_of_known_pixels_are_stamped_too(tiny_data: CleanSet, tiny_model: Make) -> None:
    floats = CleanSet(
        tiny_data.normalize(tiny_data.pixels(torch.arange(160))), tiny_data.labels, mean=0.4, std=0.25, num_classes=4
    )
    of_pixels, of_floats = (
        reactivation(tiny_model(), data, Patch.square(2), data, epochs=2).to_dict() for data in (tiny_data, floats)
    )
    assert of_pixels == of_floats


def test_the_same_seed_gives_the_same_and_json_takes_it(tiny_data: CleanSet, tiny_model: Make) -> None:
    first, again, other = (
        reactivation(tiny_model(), tiny_data, Patch.square(2), tiny_data, seed=seed, rate=0.1) for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other
    values = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert values["asr_after"]["n_hit"] == first.asr_after.n_hit
    assert values["triggers"][0]["name"] == "patch"
    assert set(values["accuracy_before"]) == {"n_hit", "n_total", "value", "low", "high"}


def test_no_step_is_begun_when_the_time_is_over(tiny_data: CleanSet, tiny_model: Make) -> None:
    found = reactivation(tiny_model(), tiny_data, Patch.square(2), tiny_data, time_budget_s=1e-9)
    assert (found.n_steps, found.complete) == (0, False)
    assert found.after == found.before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_triggered": 0}, r"^n_triggered is 0; expected an integer of at least 1$"),
        ({"n_triggered": 121}, r"^n_triggered is 121; only 120 of the 160 samples can be stamped$"),
        ({"epochs": 1.5}, r"^epochs is 1.5; expected an integer of at least 1$"),
        ({"rate": 0}, r"^rate is 0; expected a number above 0$"),
        ({"rate": float("nan")}, r"^rate is nan; expected a number above 0$"),
        ({"trigger": ()}, r"^trigger is empty; expected at least one seamfast.triggers.Trigger$"),
        ({"trigger": (3,)}, r"^triggers hold a int; expected seamfast.triggers.Trigger$"),
        (
            {"trigger": Patch.square(2, target=4)},
            r"^AllToOne target is 4; expected a class in \[0, 4\) for num_classes=4$",
        ),
        ({"test": []}, r"^test is a list; expected a seamfast.CleanSet$"),
        ({"data": 3}, r"^data is a int; expected a seamfast.CleanSet$"),
        ({"model": {}}, r"^model is a dict; expected a torch.nn.Module$"),
        ({"time_budget_s": 0}, r"^time_budget_s is 0; expected a number of seconds above 0, or None$"),
        ({"precision": "fp8"}, r"^precision is 'fp8'; expected one of auto, fp32, bf16$"),
        ({"seed": -1}, r"^seed is -1; expected an integer in \[0, 2\*\*63\)$"),
    ],
)
def test_errors_say_what_came_and_what_is_expected(
    changes: dict[str, object], message: str, tiny_data: CleanSet, tiny_model: Make
) -> None:
    given = {"model": tiny_model(), "data": tiny_data, "trigger": Patch.square(2), "test": tiny_data} | changes
    with pytest.raises(InputError, match=message):
        reactivation(**given)  # type: ignore[arg-type]


def test_a_rate_that_breaks_the_model_is_no_success_rate_of_zero(tiny_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(ModelError, match=r"^the loss became (nan|inf); try a lower rate than 1e\+30$"):
        reactivation(model, tiny_data, Patch.square(2), tiny_data, rate=1e30)
