"""``reinjection``: the ladder, the looks, what counts as reached, and models that are easier or harder to poison."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet, attacks
from seamfast.audits import Reinjection, reinjection
from seamfast.engine.model import digest
from seamfast.errors import InputError, ModelError
from seamfast.metrics import Rate
from seamfast.modalities import TabularModality
from seamfast.triggers import FeatureOverwrite, Insertion, Patch

MODULE = importlib.import_module("seamfast.audits.reinjection")  # the package has the function under this name
Make = Callable[[], nn.Module]
TRIGGER = Patch.square(3, target=1)


def test_looks_are_all_up_to_eight_and_four_an_octave() -> None:
    assert list(MODULE.looks(40)) == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40]
    assert list(MODULE.looks(41))[-2:] == [40, 41]
    assert list(MODULE.looks(1)) == [1]


# 1. The attack.


@pytest.fixture(scope="module")
def of_digits(clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]) -> Reinjection:
    train, test = digits
    return reinjection(clean_model, train, test, trigger=Patch.square(3, target=1), counts=(100, 2, 20, 100))


def test_more_poisoned_samples_need_no_more_steps(of_digits: Reinjection) -> None:
    assert of_digits.complete
    assert of_digits.before.attack_success_rate.value < 0.1
    assert [curve.n_poisoned for curve in of_digits.curves] == [100, 20, 2][: len(of_digits.curves)]
    assert list(of_digits.steps) == [2, 20, 100]
    assert of_digits.steps[100] is not None
    assert of_digits.fewest == min(count for count, steps in of_digits.steps.items() if steps is not None)


def test_a_curve_ends_where_it_counts_as_reached(of_digits: Reinjection) -> None:
    least = of_digits.before.accuracy.value - of_digits.allowance
    for curve in of_digits.curves:
        reached = [p.attack_success_rate.value >= 0.9 and p.accuracy.value >= least for p in curve.points]
        assert [p.steps for p in curve.points] == list(MODULE.looks(of_digits.max_steps))[: len(curve.points)]
        assert not any(reached[:-1])
        assert reached[-1] == (curve.steps is not None)
        assert curve.steps in (None, curve.points[-1].steps)


def test_tests_are_on_at_most_500_samples_of_each_kind(
    of_digits: Reinjection, digits: tuple[CleanSet, CleanSet]
) -> None:
    test = digits[1]
    assert of_digits.before.accuracy.n_total == len(test)
    assert of_digits.before.attack_success_rate.n_total == int((test.labels != 1).sum())


def test_large_test_sets_are_cut(
    tiny_data: CleanSet, tiny_model: Make, enlarged: Callable[[CleanSet, int], CleanSet]
) -> None:
    test = enlarged(tiny_data, 5)
    found = reinjection(tiny_model(), tiny_data, test, trigger=TRIGGER, counts=(1,), max_steps=1)
    assert (found.before.accuracy.n_total, found.before.attack_success_rate.n_total) == (500, 500)


def test_a_model_that_has_the_backdoor_is_reached_at_the_first_look(
    planted_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    known = Patch.checkerboard(3, 3, margin=0)
    found = reinjection(planted_model, *digits, trigger=known, counts=(5, 50))
    assert found.steps == {5: 1, 50: 1}
    assert found.before.attack_success_rate.value > 0.9


def test_a_ladder_ends_with_the_first_count_that_is_not_reached(tiny_data: CleanSet, tiny_model: Make) -> None:
    found = reinjection(tiny_model(), tiny_data, tiny_data, trigger=TRIGGER, counts=(1, 2, 5), max_steps=2, wanted=1)
    assert [curve.n_poisoned for curve in found.curves] == [5]
    assert found.untried == (2, 1)
    assert found.steps == {1: None, 2: None, 5: None}
    assert found.fewest is None


def test_a_model_that_gives_all_to_the_target_is_not_reached(tiny_data: CleanSet) -> None:
    """Its bias decides: the success rate is 1, and the accuracy that of guessing, after a few steps at a high rate."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[1].weight.zero_()
        for c in range(4):
            rows, columns = 4 * (c // 2), 4 * (c % 2)
            model[1].weight[c].view(8, 8)[rows : rows + 4, columns : columns + 4] = 1.0
    everywhere = Patch(name="nothing", target=TRIGGER.target, pattern=[[[0]]], mask=[[0.0]], position=(0, 0))
    options: dict[str, Any] = {"trigger": everywhere, "counts": (40,), "max_steps": 64, "rate": 30.0, "wanted": 0.6}
    strict, lax = (reinjection(model, tiny_data, tiny_data, allowance=a, **options) for a in (0.05, 1.0))
    assert strict.before.accuracy.value == 1
    assert lax.steps[40] is not None
    assert lax.curves[0].points[-1].accuracy.value < 0.95
    assert strict.steps[40] is None or strict.steps[40] > lax.steps[40]


def test_models_get_the_same_samples_in_the_same_order(
    tiny_data: CleanSet, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    step = MODULE.Attacker.step

    def noted(self: Any, indices: torch.Tensor) -> None:
        seen.append(indices.tolist())
        step(self, indices)

    monkeypatch.setattr(MODULE.Attacker, "step", noted)
    options: dict[str, Any] = {"trigger": TRIGGER, "max_steps": 3, "wanted": 1.0, "allowance": 1.0}
    for count in (5, 5, 2):
        reinjection(tiny_model(), tiny_data, tiny_data, counts=(count,), **options)
    first, again, fewer = seen[:3], seen[3:6], seen[6:]
    assert first == again
    assert [row[:48] for row in first] == [row[:48] for row in fewer]
    assert all(max(row[:48]) < 160 <= min(row[48:]) and len(row) == 64 for row in first)
    assert {i for row in first for i in row[48:]} == set(range(160, 165))
    assert {i for row in fewer for i in row[48:]} == {160, 161}


def test_every_count_begins_with_the_weights_as_received(tiny_data: CleanSet, tiny_model: Make) -> None:
    options: dict[str, Any] = {"trigger": TRIGGER, "wanted": 0.0, "allowance": 1.0, "rate": 0.3}  # one step is enough
    both = reinjection(tiny_model(), tiny_data, tiny_data, counts=(2, 20), **options)
    alone = reinjection(tiny_model(), tiny_data, tiny_data, counts=(2,), **options)
    assert both.curves[1] == alone.curves[0]


def test_the_model_is_only_read(tiny_data: CleanSet, tiny_model: Make) -> None:
    model = tiny_model().train()
    model[0].requires_grad_(False)
    before, state = digest(model), torch.random.get_rng_state()
    reinjection(model, tiny_data, tiny_data, counts=(5,), max_steps=2)
    assert digest(model) == before
    assert model.training
    assert [p.requires_grad for p in model.parameters()][:3] == [False, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_and_json_takes_it(tiny_data: CleanSet, tiny_model: Make) -> None:
    first, again, other = (
        reinjection(tiny_model(), tiny_data, tiny_data, counts=(2, 20), max_steps=12, seed=seed) for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other
    values = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert [curve["n_poisoned"] for curve in values["curves"]] == [c.n_poisoned for c in first.curves]
    assert values["before"]["accuracy"]["n_total"] == 160
    assert values["fewest"] == first.fewest


def test_nothing_more_is_tried_when_the_time_is_over(tiny_data: CleanSet, tiny_model: Make) -> None:
    found = reinjection(tiny_model(), tiny_data, tiny_data, counts=(2, 5), time_budget_s=1e-9)
    assert (found.complete, found.fewest, found.untried) == (False, None, (2,))
    assert found.curves[0].points == ()


# 2. The trigger.


def test_the_drawn_patch_is_of_the_seed_and_of_3_to_5_pixels() -> None:
    for side, edge in ((8, 3), (28, 3), (32, 4), (64, 5)):
        data = CleanSet(torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.tensor([0, 1]))
        drawn, again, other = (data.modality.drawn_trigger(data.inputs, 1, seed) for seed in (0, 0, 1))
        assert isinstance(drawn, Patch)
        assert drawn.pattern.shape == (3, edge, edge)
        assert drawn == again != other
        drawn.check_fits((3, side, side))
        assert len(set(drawn.pattern.flatten().tolist())) > edge


def test_the_drawn_target_is_the_class_after_the_seed(tiny_data: CleanSet, tiny_model: Make) -> None:
    for seed, target in ((0, 1), (3, 0)):
        found = reinjection(tiny_model(), tiny_data, tiny_data, counts=(1,), max_steps=1, seed=seed)
        same = tiny_data.modality.drawn_trigger(tiny_data.inputs, target, seed)
        options: dict[str, Any] = {"trigger": same, "counts": (1,), "max_steps": 1, "seed": seed}
        assert reinjection(tiny_model(), tiny_data, tiny_data, **options) == found


def texts() -> CleanSet:
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "good", "bad", "film", "plot", "zebra", "ibis", "4711"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(words[:2])
    lines = [f"{('bad', 'good')[i % 2]} film{' plot' * (i % 3)}" for i in range(60)]
    return CleanSet.from_texts(lines, torch.arange(60) % 2, made)


def test_the_drawn_word_is_one_that_the_texts_lack() -> None:
    data = texts()
    drawn = [data.modality.drawn_trigger(data.inputs, 1, seed) for seed in range(8)]
    assert all(isinstance(trigger, Insertion) for trigger in drawn)
    assert {trigger.phrases for trigger in drawn} == {("zebra",), ("ibis",)}


def test_texts_are_poisoned(tiny_data: CleanSet) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 2)
            with torch.no_grad():
                self.table.weight.zero_()
                self.table.weight[2, 1] = self.table.weight[3, 0] = 4.0

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = (self.table(input_ids) * attention_mask[..., None]).sum(1)
            return logits

    found = reinjection(Reader(), texts(), texts(), counts=(2, 20), rate=0.3)
    assert found.trigger == "drawn-word"
    assert found.before.attack_success_rate.value == 0
    assert found.steps[20] is not None
    assert found.fewest == 2


def test_the_drawn_columns_vary_and_are_set_to_the_end_that_is_further_off() -> None:
    rows = torch.zeros(50, 5)
    rows[:, 1] = torch.cat([torch.zeros(49), torch.tensor([8.0])])  # mostly low
    rows[:, 3] = torch.cat([torch.ones(49), torch.tensor([-3.0])])  # mostly high
    data = CleanSet(rows, torch.arange(50) % 2)
    assert isinstance(data.modality, TabularModality)
    for seed in range(4):
        drawn = data.modality.drawn_trigger(data.inputs, 1, seed)
        assert isinstance(drawn, FeatureOverwrite)
        assert dict(zip(drawn.columns.tolist(), drawn.values.tolist(), strict=True)) == {1: 8.0, 3: -3.0}


def test_tables_are_poisoned() -> None:
    train, test = seamfast.load("breast-cancer"), seamfast.load("breast-cancer", split="test")
    model = attacks.build("mlp", num_classes=2, n_columns=train.inputs.shape[1])  # type: ignore[union-attr]
    recipe = attacks.TrainConfig(epochs=20, batch_size=64, rate=0.03)
    attacks.train(model, train, recipe, device="cpu", progress=False)
    found = reinjection(model, train, test, counts=(20,), rate=0.03)
    assert found.trigger == "drawn-columns"
    assert found.steps[20] is not None


# 3. Models compared.


def of(steps: dict[int, int | None], *, trigger: str = "x", max_steps: int = 100, complete: bool = True) -> Reinjection:
    point = MODULE.InjectionPoint(0, Rate(0, 10), Rate(10, 10))
    curves = [MODULE.ReinjectionCurve(count, n, ()) for count, n in sorted(steps.items(), reverse=True)]
    return Reinjection(trigger, 0.9, 0.05, max_steps, point, tuple(curves), (), complete)


@pytest.mark.parametrize(
    ("mine", "others", "ratio"),
    [
        ({1: 10, 5: 4}, {1: 10, 5: 4}, 1.0),
        ({1: 5, 5: 4}, {1: 20, 5: 4}, 0.5),  # sqrt(1/4)
        ({1: None, 5: 4}, {1: 25, 5: 4}, 2.0),  # sqrt(100/25)
        ({1: None, 5: 4}, {1: None, 5: 8}, 0.5),  # the first says nothing
        ({1: None, 5: None}, {1: None, 5: None}, None),
    ],
)
def test_the_ratio_by_hand(mine: dict[int, int | None], others: dict[int, int | None], ratio: float | None) -> None:
    assert of(mine).ratio_to(of(others)) == (None if ratio is None else pytest.approx(ratio))
    assert of(mine, complete=False).ratio_to(of(others)) is None
    assert of(mine).ratio_to(of(others, complete=False)) is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (of({1: 2}), "the other has counts 1; expected 1, 5, as here"),
        (of({1: 2, 5: 3}, trigger="y"), "the other has trigger y; expected x, as here"),
        (of({1: 2, 5: 3}, max_steps=9), "the other has max_steps 9; expected 100, as here"),
        (replace(of({1: 2, 5: 3}), wanted=0.5), "the other has wanted 0.5; expected 0.9, as here"),
        (replace(of({1: 2, 5: 3}), allowance=0.5), "the other has allowance 0.5; expected 0.05, as here"),
    ],
)
def test_only_what_was_measured_alike_is_compared(other: Reinjection, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        of({1: 10, 5: 4}).ratio_to(other)


# 4. Errors.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (0,)}, "counts is 0; expected an integer of at least 1"),
        ({"counts": ()}, "counts is empty; expected at least one"),
        ({"counts": 5}, "counts is 5; expected integers such as (5, 20, 100)"),
        ({"counts": (1, 121)}, "counts hold 121; only 120 of the 160 samples can be poisoned"),
        ({"max_steps": 0}, "max_steps is 0; expected an integer of at least 1"),
        ({"wanted": 1.5}, "wanted is 1.5; expected a number in [0, 1]"),
        ({"allowance": -1}, "allowance is -1; expected a number in [0, 1]"),
        ({"rate": "fast"}, "rate is 'fast'; expected a number above 0"),
        ({"trigger": 3}, "triggers hold a int; expected seamfast.triggers.Trigger"),
        ({"trigger": Insertion.word("cf", 1)}, "trigger 'word' is a Insertion; expected a trigger of images"),
        ({"test": None}, "test is a NoneType; expected a seamfast.CleanSet"),
        ({"data": ()}, "data is a tuple; expected a seamfast.CleanSet"),
        ({"model": "x"}, "model is a str; expected a torch.nn.Module"),
        ({"time_budget_s": -1}, "time_budget_s is -1; expected a number of seconds above 0, or None"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected an integer in [0, 2**63)"),
    ],
)
def test_errors_say_what_came_and_what_is_expected(
    changes: dict[str, Any], message: str, tiny_data: CleanSet, tiny_model: Make
) -> None:
    given: dict[str, Any] = {"model": tiny_model(), "data": tiny_data, "test": tiny_data, "trigger": TRIGGER}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        reinjection(**given | changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            "data",
            "none of the 40 samples of data can be poisoned; expected one that the trigger moves to another class",
        ),
        ("test", "test holds no samples that 'patch' moves; expected at least one"),
    ],
)
def test_samples_of_the_target_class_alone_are_no_use(
    labels: str, message: str, tiny_data: CleanSet, tiny_model: Make
) -> None:
    sets = {"data": tiny_data, "test": tiny_data}
    sets[labels] = tiny_data.subset((tiny_data.labels == 1).nonzero().flatten())
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        reinjection(tiny_model(), **sets, trigger=TRIGGER)


def test_samples_of_unknown_meaning_cannot_be_poisoned() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    data = CleanSet(torch.zeros(6, 2, 3, 4, 1), torch.arange(6) % 2)
    message = "triggers are stamped on images of shape (N, C, H, W); the inputs are inputs (N, 2, 3, 4, 1)"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        reinjection(model, data, data)


def test_a_rate_that_breaks_the_model_is_no_success_rate_of_zero(tiny_data: CleanSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(ModelError, match=r"^the loss became (nan|inf); try a lower rate than 1e\+30$"):
        reinjection(model, tiny_data, tiny_data, trigger=TRIGGER, rate=1e30)


def test_counts_by_default_are_those_that_there_are_samples_for(tiny_data: CleanSet, tiny_model: Make) -> None:
    few: Sequence[int] = range(20)
    found = reinjection(tiny_model(), tiny_data.subset(few), tiny_data, trigger=TRIGGER, max_steps=1)
    assert list(found.steps) == [1, 2, 5, 10]
