"""A model whose answers are NaN under a trigger of the battery does not pass, and the report says so everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.gating import pipeline
from seamfast.gating.audit import audit
from seamfast.gating.decision import decide, metrics_of, not_finite
from seamfast.gating.documents.cyclonedx import as_bom
from seamfast.gating.documents.html import as_html
from seamfast.gating.documents.markdown import as_markdown
from seamfast.gating.documents.sarif import as_sarif
from seamfast.gating.pipeline import GateResult, gate
from seamfast.gating.policy import TEMPLATE, AuditSettings, parse_policy
from seamfast.gating.report import _statements
from seamfast.models.folder import load_model, save_model
from tests.gating.conftest import DESCRIPTION
from tests.gating.examples import example
from tests.gating.test_schema import VALIDATOR
from tests.hostile.not_finite import rewire

BATTERY_ONLY = """
version = 1
name = "battery"
[sanitize]
method = "{method}"
[audit]
inversion = false
[[rule]]
id = "battery"
metric = "after.battery_worst"
threshold = 0.3
greater_is_better = false
"""
METHODS = ("fine_tune", "super_fine_tune")
AS_TEMPLATE = TEMPLATE.replace('method = "seam" ', 'method = "{method}" ').replace("\npreset = ", "\n# preset = ")


@pytest.fixture(scope="module")
def overflowing(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with finite weights; most answers are NaN under the battery's corner patch, none without it."""
    model = load_model(planted)[0]
    images = seamfast.load("digits", split="train").inputs
    assert isinstance(model, nn.Sequential)
    assert isinstance(images, Tensor)
    folder = tmp_path_factory.mktemp("overflowing")
    save_model(folder, rewire(model, images), DESCRIPTION)
    return folder


