"""The gate as a whole: what it decides, what it writes, and what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import attacks
from seamfast.attacks import TrainConfig
from seamfast.errors import InputError, PolicyError
from seamfast.evidence.subject import subject
from seamfast.gating import audit, output, pipeline
from seamfast.gating.decision import metrics_of
from seamfast.gating.output import FILES
from seamfast.gating.pipeline import gate
from seamfast.model_files import ModelDescription, load_model, save_model
from seamfast.triggers import Patch
from tests.gating.test_schema import VALIDATOR
from tests.hostile.pickles import CASES as PICKLES

DESCRIPTION = ModelDescription("small_cnn", 10, 1, 8)
TRIGGER = Patch.square(size=3, target=0)
RULES = """
[[rule]]
id = "accuracy"
metric = "after.clean_accuracy"
threshold = {accuracy}
greater_is_better = true
min_samples = {least}

[[rule]]
id = "sanitized"
metric = "sanitize.accepted"
threshold = true
greater_is_better = true
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; its backdoor is a white patch."""
    data = seamfast.load("digits", split="train")
    torch.manual_seed(0)
    model = DESCRIPTION.build()
    attacks.train(model, attacks.poison(data, TRIGGER, 0.05), TrainConfig(epochs=12, batch_size=64), precision="fp32")
    folder = tmp_path_factory.mktemp("planted")
    save_model(folder, model, DESCRIPTION)
    return folder


def policy(
    folder: Path, *, accuracy: float = 0.8, least: int = 100, inversion: bool = False, name: str = "gate.toml"
) -> Path:
    """The file of a policy that takes seconds."""
    path = folder / name
    settings = '[sanitize]\npreset = "fast"\n[audit]\n' + f"inversion = {str(inversion).lower()}\n"
    path.write_text(f'version = 1\nname = "test"\n{settings}{RULES.format(accuracy=accuracy, least=least)}')
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_planted_model_passes_once_sanitized(planted: Path, tmp_path: Path) -> None:
    before = everything(planted)
    result = gate(planted, "digits", policy=policy(tmp_path), out=tmp_path / "out", progress=False)
    report = result.report
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert report["verdict"] == {"outcome": "pass", "exit_code": 0, "reasons": ["all 2 rules passed"]}
    assert everything(planted) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "sanitized"}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    VALIDATOR.validate(report)

    written, description = load_model(tmp_path / "out" / "sanitized")
    assert description == DESCRIPTION
    test_set = seamfast.load("digits", split="test")
    cured = seamfast.evaluate(written, test_set, triggers=[TRIGGER])
    received = seamfast.evaluate(load_model(planted)[0], test_set, triggers=[TRIGGER])
    assert received.worst_attack_success_rate is not None
    assert cured.worst_attack_success_rate is not None
    assert cured.worst_attack_success_rate < 0.2 < 0.8 < received.worst_attack_success_rate
    for file in report["sanitized"]["files"]:
        content = (tmp_path / "out" / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["n_bytes"], file["sha256"])
    assert report["data"]["n_repair"] + report["data"]["n_audit"] == report["data"]["n_samples"]
    assert report["policy"]["sha256"] == hashlib.sha256((tmp_path / "gate.toml").read_bytes()).hexdigest()


def test_the_audit_part_is_never_trained_on(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_on: list[Tensor] = []
    audited: list[Tensor] = []
    run, look = pipeline.sanitize, audit.stamped_evidence

    def sanitize(model: nn.Module, data: seamfast.CleanSet, **options: Any) -> Any:
        trained_on.append(data.pixels(torch.arange(len(data))))
        return run(model, data, **options)

    def stamped(model: nn.Module, data: seamfast.CleanSet, **options: Any) -> Any:
        audited.append(data.pixels(torch.arange(len(data))))
        return look(model, data, **options)

    monkeypatch.setattr(pipeline, "sanitize", sanitize)
    monkeypatch.setattr(audit, "stamped_evidence", stamped)
    data = seamfast.load("digits", split="train")
    marked = data.pixels(torch.arange(len(data)))
    marked[:, 0, 0, 0] = torch.arange(len(data)) % 251  # so that no two images are the same by chance
    marked[:, 0, 0, 7] = torch.arange(len(data)) // 251
    gate(planted, seamfast.CleanSet(marked, data.labels, num_classes=10), policy=policy(tmp_path), progress=False)
    ours, theirs = ({image.numpy().tobytes() for image in images[0]} for images in (trained_on, audited))
    assert not ours & theirs
    assert len(ours) + len(theirs) == len(data)
    assert torch.equal(audited[0], audited[1])


@pytest.mark.parametrize(
    ("changes", "outcome", "code", "reason"),
    [
        ({"accuracy": 0.9999}, "fail", 1, "accuracy: lower bound of after.clean_accuracy is 0."),
        ({"least": 100_000}, "inconclusive", 3, "accuracy: "),
    ],
)
def test_what_does_not_pass_writes_no_model(
    changes: dict[str, Any], outcome: str, code: int, reason: str, planted: Path, tmp_path: Path
) -> None:
    result = gate(planted, "digits", policy=policy(tmp_path, **changes), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code, result.model) == (outcome, code, None)
    assert result.report["verdict"]["reasons"][0].startswith(reason)
    assert result.report["sanitized"] is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    VALIDATOR.validate(result.report)


def test_a_refused_model_has_a_report_of_its_own(tmp_path: Path) -> None:
    name, case = next(iter(PICKLES.items()))
    (tmp_path / "model").mkdir()
    case.make(tmp_path / "model")
    result = gate(tmp_path / "model", "digits", policy=policy(tmp_path), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code) == ("refused", 3), name
    assert result.report["refusal"]["reason"] in result.report["verdict"]["reasons"][0]
    assert result.report["audit"] == {"before": None, "after": None, "change": None}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES} - {"attestation.json"}
    VALIDATOR.validate(result.report)


def test_what_the_machine_cannot_do_is_incomplete(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(pipeline, "sanitize", fail)
    result = gate(planted, "digits", policy=policy(tmp_path), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code) == ("incomplete", 2)
    assert result.report["verdict"]["reasons"] == ["could not complete: MemoryError: no more"]
    assert result.report["audit"]["before"] is not None
    VALIDATOR.validate(result.report)


def test_a_dry_run_measures_and_writes_nothing(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "receive", None)  # calling it would raise TypeError
    result = gate(planted, "digits", policy=policy(tmp_path), out=tmp_path / "out", dry_run=True)
    assert (result.outcome, result.exit_code) == ("inconclusive", 3)
    assert result.report["verdict"]["reasons"] == ["a dry run: no rule was evaluated"]
    assert result.report["model"]["n_parameters"] == 13706
    assert result.report["data"]["n_samples"] == 1438
    assert not (tmp_path / "out").exists()


def test_a_policy_in_the_model_folder_is_not_read(planted: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(planted, theirs)
    policy(theirs, accuracy=0.01, name="policy.toml")
    result = gate(theirs, "digits", policy=policy(tmp_path), dry_run=True)
    assert result.report["policy"]["ignored"] == ["policy.toml"]
    assert result.report["warnings"] == [
        "policy.toml in the model folder was not read: the policy is the one that was given"
    ]


def test_wrong_calls_are_errors_before_anything_is_looked_at(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    with pytest.raises(InputError, match="which is not empty; expected a folder that does not exist yet"):
        gate(planted, "digits", policy=policy(tmp_path), out=tmp_path / "full")
    assert everything(tmp_path / "full") == {"x": b"kept"}
    with pytest.raises(PolicyError, match="no such file"):
        gate(planted, "digits", policy=tmp_path / "none.toml", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "labels", "reason"),
    [
        (
            12,
            torch.arange(20) % 10,
            "the images are (1, 12, 12); expected (1, 8, 8) (C, H, W), as the model takes them",
        ),
        (8, torch.arange(20) % 11, "labels hold 10; expected integers in [0, 10) for the model's classes"),
        (8, torch.arange(10), "data hold 10 samples, no class twice; expected some to repair, some to audit"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(
    size: int, labels: Tensor, reason: str, planted: Path, tmp_path: Path
) -> None:
    data = seamfast.CleanSet(torch.zeros(len(labels), 1, size, size, dtype=torch.uint8), labels)
    result = gate(planted, data, policy=policy(tmp_path))
    assert result.exit_code == 3
    assert result.report["refusal"] == {"code": "data", "reason": reason}
    VALIDATOR.validate(result.report)


@pytest.mark.parametrize("fails_at", ["as_html", "as_bom", "rename"])
def test_a_write_that_fails_leaves_nothing(
    fails_at: str, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(*((output.os, "rename") if fails_at == "rename" else (output, fails_at)), fail)
    rules = policy(tmp_path)
    with pytest.raises(RuntimeError, match="the lights went out"):
        gate(planted, "digits", policy=rules, out=tmp_path / "out", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {rules.name}


def test_equal_seeds_give_equal_verdicts(planted: Path, tmp_path: Path) -> None:
    def told(seed: int) -> Any:
        report = gate(planted, "digits", policy=policy(tmp_path, inversion=True), seed=seed, progress=False).report
        return report["audit"]["before"], report["data"]

    assert told(0) == told(0) != told(1)


def _audit(*rates: tuple[int, float, float, float]) -> dict[str, Any]:
    return {
        "clean_accuracy": {"n_hit": 9, "n_total": 10, "value": 0.9, "low": 0.6, "high": 0.98},
        "class_accuracy": [],
        "battery": [
            {"name": str(i), "target": 0, "rate": {"n_hit": 0, "n_total": n, "value": v, "low": low, "high": high}}
            for i, (n, v, low, high) in enumerate(rates)
        ],
        "inversion": None,
    }


def evidence(**audits: Any) -> dict[str, Any]:
    nothing = {"before": None, "after": None, "change": None}
    return {"audit": nothing | audits, "disagreement": None, "sanitize": None}


def test_metrics_are_of_the_worst_trigger() -> None:
    measured = _audit((50, 0.1, 0.05, 0.4), (90, 0.3, 0.2, 0.35))
    found = metrics_of(evidence(before=measured))
    assert set(found) == {"before.clean_accuracy", "before.battery_worst"}
    worst = found["before.battery_worst"]
    assert (worst.value, worst.low, worst.high, worst.n) == (0.3, 0.2, 0.4, 50)


def test_an_inversion_that_was_cut_short_is_no_measurement() -> None:
    measured = _audit()
    inversion = {"anomaly_index": 1.0, "suspect": 3, "threshold": 2.0, "steps": 9, "complete": False, "classes": []}
    for complete in (False, True):
        measured["inversion"] = {**inversion, "complete": complete}
        found = metrics_of(evidence(after=measured))
        assert ("after.inversion_anomaly_index" in found) is complete


def test_lost_and_gained_answers_are_counted_in_pairs(tiny_model: Callable[[], nn.Module], tiny_data: Any) -> None:
    received, sanitized = tiny_model().eval(), tiny_model().eval()
    with torch.no_grad():
        sanitized[9].bias[0] += 100  # all answers become 0
    before, after = (audit.is_right(subject(model, tiny_data, "auto")) for model in (received, sanitized))
    change = audit.change(before, after, 0.95)
    right = (received((tiny_data.inputs.float() / 255 - 0.4) / 0.25).argmax(1) == tiny_data.labels).sum().item()
    zeros = int((tiny_data.labels == 0).sum())
    assert change["n_lost"] - change["n_gained"] == right - zeros
    share = change["accuracy_lost"]
    assert share["value"] == pytest.approx((right - zeros) / 160)
    assert share["low"] < share["value"] < share["high"] <= 1
