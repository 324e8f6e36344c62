"""Whether a model is better than guessing, and the cause that is named if it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.engine.counting import Counts
from seamfast.guessing import accuracy_of_guessing, is_better_than_guessing, likely_cause

Make = Callable[[], nn.Module]
LABELS = torch.arange(120) % 4


def counts(answers: Tensor, labels: Tensor = LABELS) -> Counts:
    right = labels[answers == labels].bincount(minlength=4).tolist()
    return Counts(tuple(right), tuple(labels.bincount(minlength=4).tolist()), int((answers < 0).sum()), answers, labels)


def test_accuracy_of_guessing() -> None:
    assert accuracy_of_guessing(counts(LABELS)) == 0.25
    assert accuracy_of_guessing(counts(torch.full((120,), 2))) == 0.25
    skewed = torch.where(torch.arange(120) < 90, 1, LABELS)
    constant = counts(torch.ones(120, dtype=torch.int64), skewed)
    assert accuracy_of_guessing(constant) == constant.accuracy > 0.75
    assert not is_better_than_guessing(constant)
    assert is_better_than_guessing(counts(skewed, skewed))


def test_a_few_right_answers_are_not_better_than_guessing() -> None:
    drawn = torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(0))
    assert not is_better_than_guessing(counts(drawn))
    assert is_better_than_guessing(counts(torch.where(torch.arange(120) < 40, LABELS, drawn)))
    assert not is_better_than_guessing(counts(torch.full((120,), -1)))  # rows of NaN


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        (
            torch.where(torch.arange(120) < 10, LABELS, 3),
            "class 3 takes 93% of the predictions: check the normalization",
        ),
        (
            (LABELS + 1) % 4,
            "with its classes renamed (0 is 3, 1 is 0, 2 is 1, ...), the model would be right on 100%: check the class "
            "order",
        ),
        (
            torch.where(LABELS == 0, 1 + torch.arange(120) // 8 % 2, torch.tensor([0, 0, 3, 3])[LABELS]),
            "check normalization and class order, or give more clean data",  # two answers for one class: no renaming
        ),
        (
            torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(0)),
            "check normalization and class order, or give more clean data",
        ),
    ],
)
def test_causes(answers: Tensor, cause: str) -> None:
    assert likely_cause(counts(answers)) == cause


def test_a_renaming_is_judged_on_other_samples_than_it_was_found_on() -> None:
    """One sample a class: any answers can be renamed to fit them."""
    labels = torch.arange(40)
    assert (
        likely_cause(counts(labels.roll(1), labels)) == "check normalization and class order, or give more clean data"
    )


class CannotBeTrained(nn.Module):
    """Its classes are one off; raises in train mode, or wherever grads are taken."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        logits: Tensor = self.inner(images)
        return logits.roll(1, 1)


class Steps(seamfast.Callback):
    n = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.n += 1


def test_a_model_that_guesses_is_refused_before_any_training(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Not even a trial of precisions runs; a model that does not guess shows that the probe works."""
    steps = Steps()
    result = seamfast.sanitize(CannotBeTrained(tiny_model()), tiny_data, callbacks=[steps])
    assert (steps.n, result.outcome, result.accepted) == (0, "refused", False)
    assert result.reason.endswith(
        ": with its classes renamed (0 is 3, 1 is 0, 2 is 1, ...), the model would be right on 100%: check the class "
        "order; the model is returned as received"
    )
    run, checks = result.report["run"], result.report["verdict"]["checks"]
    assert (run["steps"], run["n_attempts"], run["precision"]["trials"]) == ({}, 0, [])
    assert result.report["model"]["returned"] == "received"
    assert {check["name"]: check["passed"] for check in checks} == {
        "better than guessing": False,
        "completed": None,
        "recovery not cut short": None,
        "held-out samples not augmented": True,
        "accuracy within its budget": None,
        "bound on the loss within its limit": None,
    }
    right = CleanSet(tiny_data.inputs, (tiny_data.labels + 1) % 4, mean=0.4, std=0.25)
    with pytest.raises(AssertionError):
        seamfast.sanitize(CannotBeTrained(tiny_model()), right)


def test_all_clean_samples_are_asked_before_a_model_is_refused(tiny_model: Make, tiny_data: CleanSet) -> None:
    """Two held-out samples say nothing; the ten others say that it is right."""
    few = tiny_data.subset(range(12))
    report = seamfast.sanitize(tiny_model(), few, config=seamfast.SeamConfig(recover_max_steps=1)).report
    assert report["run"]["stopped"] is None
    assert report["data"]["n_holdout"] == 4
