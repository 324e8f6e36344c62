"""Rules on what a cure leaves behind: their audits run where a rule names one, on the audit part, and not else."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seamfast import CleanSet
from seamfast.audits import AUDITS
from seamfast.errors import InputError
from seamfast.gating import pipeline
from seamfast.gating.decision import decide, metrics_of
from seamfast.gating.pipeline import GateResult, gate
from seamfast.gating.policy import METRICS, parse_policy
from tests.gating.conftest import POLICY
from tests.gating.examples import example
from tests.gating.test_schema import VALIDATOR

RULES = {
    "after.ece": (0.5, False),
    "class_accuracy_drop": (0.9, False),
    "after.adversarial_accuracy": (0.3, True),
    "after.membership_auc": (0.9, False),
    "reinjection_ratio": (0.001, True),
}


def with_rules(names: Any) -> str:
    rules = [
        f'[[rule]]\nid = "{name}"\nmetric = "{name}"\nthreshold = {threshold}\n'
        f"greater_is_better = {str(greater).lower()}\n"
        for name, (threshold, greater) in RULES.items()
        if name in names
    ]
    return POLICY.format(accuracy=0.8, least=100, inversion="false") + "\n".join(rules)


@pytest.fixture(scope="module")
def ruled(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> GateResult:
    path = tmp_path_factory.mktemp("ruled") / "gate.toml"
    path.write_text(with_rules(RULES))
    return gate(planted, "digits", policy=path, progress=False)


def test_each_rule_is_decided_by_its_audit(ruled: GateResult) -> None:
    VALIDATOR.validate(ruled.report)
    assert ruled.outcome == "pass", ruled.report["verdict"]
    found = ruled.report["sequela"]
    assert found["n_samples"] == ruled.report["data"]["n_audit"]
    assert set(found["audits"]) == {METRICS[name].audit for name in RULES}
    rules = {rule["id"]: rule for rule in ruled.report["policy"]["rules"]}
    figures = {name: {one["name"]: one for one in audited["figures"]} for name, audited in found["audits"].items()}
    expected = {
        "after.ece": figures["calibration"]["ece"]["after"],
        "class_accuracy_drop": figures["class_accuracy"]["largest_class_drop"]["change"],
        "after.adversarial_accuracy": figures["adversarial"]["accuracy_at_2/255"]["after"],
        "reinjection_ratio": figures["reinjection"]["steps_ratio"]["change"],
    }
    for name, figure in expected.items():
        assert rules[name]["value"] == figure["value"] is not None, name
    assert rules["after.ece"]["bound"] == figures["calibration"]["ece"]["after"]["high"]
    assert rules["after.adversarial_accuracy"]["bound"] == figures["adversarial"]["accuracy_at_2/255"]["after"]["low"]
    highest = max(one["after"]["high"] for name, one in figures["membership"].items() if name.endswith(".auc"))
    assert rules["after.membership_auc"]["bound"] == highest


def test_members_are_what_the_repair_trained_on(ruled: GateResult) -> None:
    members = ruled.report["sequela"]["audits"]["membership"]["after"]
    assert set(members) == {"clean"}
    assert members["clean"]["n_members"] == ruled.report["sanitize"]["data"]["n_recovery"]
    assert members["clean"]["n_outsiders"] == ruled.report["data"]["n_audit"]
    assert members["clean"]["n_shared"] == 0


@pytest.mark.usefixtures("sanitized_once")
def test_without_such_a_rule_nothing_runs(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any, **options: Any) -> Any:
        raise AssertionError("an audit ran")

    monkeypatch.setattr(pipeline, "sequela_of", never)
    path = tmp_path / "gate.toml"
    path.write_text(with_rules(()))
    report = gate(planted, "digits", policy=path, progress=False).report
    assert report["verdict"]["outcome"] == "pass"
    assert "sequela" not in report


@pytest.mark.usefixtures("sanitized_once")
def test_an_audit_that_fails_leaves_its_rule_inconclusive(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(given: Any) -> None:
        assert isinstance(given.data, CleanSet)
        raise InputError("samples of kind 'text' hold no floats")

    monkeypatch.setitem(AUDITS, "adversarial", replace(AUDITS["adversarial"], check=check))
    path = tmp_path / "gate.toml"
    path.write_text(with_rules(("after.adversarial_accuracy", "after.ece")))
    report = gate(planted, "digits", policy=path, progress=False).report
    VALIDATOR.validate(report)
    assert report["verdict"]["outcome"] == "inconclusive"
    (rule,) = (rule for rule in report["policy"]["rules"] if rule["id"] == "after.adversarial_accuracy")
    n = report["data"]["n_audit"]
    assert rule["reason"] == (
        f"after.adversarial_accuracy has no value, from {n} samples: samples of kind 'text' hold no floats"
    )
    assert "the audit 'adversarial' was left out: samples of kind 'text' hold no floats" in report["warnings"]


def test_neither_model_poisoned_is_no_ratio(ruled: GateResult) -> None:
    evidence = copy.deepcopy(ruled.report)
    for one in evidence["sequela"]["audits"]["reinjection"]["figures"]:
        if one["name"] == "steps_ratio":
            one["change"]["value"] = None
    policy = parse_policy(with_rules(("reinjection_ratio",)).encode())
    (outcome,) = (rule for rule in decide(policy, metrics_of(evidence)).rules if rule.id == "reinjection_ratio")
    assert outcome.outcome == "inconclusive"
    assert outcome.reason.endswith("another backdoor could be planted in neither model")


def test_a_report_without_them_has_none_of_their_metrics() -> None:
    assert not set(RULES) & set(metrics_of(example()))
    policy = parse_policy(with_rules(("after.ece",)).encode())
    assert policy.audits == ("calibration",)
    (outcome,) = (rule for rule in decide(policy, metrics_of(example())).rules if rule.id == "after.ece")
    assert (outcome.outcome, outcome.reason) == ("inconclusive", "after.ece was not measured")
