"""How a run of the gate may end: for each cause its exit code, its outcome, and whether there is a report."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import seamfast
from seamfast.cli import main
from seamfast.errors import InputError, ModelError
from seamfast.gating import output, pipeline
from seamfast.gating.decision import TREATED
from seamfast.gating.documents.in_toto import as_statement
from seamfast.gating.pipeline import GateResult, gate
from seamfast.models.folder import ModelDescription, load_model, save_model, state_of
from tests.gating.conftest import DESCRIPTION, policy_in
from tests.gating.examples import example
from tests.gating.test_schema import VALIDATOR

Policies = Callable[..., Path]
ARGUMENTS = {"num_classes": 10}


class Net(nn.Sequential):
    """The network of ``planted`` as an operator would write it, with something wrong at each call."""

    def __init__(self, at_call: Callable[[], object], num_classes: int) -> None:
        super().__init__(*DESCRIPTION.build().children())
        self.at_call = at_call

    def forward(self, images: Tensor) -> Tensor:
        self.at_call()
        logits: Tensor = super().forward((images - 0.0) / 1.0)
        return logits


def _endless() -> None:
    _endless()


def _raising(error: BaseException) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of the operator's, to put architectures in."""
    module = types.ModuleType("operator_models")
    monkeypatch.setitem(sys.modules, "operator_models", module)
    return module


def as_own(planted: Path, folder: Path) -> Path:
    """The weights of ``planted`` alone."""
    folder.mkdir()
    shutil.copy(planted / "model.safetensors", folder)
    return folder


# Code of the operator that ends in whatever way.

ENDINGS = {
    "SystemExit": _raising(SystemExit(0)),
    "KeyboardInterrupt": _raising(KeyboardInterrupt()),
    "GeneratorExit": _raising(GeneratorExit()),
    "RecursionError": _endless,
    "ZeroDivisionError": _raising(ZeroDivisionError("::error::a defect")),
}


