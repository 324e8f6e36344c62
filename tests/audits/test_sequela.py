"""``sequela``: each audit of both models, what is refused before any work, and what a time budget leaves out."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from seamfast import CleanSet, triggers
from seamfast.audits import (
    AUDITS,
    Sequela,
    adversarial_accuracy,
    calibration,
    membership,
    reactivation,
    reinjection,
    sequela,
)
from seamfast.errors import InputError
from seamfast.metrics import rate_difference

TARGET = 3  # of the planted model
CHEAP = ("calibration", "class_accuracy", "adversarial")


@pytest.fixture(scope="module")
def found(digits: tuple[CleanSet, CleanSet], planted_model: nn.Module, clean_model: nn.Module) -> Sequela:
    train, test = digits
    members = train.subset(range(300))
    return sequela(
        planted_model, clean_model, test, audits=[*CHEAP, "membership"], members=members, clean=train.subset(range(90))
    )


def test_each_audit_is_that_of_both_models(
    found: Sequela, digits: tuple[CleanSet, CleanSet], planted_model: nn.Module, clean_model: nn.Module
) -> None:
    _, test = digits
    assert list(found.audits) == [*CHEAP, "membership"]
    for when, model in (("before", planted_model), ("after", clean_model)):
        assert getattr(found.audits["calibration"], when).to_dict() == calibration(model, test).to_dict()
        assert getattr(found.audits["adversarial"], when).to_dict() == adversarial_accuracy(model, test).to_dict()


def test_membership_is_measured_by_set(
    found: Sequela, digits: tuple[CleanSet, CleanSet], planted_model: nn.Module
) -> None:
    train, test = digits
    compared = found.audits["membership"]
    assert list(compared.before) == ["training", "clean"]
    assert compared.before["clean"].to_dict() == membership(planted_model, train.subset(range(90)), test).to_dict()
    changes = {change.name: change for change in compared.changes}
    change = changes["training.loss.auc"]
    assert change.before.value == compared.before["training"].attacks["loss"].auc.value
    assert change.change.value == pytest.approx(change.after.value - change.before.value)
    assert change.before.n == 300  # members, and 359 outsiders
    assert "training.loss.tpr_at_1_percent" in changes
    assert "training.loss.tpr_at_0_1_percent" not in changes  # 359 outsiders cannot tell


def test_an_attacker_trains_copies_of_both(
    digits: tuple[CleanSet, CleanSet], planted_model: nn.Module, clean_model: nn.Module
) -> None:
    train, test = digits
    clean, trigger = train.subset(range(100)), triggers.Patch.checkerboard(3, TARGET, margin=0)
    names = ["reinjection", "reactivation"]
    found = sequela(planted_model, clean_model, test, audits=names, clean=clean, triggers=[trigger], seed=5)
    injected, activated = (found.audits[name] for name in names)
    assert injected.before.to_dict() == reinjection(planted_model, clean, test, seed=5).to_dict()
    assert activated.after.to_dict() == reactivation(clean_model, clean, trigger, test, seed=5).to_dict()
    changes = {change.name: change for compared in found.audits.values() for change in compared.changes}
    assert changes["steps_ratio"].change.value == injected.after.ratio_to(injected.before)
    fewest = changes["fewest_poisoned"]
    assert (fewest.before.value, fewest.after.value) == (injected.before.fewest, injected.after.fewest)
    assert {name for name in changes if name.startswith("steps_with_")} == {
        f"steps_with_{count}" for count in injected.before.steps
    }
    success = changes["attack_success_rate_retrained"]
    assert success.before.value == activated.before.asr_after.value > 0.9
    assert success.change == rate_difference(activated.before.asr_after, activated.after.asr_after)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    with pytest.raises(InputError, match="audits hold 'reactivation', which lacks triggers; expected triggers="):
        sequela(planted_model, clean_model, test, audits=names, clean=clean)


def test_changes_are_after_less_before(found: Sequela) -> None:
    for compared in found.audits.values():
        for change in compared.changes:
            if change.name == "largest_class_drop":
                assert (change.before, change.after) == (None, None)
                continue
            assert change.change.value == pytest.approx(change.after.value - change.before.value)


def test_a_model_and_itself_differ_in_nothing(digits: tuple[CleanSet, CleanSet], clean_model: nn.Module) -> None:
    again = sequela(clean_model, clean_model, digits[1].subset(range(60)), audits=CHEAP)
    values = {change.name: change.change.value for compared in again.audits.values() for change in compared.changes}
    assert set(values.values()) == {0.0}


def test_it_is_strict_json_and_a_table(found: Sequela) -> None:
    values = found.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert (values["n_samples"], values["level"], values["seed"], values["left_out"]) == (359, 0.95, 0, [])
    lines = str(found).splitlines()
    assert lines[0].split("  ")[-1].strip() == "change"
    assert sum(line.startswith("calibration: ") for line in lines) == 3
    assert len({len(line) for line in lines[:4]}) == 1


def test_models_are_left_as_they_were(digits: tuple[CleanSet, CleanSet]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    sequela(model, model, digits[1].subset(range(30)), audits=CHEAP)
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"audits": ["membership"]},
            "audits hold 'membership', which lacks members; expected members= or clean=",
        ),
        ({"audits": ["reinjection"]}, "audits hold 'reinjection', which lacks clean; expected clean="),
        ({"audits": ["privacy"]}, f"audits hold 'privacy'; expected names in {', '.join(AUDITS)}"),
        ({"audits": [3]}, f"audits hold 3; expected names in {', '.join(AUDITS)}"),
        ({"audits": "calibration"}, f"audits is 'calibration'; expected names in {', '.join(AUDITS)}"),
        ({"members": [1]}, "members is a list; expected a seamfast.CleanSet"),
        ({"time_budget_s": 0}, "time_budget_s is 0; expected a number of seconds above 0, or None"),
        ({"level": 2}, "level is 2; expected a number in (0, 1)"),
    ],
)
def test_what_is_refused_before_any_work(
    options: dict[str, Any], message: str, digits: tuple[CleanSet, CleanSet]
) -> None:
    class Untouched(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model was run")

    with pytest.raises(InputError, match=re.escape(message)):
        sequela(Untouched(), Untouched(), digits[1], **options)


def test_data_that_an_audit_cannot_use_is_refused_before_any_work() -> None:
    data = CleanSet({"input_ids": torch.arange(12).view(3, 4)}, torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="samples of kind 'text' hold no floats; expected images or floats"):
        sequela(nn.Identity(), nn.Identity(), data, audits=["calibration", "adversarial"])


def test_images_that_cannot_be_stamped_are_refused_before_any_work() -> None:
    data = CleanSet(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match="triggers are stamped in pixel space, before normalization"):
        sequela(nn.Identity(), nn.Identity(), data, clean=data, audits=["calibration", "reinjection"])


@pytest.mark.parametrize("name", ["received", "sanitized"])
def test_what_is_no_model_is_refused(name: str, digits: tuple[CleanSet, CleanSet], clean_model: nn.Module) -> None:
    models = {"received": clean_model, "sanitized": clean_model, name: {}}
    with pytest.raises(InputError, match=f"{name} is a dict; expected a torch.nn.Module"):
        sequela(**models, data=digits[1])


def test_what_the_time_does_not_suffice_for_is_left_out(
    digits: tuple[CleanSet, CleanSet], clean_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock is a second: an audit takes two, and the second one would end after the budget."""
    seconds = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(sys.modules["seamfast.audits.sequela"], "time", clock)
    data = digits[1].subset(range(30))
    names = ("class_accuracy", "calibration", "adversarial")
    found = sequela(clean_model, clean_model, data, audits=names, time_budget_s=7.5)
    assert list(found.audits) == ["class_accuracy"]
    assert found.left_out == {
        "calibration": "the time budget did not suffice: the received model alone took 1.0 s",
        "adversarial": "the time budget was used up",
    }
    assert "left out: adversarial: the time budget was used up" in str(found).splitlines()
    assert found.to_dict()["left_out"][0]["audit"] == "calibration"