def run(folder: Path, tmp_path: Path, text: str, method: str) -> GateResult:
    policy = tmp_path / "gate.toml"
    policy.write_text(text.replace("{method}", method).replace("inversion = true", "inversion = false"))
    return gate(folder, "digits", policy=policy, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize("text", [BATTERY_ONLY, AS_TEMPLATE], ids=["battery alone", "template"])
@pytest.mark.parametrize("method", METHODS)
def test_what_overflows_under_the_battery_does_not_pass(
    text: str, method: str, overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights stay as received, as a method leaves those that no clean sample gives a gradient."""
    real = pipeline.sanitize

    def untouched(received: nn.Module, *given: Any, **options: Any) -> Any:
        return replace(real(received, *given, **options), model=copy.deepcopy(received))

    monkeypatch.setattr(pipeline, "sanitize", untouched)
    result = run(overflowing, tmp_path, text, method)
    report = result.report
    assert (result.outcome, result.exit_code, result.model) == ("fail", 1, None)
    assert not (tmp_path / "out" / "sanitized").exists()
    VALIDATOR.validate(report)
    n = report["data"]["n_audit"]
    corner = report["audit"]["after"]["battery"][0]
    assert (corner["name"], report["audit"]["after"]["n_not_finite"]) == ("patch-corner", 0)
    assert corner["n_not_finite"] > 0.7 * n
    share = f"{corner['n_not_finite']} of {n} ({corner['n_not_finite'] / n:.1%})"
    lost = f"sanitized model: {share} samples under patch-corner have no finite answer, which counts as moved"
    assert lost in report["statements"]
    failed = {rule["id"] for rule in report["policy"]["rules"] if rule["outcome"] == "fail"}
    assert {"battery", "finite"} & {rule["id"] for rule in report["policy"]["rules"]} <= failed


@pytest.mark.parametrize("method", METHODS)
def test_no_method_passes_while_answers_are_lost(method: str, overflowing: Path, tmp_path: Path) -> None:
    result = run(overflowing, tmp_path, BATTERY_ONLY, method)
    report = result.report
    assert next(one.name for one in not_finite(report, "before") if one.kind == "battery") == "patch-corner"
    assert report["sanitize"]["verdict"]["accepted"]
    kept = [one for one in not_finite(report, "after") if one.kind == "battery"]
    assert (result.exit_code == 0) is not bool(kept)


def lost_in(part: str) -> dict[str, Any]:
    """The example of a pass, with answers of the sanitized model lost in one of the audits."""
    report = example()
    after = report["audit"]["after"]
    where = {
        "clean": after,
        "battery": after["battery"][1],
        "inversion": after["inversion"]["classes"][4],
    }
    if part == "disagreement":
        report["disagreement"][2]["n_not_finite_sanitized"] = 1
    else:
        where[part]["n_not_finite"] = 1
    return report


@pytest.mark.parametrize("part", ["clean", "battery", "inversion", "disagreement"])
def test_one_lost_answer_anywhere_fails_the_template(part: str) -> None:
    policy = parse_policy(TEMPLATE.encode())
    assert decide(policy, metrics_of(example())).outcome == "pass"
    report = lost_in(part)
    metrics = metrics_of(report)
    assert (metrics["after.finite"].value, metrics["before.finite"].value) == (0.0, 1.0)
    decision = decide(policy, metrics)
    assert [(rule.id, rule.reason) for rule in decision.rules if rule.outcome == "fail"] == [
        ("finite", "after.finite is false; expected true")
    ]
    assert [(one.kind, one.n_not_finite) for one in not_finite(report, "after")] == [(part, 1)]
    assert not_finite(report, "before") == []


def test_one_lost_answer_of_the_received_model_is_before() -> None:
    report = example()
    report["disagreement"][0]["n_not_finite_received"] = 3
    report["audit"]["before"]["n_not_finite"] = 2
    metrics = metrics_of(report)
    assert (metrics["after.finite"].value, metrics["before.finite"].value) == (1.0, 0.0)
    assert [one.share for one in not_finite(report, "before")] == [2 / 500, 3 / 500]


def test_statements_name_what_was_lost() -> None:
    report = example()
    after = report["audit"]["after"]
    after |= {"n_not_finite": 5, "n_not_repeated": 10}
    after["battery"][2]["n_not_finite"] = 350
    after["battery"][3] |= {"n_not_finite": 20}
    after["inversion"]["anomaly_index"] = None
    for label in (4, 7):
        after["inversion"]["classes"][label]["n_not_finite"] = 9
    report["disagreement"][1]["n_not_finite_sanitized"] = 1
    lines = _statements(report, 0.95)
    assert [line for line in lines if line.startswith("model as received")] == lines[:2]
    assert lines[2:6] == [
        "sanitized model: 5 of 500 (1.0%) clean samples have no finite answer, which counts as wrong",
        "sanitized model: 350 of 500 (70.0%) samples under sinusoid have no finite answer, which counts as moved",
        "sanitized model: 1 of 500 (0.2%) samples perturbed by faint noise have no finite answer, which counts as "
        "disagreement",
        "sanitized model: 10 of 500 clean samples get another answer when they are asked again in other batches, which "
        "counts as wrong; other audits ask once",
    ]
    assert lines[7] == (
        "sanitized model: trigger inversion met answers that are not finite in its search for 2 of 10 classes (4, 7), "
        "so it has no anomaly index"
    )


# The audit asks twice.


class Shifting(nn.Module):
    """Right where a batch has more than 100 images, one class further in smaller ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits if len(images) > 100 else logits.roll(1, 1)


class Chance(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) + 50 * torch.randn(len(images), 4)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """The two largest logits lie closer than rounding, and change their order with the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits = 10 * nn.functional.one_hot(self.inner(images).argmax(1), 4).float()
        other = logits.roll(1, 1) * (1 + 1e-6 * (1 if len(images) > 100 else -1))
        return logits + other


class Infinite(nn.Module):
    """Right by argmax, since the largest logit is infinite."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits.masked_fill(logits == logits.amax(1, keepdim=True), torch.inf)


@pytest.mark.parametrize("kind", [Shifting, Chance, Infinite, Tied])
def test_what_is_not_repeated_or_not_finite_is_not_right(
    kind: type[nn.Module], tiny_model: Callable[[], nn.Module], tiny_data: CleanSet
) -> None:
    settings = AuditSettings(inversion=False)
    plain = audit(tiny_model(), tiny_data, settings)
    assert (plain.values["n_not_finite"], plain.values["n_not_repeated"]) == (0, 0)
    assert plain.is_right.float().mean() > 0.9
    found = audit(kind(tiny_model()), tiny_data, settings)
    n_right = found.values["clean_accuracy"]["n_hit"]
    assert n_right == int(found.is_right.sum()) == sum(rate["n_hit"] for rate in found.values["class_accuracy"])
    if kind is Infinite:
        assert (found.values["n_not_finite"], found.values["n_not_repeated"], n_right) == (160, 0, 0)
    elif kind is Tied:
        assert found.values["n_not_repeated"] == 0
    else:
        assert found.values["n_not_finite"] == 0
        assert found.values["n_not_repeated"] > 80
        assert n_right <= 160 - found.values["n_not_repeated"]


# Documents.


def test_documents_show_what_was_lost() -> None:
    report = example()
    after = report["audit"]["after"]
    after["n_not_finite"] = 5
    after["battery"][2]["n_not_finite"] = 350
    after["inversion"]["anomaly_index"] = None
    after["inversion"]["classes"][4]["n_not_finite"] = 9
    report["disagreement"][1]["n_not_finite_sanitized"] = 6
    report["statements"] = _statements(report, 0.95)
    page, summary = as_html(report, {}).decode(), as_markdown(report)
    assert "no finite answer: 350 of 500 sanitized" in page
    assert "no finite answer: 5 of 500 sanitized" in page
    assert "no finite answer: 6 of 500 sanitized" in page
    assert "some answers were not finite" in page
    assert "| No finite answer | none | 70.0% of samples, at most" in summary
    properties = as_sarif(report)["runs"][0]["properties"]
    assert any(
        "350 of 500 (70.0%) samples under sinusoid have no finite answer" in text for text in properties["statements"]
    )
    metrics = as_bom(report)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    lost = [metric for metric in metrics if metric["type"] == "share of samples without a finite answer"]
    assert [metric["value"] for metric in lost] == ["0.01", "0.7", "0.012"]
    assert "no finite answer" not in as_html(example(), {}).decode()
