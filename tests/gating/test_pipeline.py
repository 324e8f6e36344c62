"""The gate as a whole: what it decides, what it writes, and what it leaves alone."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast.errors import InputError, PolicyError
from seamfast.gating import audit, output, pipeline
from seamfast.gating.decision import metrics_of
from seamfast.gating.folder import inspect, receive
from seamfast.gating.pipeline import GateResult, gate
from seamfast.gating.policy import AuditSettings
from seamfast.models.folder import load_model
from tests.gating.conftest import DESCRIPTION, TRIGGER
from tests.gating.examples import example
from tests.gating.test_schema import VALIDATOR
from tests.hostile.pickles import CASES as PICKLES

Policies = Callable[..., Path]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_planted_model_passes_once_sanitized(planted: Path, passed: tuple[GateResult, Path]) -> None:
    result, folder = passed
    report, out = result.report, folder / "out"
    assert report["verdict"] == {"outcome": "pass", "exit_code": 0, "reasons": ["all 3 rules passed"]}
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert names(out) == {*output.FILES, "sanitized"}
    assert json.loads((out / "report.json").read_text()) == report
    VALIDATOR.validate(report)

    written, description = load_model(out / "sanitized")
    assert description == DESCRIPTION
    test_set = seamfast.load("digits", split="test")
    cured = seamfast.evaluate(written, test_set, triggers=[TRIGGER]).worst_attack_success_rate
    received = seamfast.evaluate(load_model(planted)[0], test_set, triggers=[TRIGGER]).worst_attack_success_rate
    assert cured is not None
    assert received is not None
    assert cured < 0.2 < 0.8 < received
    for file in report["sanitized"]["files"]:
        content = (out / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["n_bytes"], file["sha256"])
    assert report["data"]["n_repair"] + report["data"]["n_audit"] == report["data"]["n_samples"]
    assert report["policy"]["sha256"] == hashlib.sha256((folder / "gate.toml").read_bytes()).hexdigest()


def test_the_audit_part_is_never_trained_on(planted: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    for module, name in ((pipeline, "sanitize"), (audit, "stamped_evidence")):

        def note(model: nn.Module, data: seamfast.CleanSet, real: Any, name: str, **options: Any) -> Any:
            seen.setdefault(name, []).append(data.pixels(torch.arange(len(data))))
            return real(model, data, **options)

        monkeypatch.setattr(module, name, partial(note, real=getattr(module, name), name=name))
    data = seamfast.load("digits", split="train")
    marked = data.pixels(torch.arange(len(data)))
    marked[:, 0, 0, 0] = torch.arange(len(data)) % 251  # so that no two images are the same by chance
    marked[:, 0, 0, 7] = torch.arange(len(data)) // 251
    before = everything(planted)
    gate(planted, seamfast.CleanSet(marked, data.labels, num_classes=10), policy=policy(), progress=False)
    assert everything(planted) == before
    trained_on, audited = ({image.numpy().tobytes() for image in images[0]} for images in seen.values())
    assert list(seen) == ["stamped_evidence", "sanitize"]
    assert not trained_on & audited
    assert len(trained_on) + len(audited) == len(data)
    assert torch.equal(*seen["stamped_evidence"])


@pytest.mark.parametrize(
    ("changes", "outcome", "code", "reason"),
    [
        ({"accuracy": 0.9999}, "fail", 1, "accuracy: lower bound of after.clean_accuracy is 0."),
        ({"least": 100_000}, "inconclusive", 3, "accuracy: "),
    ],
)
@pytest.mark.usefixtures("sanitized_once")
def test_what_does_not_pass_writes_no_model(
    changes: dict[str, Any], outcome: str, code: int, reason: str, planted: Path, policy: Policies, tmp_path: Path
) -> None:
    result = gate(planted, "digits", policy=policy(**changes), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code, result.model) == (outcome, code, None)
    assert result.report["verdict"]["reasons"][0].startswith(reason)
    assert result.report["sanitized"] is None
    assert names(tmp_path / "out") == set(output.FILES)
    VALIDATOR.validate(result.report)


def test_a_refused_model_has_a_report_of_its_own(policy: Policies, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    next(iter(PICKLES.values())).make(tmp_path / "model")
    result = gate(tmp_path / "model", "digits", policy=policy(), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code) == ("refused", 3)
    assert result.report["refusal"]["reason"] in result.report["verdict"]["reasons"][0]
    assert result.report["audit"] == {"before": None, "after": None, "change": None}
    assert names(tmp_path / "out") == {*output.FILES} - {"attestation.json"}
    VALIDATOR.validate(result.report)


def test_what_the_machine_cannot_do_is_incomplete(
    planted: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(pipeline, "sanitize", fail)
    result = gate(planted, "digits", policy=policy(), progress=False)
    assert (result.outcome, result.exit_code) == ("incomplete", 2)
    assert result.report["verdict"]["reasons"] == ["could not complete: MemoryError: no more"]
    assert result.report["audit"]["before"] is not None
    VALIDATOR.validate(result.report)


def test_a_dry_run_measures_and_writes_nothing(
    planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "receive", None)  # calling it would raise TypeError
    result = gate(planted, "digits", policy=policy(), out=tmp_path / "out", dry_run=True)
    assert (result.outcome, result.exit_code) == ("inconclusive", 3)
    assert result.report["verdict"]["reasons"] == ["a dry run: no rule was evaluated"]
    assert result.report["model"]["n_parameters"] == 13706
    assert result.report["data"]["n_samples"] == 1438
    assert not (tmp_path / "out").exists()


def test_warnings_of_the_policy_and_of_the_folder_are_in_the_report(planted: Path, policy: Policies) -> None:
    rules = policy()
    theirs = rules.parent / "theirs"
    shutil.copytree(planted, theirs)
    (theirs / "policy.toml").write_text(rules.read_text())
    former = '[[rule]]\nid = "former"\nmetric = "parting_worst"\nthreshold = 0.5\ngreater_is_better = false\n'
    rules.write_text(rules.read_text() + former)
    report = gate(theirs, "digits", policy=rules, dry_run=True).report
    assert report["policy"]["ignored"] == ["policy.toml"]
    assert report["warnings"] == [
        "rule 3 of the policy: metric is 'parting_worst'; expected 'disagreement_worst', its new name; the next "
        "version refuses the old one",
        "policy.toml in the model folder was not read: the policy is the one that was given",
    ]


def test_wrong_calls_are_errors_before_anything_is_read(planted: Path, policy: Policies, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    with pytest.raises(InputError, match="which is not empty; expected a folder that does not exist yet"):
        gate(planted, "digits", policy=policy(), out=tmp_path / "full")
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
    size: int, labels: Tensor, reason: str, planted: Path, policy: Policies
) -> None:
    data = seamfast.CleanSet(torch.zeros(len(labels), 1, size, size, dtype=torch.uint8), labels)
    result = gate(planted, data, policy=policy())
    assert result.exit_code == 3
    assert result.report["refusal"] == {"code": "data", "reason": reason}
    VALIDATOR.validate(result.report)


@pytest.mark.parametrize("fails_at", ["as_html", "as_bom", "os.rename"])
def test_a_write_that_fails_leaves_nothing(
    fails_at: str, planted: Path, passed: tuple[GateResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(f"seamfast.gating.output.{fails_at}", fail)
    report, received = copy.deepcopy(passed[0].report), receive(inspect(planted))
    model = passed[0].model
    assert model is not None

    def write() -> None:
        with output.Staging(tmp_path / "out") as staging:
            staging.save_model(received, model)
            staging.finish(report, {})

    with pytest.raises(RuntimeError, match="the disk is gone"):
        write()
    assert names(tmp_path) == set()


def test_equal_seeds_give_equal_reports(planted: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "sanitize", None)  # what is before it decides

    def evidence(seed: int) -> Any:
        gate(planted, "digits", policy=policy(inversion=True), seed=seed, progress=False)
        return audits.pop().values

    audits: list[audit.Audit] = []
    run = pipeline.audit
    monkeypatch.setattr(pipeline, "audit", lambda *a, **k: audits.append(run(*a, **k)) or audits[-1])
    assert evidence(0) == evidence(0) != evidence(1)


def _audit(*rates: tuple[int, float, float, float], inversion: Any = None) -> dict[str, Any]:
    battery = [
        {
            "name": str(i),
            "target": 0,
            "rate": {"n_hit": 0, "n_total": n, "value": v, "low": low, "high": high},
            "n_not_finite": 0,
        }
        for i, (n, v, low, high) in enumerate(rates)
    ]
    accuracy = {"n_hit": 9, "n_total": 10, "value": 0.9, "low": 0.6, "high": 0.98}
    clean = {"clean_accuracy": accuracy, "class_accuracy": [], "n_not_finite": 0, "n_not_repeated": 0}
    return {**clean, "battery": battery, "inversion": inversion}


def _metrics(**audits: Any) -> dict[str, Any]:
    nothing = {"before": None, "after": None, "change": None}
    return metrics_of({"audit": nothing | audits, "disagreement": None, "sanitize": None})


def test_too_few_clean_images_leave_it_inconclusive(planted: Path, policy: Policies) -> None:
    """Of 140, a few are held out: accuracy comes back on all of them, and that says little."""
    few = seamfast.load("digits", mean=DESCRIPTION.mean, std=DESCRIPTION.std).draw(0.1)
    result = gate(planted, few, policy=policy(accuracy=0.5, least=10), progress=False)
    assert (result.outcome, result.exit_code, result.model) == ("inconclusive", 3, None)
    reason, own = result.report["verdict"]["reasons"]
    assert reason.startswith("sanitized: sanitize.accepted has no value, from ")
    assert own.startswith("gate:treated: sanitize.treated has no value, from ")
    assert any(
        warning.startswith("the sanitization was undecided: ") and "held-out samples cannot tell" in warning
        for warning in result.report["warnings"]
    )


def test_an_image_that_repeats_repairs_or_audits(planted: Path, policy: Policies) -> None:
    images = seamfast.load("digits", mean=DESCRIPTION.mean, std=DESCRIPTION.std).draw(0.1)
    again = images.subset([*range(len(images))] * 3)
    repeated = gate(planted, again, policy=policy(), dry_run=True).report
    data = repeated["data"]
    once = gate(planted, images, policy=policy(), dry_run=True).report
    assert data["n_audit"] == once["data"]["n_audit"]
    assert data["n_repair"] == 3 * once["data"]["n_repair"]
    assert (data["n_samples"], data["n_distinct"]) == (3 * len(images), len(images))
    told = f"of {3 * len(images)} clean samples {len(images)} are distinct: "
    assert f"{told}repeats were used to repair, and audited once" in repeated["warnings"]
    assert once["data"]["n_distinct"] == len(images)
    assert not any("distinct" in warning for warning in once["warnings"])


def test_twenty_images_forty_times_are_twenty(planted: Path, policy: Policies) -> None:
    digits = seamfast.load("digits", mean=DESCRIPTION.mean, std=DESCRIPTION.std)
    first = [int((digits.labels == label).nonzero()[i]) for label in range(10) for i in range(2)]
    data = gate(planted, digits.subset(first * 40), policy=policy(), dry_run=True).report["data"]
    assert [data[key] for key in ("n_samples", "n_distinct", "n_repair", "n_audit")] == [800, 20, 400, 10]


def test_what_lies_beside_the_weights_is_named(planted: Path, policy: Policies, tmp_path: Path) -> None:
    model = shutil.copytree(planted, tmp_path / "model")
    (model / "hooks.tar").write_bytes(b"\0")
    (model / "old.pkl.gz").write_bytes(gzip.compress(b"cos\nsystem\n(S'true'\ntR."))
    report = gate(model, "digits", policy=policy(), dry_run=True).report
    assert (
        "the model folder holds files that other tools may run, open or unpack: hooks.tar, old.pkl.gz; they were not "
        "read and are not in the sanitized folder"
    ) in report["warnings"]


@pytest.mark.parametrize(("outcome", "value"), [("accepted", 1.0), ("refused", 0.0), ("undecided", None)])
def test_an_undecided_sanitization_is_neither_accepted_nor_not(outcome: str, value: float | None) -> None:
    report = example("pass")
    report["sanitize"]["verdict"] |= {"outcome": outcome, "accepted": outcome == "accepted"}
    measured = metrics_of(report)["sanitize.accepted"]
    assert (measured.value, measured.low, measured.high, measured.n) == (value, value, value, 100)


def test_metrics_are_of_the_worst_trigger() -> None:
    metrics = _metrics(before=_audit((50, 0.1, 0.05, 0.4), (90, 0.3, 0.2, 0.35)))
    assert set(metrics) == {"before.clean_accuracy", "before.battery_worst", "before.finite"}
    worst = metrics["before.battery_worst"]
    assert (worst.value, worst.low, worst.high, worst.n) == (0.3, 0.2, 0.4, 50)


@pytest.mark.parametrize("complete", [False, True])
def test_an_inversion_that_was_cut_short_is_no_measurement(complete: bool) -> None:
    inversion = {"anomaly_index": 1.0, "suspect": 3, "threshold": 2.0, "steps": 9, "complete": complete, "classes": []}
    assert ("after.inversion_anomaly_index" in _metrics(after=_audit(inversion=inversion))) is complete


def test_lost_and_gained_answers_are_counted_in_pairs(tiny_model: Callable[[], nn.Module], tiny_data: Any) -> None:
    received, sanitized = tiny_model().eval(), tiny_model().eval()
    with torch.no_grad():
        sanitized[9].bias[0] += 100  # all answers become 0
    settings = AuditSettings(inversion=False)
    before, after = (audit.audit(model, tiny_data, settings).is_right for model in (received, sanitized))
    change = audit.change(before, after, 0.95)
    right = (received((tiny_data.inputs.float() / 255 - 0.4) / 0.25).argmax(1) == tiny_data.labels).sum().item()
    zeros = int((tiny_data.labels == 0).sum())
    assert change["n_lost"] - change["n_gained"] == right - zeros
    share = change["accuracy_lost"]
    assert share["value"] == pytest.approx((right - zeros) / 160)
    assert share["low"] < share["value"] < share["high"] <= 1
