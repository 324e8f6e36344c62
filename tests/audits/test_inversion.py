"""``invert_triggers``: what it finds in a planted model and not in its clean twin, and how it stops."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seamfast import CleanSet
from seamfast.audits import inversion as module
from seamfast.audits import invert_triggers
from seamfast.audits.inversion import Inversion, anomaly_index
from seamfast.errors import InputError, ModelError

Make = Callable[[], nn.Module]

TARGET = 3


@pytest.fixture(scope="module")
def planted(planted_model: nn.Module, digits: tuple[CleanSet, CleanSet]) -> Inversion:
    return invert_triggers(planted_model, digits[1], steps=200)


def test_the_target_class_of_a_planted_model_has_the_smallest_mask(
    planted: Inversion, clean_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    clean = invert_triggers(clean_model, digits[1], steps=200)
    assert (planted.suspect, planted.complete, planted.steps) == (TARGET, True, 200)
    assert planted.anomaly_index is not None
    assert clean.anomaly_index is not None
    assert planted.anomaly_index > max(2, clean.anomaly_index)
    assert planted.classes[TARGET].mask_share < 0.75 * clean.classes[TARGET].mask_share
    assert [found.label for found in planted.classes] == list(range(10))


def test_the_found_mask_lies_where_the_trigger_does(planted: Inversion) -> None:
    mask = planted.classes[TARGET].mask
    assert mask[5:, 5:].mean() > 3 * mask[:5, :5].mean()


def test_what_was_found_works_when_stamped_by_hand(
    planted: Inversion, planted_model: nn.Module, digits: tuple[CleanSet, CleanSet]
) -> None:
    test = digits[1]
    assert isinstance(test.inputs, Tensor)
    for found in planted.classes:
        assert found.mask.shape == (8, 8)
        assert found.mask.dtype == torch.float32
        assert found.pattern.shape == (1, 8, 8)
        assert found.pattern.dtype == torch.uint8
        assert found.mask_share == pytest.approx(float(found.mask.mean()))
        others = test.inputs[test.labels != found.label]
        stamped = ((1 - found.mask) * others + found.mask * found.pattern).round()
        with torch.no_grad():
            rate = (planted_model(stamped / 255).argmax(1) == found.label).float().mean()
        assert found.reached
        assert found.success.value == pytest.approx(float(rate), abs=0.1)
        assert 130 < found.success.n_total < 179  # the half that was not used, less the class's own


def test_a_reached_class_keeps_the_smallest_mask_that_sufficed(tiny_model: Make, tiny_data: CleanSet) -> None:
    few, many = (invert_triggers(tiny_model(), tiny_data, steps=steps) for steps in (20, 200))
    for a, b in zip(few.classes, many.classes, strict=True):
        assert b.reached
        assert b.mask_share < 0.8 * a.mask_share
        assert b.success.value is not None
        assert b.success.value > 0.85


def test_the_seed_decides(tiny_model: Make, tiny_data: CleanSet) -> None:
    state = torch.get_rng_state()
    first, again, other = (invert_triggers(tiny_model(), tiny_data, steps=12, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(first.classes, again.classes, strict=True))
    assert all(torch.equal(a.pattern, b.pattern) for a, b in zip(first.classes, again.classes, strict=True))
    assert not torch.equal(first.classes[0].mask, other.classes[0].mask)


def test_the_model_stays_as_it_is(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model().train()
    before = copy.deepcopy(model.state_dict())  # of batch normalization too
    invert_triggers(model, tiny_data, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(part.training for part in model.modules())


def test_groups_of_classes_find_what_all_classes_in_one_batch_find(
    tiny_model: Make, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = invert_triggers(tiny_model(), tiny_data, steps=15)
    monkeypatch.setattr(module, "_GROUP_IMAGES", 3 * 16)  # three classes, and one
    parts = invert_triggers(tiny_model(), tiny_data, steps=15)
    assert [found.label for found in parts.classes] == [0, 1, 2, 3]
    for a, b in zip(whole.classes, parts.classes, strict=True):
        torch.testing.assert_close(a.mask, b.mask, atol=1e-3, rtol=1e-3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second goes by between two looks at the clock."""
    now = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))


@pytest.mark.usefixtures("clock")
def test_it_stops_with_what_it_has(tiny_model: Make, tiny_data: CleanSet) -> None:
    stopped = invert_triggers(tiny_model(), tiny_data, steps=50, time_budget_s=10)
    assert not stopped.complete
    assert 5 < stopped.steps < 10
    assert len(stopped.classes) == 4


