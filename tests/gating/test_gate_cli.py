"""``seamfast gate`` and ``seamfast policy``: exit codes, what goes to stdout, and what to stderr."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seamfast.cli import main
from seamfast.gating.output import FILES
from seamfast.gating.policy import TEMPLATE, parse_policy
from tests.gating.test_schema import VALIDATOR
from tests.hostile.folders import CASES

Policies = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ran(*arguments: object) -> int:
    return main([*map(str, arguments)])


def gated(model: Path, rules: Path, *more: object, data: object = "digits") -> int:
    return ran("gate", model, "--data", data, "--policy", rules, *more)


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({}, 0, "pass (exit code 0)\n  all 3 rules passed\n"),
        ({"accuracy": 0.9999}, 1, "fail (exit code 1)\n  accuracy: lower bound"),
        ({"least": 100_000}, 3, "inconclusive (exit code 3)\n  accuracy: "),
        ({}, 0, "{"),
    ],
)
@pytest.mark.usefixtures("sanitized_once")
def test_exit_code_is_the_verdict(
    changes: dict[str, float], code: int, line: str, planted: Path, policy: Policies, tmp_path: Path, capsys: Capture
) -> None:
    as_json = ["--json"] * (line == "{")
    assert gated(planted, policy(**changes), "--out", tmp_path / "out", *as_json) == code
    out = capsys.readouterr().out
    if as_json:
        VALIDATOR.validate(json.loads(out))  # one document, and nothing else
    else:
        assert line in out
        assert f"written to {tmp_path / 'out'}/" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, *(["sanitized"] if code == 0 else [])}


def test_a_data_set_by_name_is_read_below_root(
    planted: Path, policy: Policies, tmp_path: Path, capsys: Capture
) -> None:
    for kind, content in (("images-idx3", bytes(20 * 64)), ("labels-idx1", bytes(range(10)) * 2)):
        sizes = (20, 8, 8) if kind.startswith("images") else (20,)
        header = struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes)
        (tmp_path / f"train-{kind}-ubyte").write_bytes(header + content)
    assert gated(planted, policy(), "--dry-run", "--json", "--root", tmp_path, data="mnist") == 3
    assert json.loads(capsys.readouterr().out)["data"]["n_samples"] == 20
    assert gated(planted, policy(), "--dry-run", "--json", data="mnist") == 4
    assert "needs root=" in capsys.readouterr().err


def test_a_part_of_a_file_can_be_named(planted: Path, policy: Policies, tmp_path: Path, capsys: Capture) -> None:
    images, labels = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 10
    both = tmp_path / "both.npz"
    np.savez(both, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    assert gated(planted, policy(), "--dry-run", "--json", "--split", "test", data=both) == 3
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["n_samples"], data["path"]) == (20, f"{both}, test")


@pytest.mark.parametrize("name", ["link to weights", "pickle beside", "config with auto_map inside"])
def test_refused_models_end_in_3(name: str, policy: Policies, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model").mkdir()
    assert gated(CASES[name].make(tmp_path / "model"), policy(), "--json") == 3
    report = json.loads(capsys.readouterr().out)  # one document
    assert report["refusal"]["code"] == CASES[name].code
    VALIDATOR.validate(report)


def test_a_wrong_policy_is_4_whatever_the_model_is(tmp_path: Path, capsys: Capture) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text("version = 1\n")
    assert gated(tmp_path / "none", rules, "--out", tmp_path / "out") == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"PolicyError: {rules}" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more", [(), *(("--policy", "x", "--argument", a) for a in ("n", "n=", "=1", "n=nan(", "2n=1"))]
)
def test_missing_options_and_wrong_arguments_are_4(more: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        ran("gate", tmp_path, "--data", "digits", *more)
    assert stop.value.code == 4


def test_what_cannot_be_completed_is_2(planted: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seamfast.gating.pipeline.audit", fail)
    assert gated(planted, policy()) == 2


def test_dry_run_blocks_and_writes_nothing(planted: Path, policy: Policies, tmp_path: Path, capsys: Capture) -> None:
    rules = policy()
    assert gated(planted, rules, "--out", tmp_path / "out", "--dry-run") == 3
    assert "a dry run: no rule was evaluated" in capsys.readouterr().out
    assert os.listdir(tmp_path) == [rules.name]


def test_names_from_the_model_folder_are_escaped(
    planted: Path, policy: Policies, tmp_path: Path, capsys: Capture
) -> None:
    model = tmp_path / "\x1b[31mred"
    shutil.copytree(planted, model)
    (model / "policy\u202egnp.toml").write_text("")
    gated(model, policy(), "--dry-run")
    printed = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(printed.out + printed.err)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0])
def test_what_the_documents_show_passes(rate: float, tmp_path: Path, capsys: Capture) -> None:
    """The commands of README.md and docs/gate.md: a model with a backdoor, and its twin without one."""
    assert ran("plant", "--data", "digits", "--rate", rate, "--out", "incoming") == 0
    capsys.readouterr()
    assert ran("policy", "init") == 0
    (tmp_path / "policy.toml").write_text(capsys.readouterr().out)
    assert gated(tmp_path / "incoming", tmp_path / "policy.toml", "--out", "verdict") == 0
    assert "pass (exit code 0)" in capsys.readouterr().out


def test_policy_init_prints_what_policy_check_takes(tmp_path: Path, capsys: Capture) -> None:
    assert ran("policy", "init") == 0
    text = capsys.readouterr().out
    assert text == TEMPLATE
    (tmp_path / "policy.toml").write_text(text)
    assert ran("policy", "check", tmp_path / "policy.toml") == 0
    assert capsys.readouterr().out.count("\n") >= len(parse_policy(text.encode()).rules)
    (tmp_path / "policy.toml").write_text(text.replace("threshold", "treshold"))
    assert ran("policy", "check", tmp_path / "policy.toml") == 4
    assert "did you mean 'threshold'?" in capsys.readouterr().err
