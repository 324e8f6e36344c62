"""``seamfast gate`` and ``seamfast policy``: exit codes, what goes to stdout, and what to stderr."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from seamfast.cli import main
from seamfast.gating.output import FILES
from seamfast.gating.policy import TEMPLATE, parse_policy
from tests.gating.test_pipeline import planted, policy  # noqa: F401
from tests.gating.test_schema import VALIDATOR
from tests.hostile.folders import CASES


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ran(*arguments: object) -> int:
    return main([*map(str, arguments)])


def asked(model: Path, rules: Path, *more: object) -> Sequence[object]:
    return ("gate", model, "--data", "digits", "--policy", rules, *more)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "pass (exit code 0)\n  all 2 rules passed\n"),
        ({"accuracy": 0.9999}, 1, "fail (exit code 1)\n  accuracy: lower bound"),
        ({"least": 100_000}, 3, "inconclusive (exit code 3)\n  accuracy: "),
    ],
)
def test_exit_code_is_the_verdict(
    changes: dict[str, float],
    code: int,
    said: str,
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ran(*asked(planted, policy(tmp_path, **changes), "--out", tmp_path / "out")) == code  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert said in out
    assert f"written to {tmp_path / 'out'}/" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, *(["sanitized"] if code == 0 else [])}


def test_a_data_set_by_name_is_read_below_root(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for kind, content in (("images-idx3", bytes(20 * 64)), ("labels-idx1", bytes(range(10)) * 2)):
        sizes = (20, 8, 8) if kind.startswith("images") else (20,)
        header = struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes)
        (tmp_path / f"train-{kind}-ubyte").write_bytes(header + content)
    named = ("gate", planted, "--data", "mnist", "--policy", policy(tmp_path), "--dry-run", "--json")
    assert ran(*named, "--root", tmp_path) == 3
    assert json.loads(capsys.readouterr().out)["data"]["n_samples"] == 20
    assert ran(*named) == 3
    assert "needs root=" in capsys.readouterr().err


def test_a_part_of_a_file_can_be_named(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, labels = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 10
    np.savez(tmp_path / "both.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    arguments = ("gate", planted, "--data", tmp_path / "both.npz", "--policy", policy(tmp_path), "--dry-run", "--json")
    assert ran(*arguments, "--split", "test") == 3
    found = json.loads(capsys.readouterr().out)["data"]
    assert (found["n_samples"], found["path"]) == (20, f"{tmp_path / 'both.npz'}, test")


def test_json_is_one_document_on_stdout(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ran(*asked(planted, policy(tmp_path), "--json")) == 0
    VALIDATOR.validate(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("name", ["link to weights", "pickle beside", "config with auto_map inside"])
def test_refused_models_end_in_3(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    (tmp_path / "model").mkdir()
    model = case.make(tmp_path / "model")
    assert ran(*asked(model, policy(tmp_path), "--json")) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["refusal"]["code"] == case.code
    VALIDATOR.validate(report)


def test_a_wrong_policy_is_4_whatever_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text("version = 1\n")
    assert ran(*asked(tmp_path / "none", rules, "--out", tmp_path / "out")) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "PolicyError: policy.toml" in printed.err or f"PolicyError: {rules}" in printed.err
    assert not (tmp_path / "out").exists()


def test_missing_options_are_4(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        ran("gate", tmp_path, "--data", "digits")
    assert stop.value.code == 4


def test_what_cannot_be_completed_is_2(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seamfast.gating.pipeline.sanitize", fail)
    assert ran(*asked(planted, policy(tmp_path))) == 2


def test_dry_run_blocks_and_writes_nothing(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = policy(tmp_path)
    assert ran(*asked(planted, rules, "--out", tmp_path / "out", "--dry-run")) == 3
    assert "a dry run: no rule was evaluated" in capsys.readouterr().out
    assert os.listdir(tmp_path) == [rules.name]


def test_names_from_the_model_folder_are_escaped(
    planted: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "\x1b[31mred"
    model.mkdir()
    for path in planted.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "policy\u202egnp.toml").write_text("")
    ran(*asked(model, policy(tmp_path), "--dry-run"))
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\u202e" not in printed.out + printed.err


def test_policy_init_prints_what_policy_check_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("policy", "init") == 0
    text = capsys.readouterr().out
    assert text == TEMPLATE
    (tmp_path / "policy.toml").write_text(text)
    assert ran("policy", "check", tmp_path / "policy.toml") == 0
    assert capsys.readouterr().out.count("\n") >= len(parse_policy(text.encode()).rules)
    (tmp_path / "policy.toml").write_text(text.replace("threshold", "treshold"))
    assert ran("policy", "check", tmp_path / "policy.toml") == 4
    assert "did you mean 'threshold'?" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["n", "n=", "=1", "n=nan(", "2n=1"])
def test_arguments_of_the_architecture_are_json(text: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        ran(*asked(tmp_path, tmp_path, "--argument", text))
    assert stop.value.code == 4