@pytest.mark.usefixtures("clock")
def test_classes_that_were_not_begun_are_left_out(
    tiny_model: Make, tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GROUP_IMAGES", 16)  # a class at a time
    stopped = invert_triggers(tiny_model(), tiny_data, steps=50, time_budget_s=3.5)
    assert [found.label for found in stopped.classes] == [0, 1]
    assert (stopped.complete, stopped.steps) == (False, 0)


def test_a_class_that_nothing_reaches_is_no_suspect(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model()
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[2] = -1e6
    found = invert_triggers(model, tiny_data, steps=60)
    assert [trigger.reached for trigger in found.classes] == [True, True, False, True]
    assert found.classes[2].success.n_hit == 0
    others = [trigger.success.n_total for trigger in found.classes]
    assert sum(others) == 3 * 80  # each of the half that was not used is of three other classes
    assert found.suspect != 2
    assert found.anomaly_index is None  # of four classes


class Broken(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * torch.nan  # type: ignore[no-any-return]


def test_nan_reaches_no_class_and_leaves_no_trace_in_the_masks(tiny_model: Make, tiny_data: CleanSet) -> None:
    found = invert_triggers(Broken(tiny_model()), tiny_data, steps=6)
    assert found.suspect is None
    for trigger in found.classes:
        assert not trigger.reached
        assert trigger.success.n_hit == 0
        assert trigger.mask.isfinite().all()
        assert trigger.n_not_finite == 6 * 16 + trigger.success.n_total  # a batch a step, and the test


class LostOnTheWayTo(nn.Module):
    """NaN wherever the inner model gives an image that is not of the data to ``target``: no search gets there."""

    def __init__(self, inner: nn.Module, target: int) -> None:
        super().__init__()
        self.inner, self.target = inner, target

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        changed = (images * 255).frac().abs().amax((1, 2, 3)) > 0.01
        lost = changed & (logits.argmax(1) == self.target)
        return torch.where(lost[:, None], torch.nan, logits)


def test_a_class_whose_search_meets_nan_makes_no_index_smaller(
    planted_model: nn.Module, planted: Inversion, digits: tuple[CleanSet, CleanSet]
) -> None:
    """The target's mask would count as a whole image: nine others, and nothing that stands out."""
    found = invert_triggers(LostOnTheWayTo(planted_model, TARGET), digits[1], steps=40)
    assert planted.anomaly_index is not None
    assert all(trigger.n_not_finite == 0 for trigger in planted.classes)
    assert found.classes[TARGET].n_not_finite > 0
    assert not found.classes[TARGET].reached
    shares = [trigger.mask_share if trigger.reached else 1.0 for trigger in found.classes]
    assert anomaly_index(shares) is not None  # what would be reported if NaN were no outcome of its own
    assert found.anomaly_index is None


class BlockedOnTheWayTo(nn.Module):
    """The inner model's logits, with a gradient of NaN wherever they give an image to ``target``."""

    def __init__(self, inner: nn.Module, target: int) -> None:
        super().__init__()
        self.inner, self.target = inner, target

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        blocked = logits.argmax(1) == self.target
        none = (images - images.detach()).flatten(1).sum(1).abs().sqrt()  # 0, with the slope 0 * Inf
        return logits + torch.where(blocked, none, 0.0)[:, None]


def test_a_gradient_that_is_not_finite_is_no_step(tiny_model: Make, tiny_data: CleanSet) -> None:
    plain = invert_triggers(tiny_model(), tiny_data, steps=30)
    found = invert_triggers(BlockedOnTheWayTo(tiny_model(), 2), tiny_data, steps=30)
    assert (plain.complete, plain.steps) == (True, 30)
    assert not found.complete
    assert found.steps < 30
    assert all(trigger.n_not_finite == 0 and trigger.mask.isfinite().all() for trigger in found.classes)


def test_anomaly_index_by_hand() -> None:
    """Median 10; distances 9, 1, 0, 1, 2 have the median 1."""
    assert anomaly_index([1, 9, 10, 11, 12]) == pytest.approx(9 / 1.4826)
    assert anomaly_index([10, 9, 10, 11, 30]) == pytest.approx(1 / 1.4826)  # only downwards


@pytest.mark.parametrize("sizes", [[], [1, 2, 3, 4], [1, 5, 5, 5, 5]])
def test_no_anomaly_index_where_there_is_no_spread_to_speak_of(sizes: list[float]) -> None:
    assert anomaly_index(sizes) is None


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.inner(images.flatten(1))
        return logits


def test_wrong_arguments(tiny_model: Make, tiny_data: CleanSet) -> None:
    model = tiny_model()
    of_one = tiny_data.subset((tiny_data.labels == 2).nonzero().flatten())
    for arguments, options, kind, message in (
        ((model, tiny_data), {"steps": 0}, InputError, "steps is 0; expected an integer of at least 1"),
        ((model, tiny_data), {"seed": 0.5}, InputError, "seed is 0.5; expected an integer in [0, 2**63)"),
        (
            (model, tiny_data),
            {"time_budget_s": 0},
            InputError,
            "time_budget_s is 0; expected a number of seconds above 0, or None",
        ),
        ((model, of_one), {}, InputError, "data holds one class only (2); expected at least two"),
        (
            (Detached(), tiny_data),
            {},
            ModelError,
            "the model's logits have no gradient; expected a model that can be differentiated",
        ),
    ):
        with pytest.raises(kind, match=f"^{re.escape(message)}$"):
            invert_triggers(*arguments, **options)
