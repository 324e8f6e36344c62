"""``sanitize(audits=...)``: what a cure leaves behind, in the report; the cure itself stays the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from torch import nn

import seamfast
from seamfast import Callback, CleanSet, Report, SeamConfig
from seamfast.audits import AUDITS, sequela
from seamfast.engine.model import digest
from seamfast.errors import InputError, ModelError, SanitizeInterrupted
from seamfast.report import schema
from seamfast.triggers import Patch

SHORT = SeamConfig(forget_max_steps=4, recover_max_steps=6, recover_eval_every=3, strengths=(1.0,), batch_size=32)
NAMES = tuple(AUDITS)


class StopAtOnce(Callback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class Untrained(Callback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise AssertionError("the run began")


def valid(report: Report) -> Report:
    jsonschema.Draft202012Validator(schema()).validate(report)
    assert Report.from_json(report.to_json()) == report
    return report


def instead(monkeypatch: pytest.MonkeyPatch, measure: Callable[[nn.Module, Any], Any]) -> None:
    """``"calibration"`` measures like this."""
    monkeypatch.setitem(AUDITS, "calibration", replace(AUDITS["calibration"], measure=measure))


def test_the_report_holds_each_audit_of_both_models(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    model, clean, holdout = tiny_model(), tiny_data.subset(range(100)), tiny_data.subset(range(100, 160))
    received, trigger = digest(model), Patch.square(2)
    result = seamfast.sanitize(
        model, clean, holdout=holdout, config=SHORT, triggers=[trigger], audits=NAMES, seed=3, precision="fp32"
    )
    report = valid(result.report)
    found = sequela(
        model, result.model, holdout, audits=NAMES, clean=clean, triggers=[trigger], seed=3, device="cpu"
    ).to_dict()
    assert report["sequela"]["n_samples"] == 60
    assert list(report["sequela"]["audits"]) == list(NAMES)
    for name, audit in report["sequela"]["audits"].items():
        assert {**audit, "seconds": 0} == {**found["audits"][name], "seconds": 0}, name
    assert list(report["sequela"]["audits"]["membership"]["before"]) == ["clean"]
    assert report["sequela"]["left_out"] == []
    assert 0 < report["run"]["seconds"]["audits"] < report["run"]["seconds"]["total"]
    assert digest(model) == received


def test_audits_change_nothing_else(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    options: dict[str, Any] = {"config": SHORT, "deterministic": True}
    plain = valid(seamfast.sanitize(tiny_model(), tiny_data, **options).report)
    audited = valid(seamfast.sanitize(tiny_model(), tiny_data, audits=NAMES[:4], **options).report)
    assert "sequela" not in plain
    assert "audits" not in plain["run"]["seconds"]
    for name in ("verdict", "model", "holdout", "data", "warnings"):
        assert audited[name] == plain[name]


def test_what_is_asked_for_wrongly_is_refused_before_the_run(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    messages = {
        ("privacy",): f"audits hold 'privacy'; expected names in {', '.join(AUDITS)}",
        ("reactivation",): "audits hold 'reactivation', which lacks triggers; expected triggers=",
    }
    for names, message in messages.items():
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, audits=names, callbacks=[Untrained()])


def test_a_run_that_was_stopped_leaves_them_out(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, audits=["calibration"], callbacks=[StopAtOnce()])
    report = valid(result.report)
    why = f"the model is returned as received: {report['run']['stopped']}"
    assert report["sequela"]["audits"] == {}
    assert report["sequela"]["left_out"] == [{"audit": "calibration", "why": why}]
    assert f"the audit 'calibration' was left out: {why}" in report["warnings"]


def test_an_audit_that_fails_does_not_cost_the_model(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: nn.Module, given: Any) -> Any:
        raise ModelError("the loss became nan; try a lower rate than 0.01")

    instead(monkeypatch, fails)
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, audits=["calibration", "class_accuracy"])
    assert result.report["model"]["returned"] == "sanitized"
    assert list(valid(result.report)["sequela"]["audits"]) == ["class_accuracy"]
    warning = "the audit 'calibration' was left out: the loss became nan; try a lower rate than 0.01"
    assert warning in result.report["warnings"]
    with pytest.raises(ModelError, match="the loss became nan"):
        sequela(tiny_model(), result.model, tiny_data, audits=["calibration"])


def test_audits_take_what_the_cure_leaves_of_the_time(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the cure leaves nothing, by a clock that the last step sets forward."""

    class Late(Callback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run = sys.modules["seamfast.engine.run"]
            elapsed = run.Clock.elapsed
            monkeypatch.setattr(run.Clock, "elapsed", lambda clock: elapsed(clock) + 1000)

    def never(model: nn.Module, given: Any) -> Any:
        raise AssertionError("there was no time")

    instead(monkeypatch, never)
    result = seamfast.sanitize(
        tiny_model(), tiny_data, config=SHORT, audits=["calibration"], time_budget_s=1000, callbacks=[Late()]
    )
    warning = "the audit 'calibration' was left out: the time budget was used up"
    assert warning in valid(result.report)["warnings"]


def test_an_interrupt_in_the_audits_leaves_the_report_of_the_run(
    tiny_model: Callable[[], nn.Module], tiny_data: CleanSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(model: nn.Module, given: Any) -> Any:
        raise KeyboardInterrupt

    instead(monkeypatch, interrupted)
    with pytest.raises(SanitizeInterrupted, match=r"^interrupted in the audits$") as caught:
        seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, audits=["calibration"])
    assert caught.value.report is not None
    assert "sequela" not in valid(caught.value.report)