@pytest.mark.parametrize("where", ["built", "called"])
@pytest.mark.parametrize("name", ENDINGS)
def test_whatever_code_of_the_operator_raises_ends_in_a_report(
    where: str,
    name: str,
    planted: Path,
    policy: Policies,
    tmp_path: Path,
    operator: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def net(num_classes: int) -> nn.Module:
        if where == "built":
            ENDINGS[name]()
        return Net(ENDINGS[name], num_classes)

    operator.net = net  # type: ignore[attr-defined]
    model, out = as_own(planted, tmp_path / "model"), tmp_path / "out"
    given = ["gate", str(model), "--data", "digits", "--policy", str(policy()), "--out", str(out)]
    given += ["--architecture", "operator_models:net", "--argument", "num_classes=10"]
    code = main(given)
    report = json.loads((out / "report.json").read_text())
    VALIDATOR.validate(report)
    is_ordinary = name in ("RecursionError", "ZeroDivisionError")
    expected = ("refused", 3) if where == "built" and is_ordinary else ("incomplete", 2)
    assert (report["verdict"]["outcome"], code) == expected
    assert name in report["verdict"]["reasons"][0]
    assert report["sanitized"] is None
    printed = capsys.readouterr()
    assert ("Traceback" in printed.err) == (code == 2)  # for whoever mends it
    assert "Traceback" not in printed.out


@pytest.mark.usefixtures("own_sigint")
def test_a_real_interrupt_is_raised_and_nothing_is_written(
    planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "audit", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        gate(planted, "digits", policy=policy(), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["gate.toml"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("own_sigint")
def test_an_interrupt_that_code_of_the_operator_catches_ends_the_run_all_the_same(
    planted: Path, policy: Policies, tmp_path: Path, operator: types.ModuleType
) -> None:
    seen = []

    def catch() -> None:
        if not seen:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                seen.append(1)

    operator.net = partial(Net, catch)  # type: ignore[attr-defined]
    model = as_own(planted, tmp_path / "model")
    given = {"architecture": "operator_models:net", "arguments": ARGUMENTS}
    with pytest.raises(KeyboardInterrupt):
        gate(model, "digits", policy=policy(least=10**6), out=tmp_path / "out", progress=False, **given)
    assert seen
    assert not (tmp_path / "out").exists()


# What was treated.


def policy_with(folder: Path, head: str = "", sanitize: str = "", preset: str = 'preset = "fast"') -> Path:
    """One rule on accuracy that any trained model meets."""
    path = folder / "gate.toml"
    path.write_text(
        f'version = 1\nname = "test"\n{head}\n[sanitize]\n{preset}\n{sanitize}\n[audit]\ninversion = false\n'
        '[[rule]]\nid = "accuracy"\nmetric = "after.clean_accuracy"\nthreshold = 0.5\ngreater_is_better = true\n'
    )
    return path


def test_a_model_that_was_not_treated_does_not_pass(planted: Path, tmp_path: Path) -> None:
    result = gate(planted, "digits", policy=policy_with(tmp_path, sanitize="time_budget_s = 1e-9"), progress=False)
    assert (result.outcome, result.exit_code, result.model) == ("fail", 1, None)
    accuracy, own = result.report["policy"]["rules"]
    assert (accuracy["outcome"], own["id"], own["outcome"]) == ("pass", TREATED, "fail")
    assert own["reason"].startswith(
        "sanitize.treated is false; expected true: the run was stopped, and the model is the one received: the time "
        "budget of 1e-09 s was used up before "
    )
    VALIDATOR.validate(result.report)


def test_untreated_models_pass_where_the_policy_says_so(planted: Path, tmp_path: Path) -> None:
    rules = policy_with(tmp_path, 'untreated = "allowed"', "time_budget_s = 1e-9")
    result = gate(planted, "digits", policy=rules, out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert (
        "the policy allows untreated models: a pass does not say that the model was sanitized"
        in (result.report["warnings"])
    )
    model = result.report["sanitize"]["model"]
    assert model["digest_after"] == model["digest_before"]
    assert json.loads((tmp_path / "out" / "attestation.json").read_text())["predicate"]["result"] == "WARNED"
    VALIDATOR.validate(result.report)


def test_a_run_that_its_time_budget_cut_short_is_no_treatment() -> None:
    report = example("pass")
    report["sanitize"]["run"]["time_ran_out"] = True
    treated = pipeline.metrics_of(report)["sanitize.treated"]
    assert (treated.value, treated.why) == (0.0, "the time budget cut the run short")
    assert pipeline.metrics_of(example("pass"))["sanitize.treated"].value == 1.0


@pytest.mark.parametrize("digest", ["the same", None])
def test_no_attestation_says_passed_of_weights_that_did_not_change(digest: str | None) -> None:
    report = example("pass") | {"warnings": []}
    assert as_statement(report)["predicate"]["result"] == "PASSED"
    model = report["sanitize"]["model"]
    model["digest_after"] = digest and model["digest_before"]
    assert as_statement(report)["predicate"]["result"] == "WARNED"
    assert pipeline.metrics_of(report)["sanitize.treated"].value == 0.0


# Data and weights that say too little, or lie.


def digits(chosen: Callable[[Tensor], Tensor]) -> seamfast.CleanSet:
    data = seamfast.load("digits", split="train")
    kept = chosen(data.labels)
    return seamfast.CleanSet(data.pixels(kept), data.labels[kept])


def of_each(n: int, labels: Tensor) -> Tensor:
    return torch.cat([(labels == label).nonzero().flatten()[:n] for label in range(10)])


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (lambda labels: (labels == 3).nonzero().flatten(), "data hold one class only (3); expected at least two"),
        (partial(of_each, 2), "data hold 10 samples to repair with, no class twice; expected two of a class, to hold "),
        (lambda labels: of_each(1, labels).repeat(2), "data hold 20 samples, no two different ones of a class; "),
    ],
    ids=["one class", "20 images", "10 images twice"],
)
def test_data_that_cannot_do_are_refused_before_any_audit(
    chosen: Callable[[Tensor], Tensor],
    reason: str,
    planted: Path,
    policy: Policies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "audit", None)
    result = gate(planted, digits(chosen), policy=policy(), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code, result.report["refusal"]["code"]) == ("refused", 3, "data")
    assert result.report["refusal"]["reason"].startswith(reason)
    VALIDATOR.validate(json.loads((tmp_path / "out" / "report.json").read_text()))


def test_more_classes_than_samples_are_refused_before_any_audit(
    policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = ModelDescription("small_cnn", 4096, 1, 8)
    save_model(tmp_path / "model", description.build(), description)
    monkeypatch.setattr(pipeline, "audit", None)
    result = gate(tmp_path / "model", "digits", policy=policy(), progress=False)
    assert (result.outcome, result.exit_code) == ("refused", 3)
    reason = "data hold 719 samples to repair with; expected at least one for each of 4096 classes"
    assert result.report["refusal"] == {"code": "data", "reason": reason}


def test_an_input_error_in_the_middle_ends_in_a_report(
    planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise InputError("clean_loader is odd; expected even")

    monkeypatch.setattr(pipeline, "sanitize", fail)
    result = gate(planted, "digits", policy=policy(), out=tmp_path / "out", progress=False)
    assert (result.outcome, result.exit_code) == ("refused", 3)
    assert result.report["refusal"] == {"code": "input", "reason": "clean_loader is odd; expected even"}
    assert (tmp_path / "out" / "report.json").exists()


class Averaging(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        norm = nn.BatchNorm1d(64, momentum=None)  # averages over all batches so far, by their number
        super().__init__(nn.Flatten(), norm, nn.Linear(64, num_classes))


def test_a_count_of_batches_below_0_is_refused(policy: Policies, tmp_path: Path, operator: types.ModuleType) -> None:
    model = Averaging(10)
    assert isinstance(model[1], nn.BatchNorm1d)
    model[1].num_batches_tracked.fill_(-1)  # type: ignore[union-attr]
    message = "1.num_batches_tracked is -1; expected 0 or more"
    with pytest.raises(ModelError, match=message):
        seamfast.sanitize(model, (torch.zeros(40, 1, 8, 8), torch.arange(40) % 10))
    operator.net = Averaging  # type: ignore[attr-defined]
    (tmp_path / "model").mkdir()
    save_file(state_of(model), tmp_path / "model" / "model.safetensors")
    given = {"architecture": "operator_models:net", "arguments": ARGUMENTS}
    result = gate(tmp_path / "model", "digits", policy=policy(), progress=False, **given)
    assert (result.outcome, result.exit_code) == ("refused", 3)
    refusal = {"code": "value", "reason": "model.safetensors holds 1.num_batches_tracked of -1; expected at least 0"}
    assert result.report["refusal"] == refusal


# Written = measured.


class Counting(nn.Module):
    """Answers well until it has been called some hundred times."""

    def __init__(self, num_classes: int, *, persistent: bool) -> None:
        super().__init__()
        self.net = DESCRIPTION.build()
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64), persistent=persistent)

    def forward(self, images: Tensor) -> Tensor:
        n_calls = self.get_buffer("n_calls")
        n_calls += 1
        logits: Tensor = self.net(images)
        return logits.roll(1, 1) if n_calls < 20 else logits


@pytest.mark.parametrize(
    ("persistent", "reason"),
    [
        (True, "the state of the sanitized model changed while it was audited: it depends on how often it is called; "),
        (False, "the written model answers "),
    ],
)
def test_a_model_that_counts_its_calls_does_not_pass(
    persistent: bool, reason: str, planted: Path, tmp_path: Path, operator: types.ModuleType
) -> None:
    operator.net = partial(Counting, persistent=persistent)  # type: ignore[attr-defined]
    model = operator.net(10)
    model.net = load_model(planted)[0]
    (tmp_path / "model").mkdir()
    save_file(state_of(model), tmp_path / "model" / "model.safetensors")
    result = gate(
        tmp_path / "model",
        seamfast.load("digits"),
        policy=policy_with(tmp_path),
        out=tmp_path / "out",
        architecture="operator_models:net",
        arguments=ARGUMENTS,
        progress=False,
    )
    assert [rule["outcome"] for rule in result.report["policy"]["rules"]] == ["pass", "pass"]
    assert (result.outcome, result.exit_code, result.model) == ("incomplete", 2, None)
    assert result.report["verdict"]["reasons"][0].startswith(reason)
    assert result.report["sanitized"] is None
    assert not (tmp_path / "out" / "sanitized").exists()
    VALIDATOR.validate(result.report)


@pytest.mark.usefixtures("sanitized_once")
@pytest.mark.parametrize("out", [None, "out"])
def test_a_file_that_is_not_what_was_measured_is_no_pass(
    out: str | None, planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = output.save_model

    def changed(folder: Path, model: nn.Module, description: ModelDescription) -> None:
        other = DESCRIPTION.build()
        other.load_state_dict({name: value * 0.99 for name, value in model.state_dict().items()})
        save(folder, other, description)

    monkeypatch.setattr(output, "save_model", changed)
    result = gate(planted, "digits", policy=policy(), out=out and tmp_path / out, progress=False)
    assert (result.outcome, result.exit_code, result.model) == ("incomplete", 2, None)
    reason = "the written weights are not those that were audited; expected the same digest of the state"
    assert result.report["verdict"]["reasons"] == [reason]
    assert not (tmp_path / "out" / "sanitized").exists()


# Calls that are wrong.


@dataclass
class Wrong:
    """A call that cannot be right, and the beginning of what is said of it."""

    changes: dict[str, str]
    message: str


WRONG = {
    "architecture": Wrong({"--architecture": "resnet"}, "architecture is 'resnet'; expected registered:NAME, "),
    "registered": Wrong({"--architecture": "registered:none"}, "arguments lack "),
    "module": Wrong({"--architecture": "no_such_module:net"}, "architecture is 'no_such_module:net', whose module "),
    "device": Wrong({"--device": "gpu"}, "device is 'gpu'; expected 'auto' or a torch device such as 'cpu' or "),
    "meta": Wrong({"--device": "meta"}, "device is 'meta', which holds no weights; expected 'auto' or 'cpu'"),
    "root": Wrong({"--data": "mnist"}, "load('mnist') needs root=, the folder that holds its files"),
    "full": Wrong({"--out": "full"}, "out is 'full', which is not empty; expected a folder that does not exist yet"),
    "policy in": Wrong({"--policy": "model/p.toml"}, "policy is 'model/p.toml', which lies in the model's folder; "),
    "policy linked": Wrong({"--policy": "way/p.toml"}, "policy is 'way/p.toml', which lies in the model's folder; "),
    "link in": Wrong({"--policy": "model/link.toml"}, "policy is 'model/link.toml', which lies in the model's folder"),
    "data in": Wrong({"--data": "model/data.npz"}, "data is 'model/data.npz', which lies in the model's folder; "),
    "out in": Wrong({"--out": "model/sub/out"}, "out is 'model/sub/out', which lies in the model's folder; "),
    "out is": Wrong({"--out": "way/new"}, "out is 'way/new', which lies in the model's folder; "),
    "around": Wrong({"model": "empty/deep", "--out": "empty"}, "model is 'empty/deep', which lies in out, 'empty'; "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_end_in_4_without_a_report(
    name: str,
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(planted, tmp_path / "model")
    rules = policy_in(tmp_path)
    if name == "link in":
        (tmp_path / "model" / "link.toml").symlink_to(rules)
    (tmp_path / "model" / "p.toml").write_text("is not read")
    np.savez(tmp_path / "model" / "data.npz", x=1)
    (tmp_path / "way").symlink_to("model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    call = {"model": "model", "--data": "digits", "--policy": "gate.toml", "--out": "out"} | WRONG[name].changes
    options = [word for key, value in call.items() if key != "model" for word in (key, value)]
    assert main(["gate", call["model"], *options]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.removeprefix("seamfast: ").removeprefix("InputError: ").startswith(WRONG[name].message)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_lies_beside_a_lone_file_of_weights_is_not_in_its_folder(planted: Path, tmp_path: Path) -> None:
    shutil.copy(planted / "model.safetensors", tmp_path)
    chosen = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    result = gate(
        tmp_path / "model.safetensors",
        "digits",
        policy=policy_in(tmp_path),
        dry_run=True,
        architecture="registered:small_cnn",
        arguments=chosen,
    )
    assert result.outcome == "inconclusive"


def test_the_document_has_the_codes(passed: tuple[GateResult, Path]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    for code, outcomes in ((0, "`pass`"), (1, "`fail`"), (2, "`incomplete`"), (3, "`refused`, `inconclusive`")):
        assert f"| {code} | {outcomes} | " in text
    assert passed[0].error is None
