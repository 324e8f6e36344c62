"""What is said of a stranger's files: no absolute path of this machine, and nothing that a CI system runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import seamfast
from seamfast.cli import main
from seamfast.gating.documents.markdown import as_markdown
from seamfast.gating.output import FILES
from seamfast.gating.pipeline import gate
from seamfast.gating.places import Shortened
from seamfast.terminal import without_commands
from tests.gating.examples import example
from tests.hostile.folders import CASES
from tests.hostile.pickles import CASES as PICKLES

Policies = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_no_place_of_this_machine(name: str, policy: Policies, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "made").mkdir()
    model = CASES[name].make(tmp_path / "made")
    policy()
    given = os.path.relpath(model)
    assert main(["gate", given, "--data", "digits", "--policy", "gate.toml", "--out", "out"]) == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["refusal"]["code"] == CASES[name].code
    texts = [(tmp_path / "out" / file).read_text() for file in FILES if (tmp_path / "out" / file).exists()]
    printed = capsys.readouterr()
    for text in (*texts, printed.out, printed.err):
        assert str(tmp_path) not in text
        assert tempfile.gettempdir() + "/" not in text


@pytest.mark.parametrize("name", ["a pickle", "bad data"])
def test_where_the_caller_gives_absolute_paths_a_refusal_names_what_lies_below(
    name: str, planted: Path, policy: Policies, tmp_path: Path
) -> None:
    model, data = planted, "digits"
    if name == "a pickle":
        model = tmp_path / "model"
        model.mkdir()
        next(iter(PICKLES.values())).make(model)
    else:
        (tmp_path / "bad.npz").write_bytes(b"PK\3\4 and no more")
        data = str(tmp_path / "bad.npz")
    report = gate(model, data, policy=policy(), out=tmp_path / "out", progress=False).report
    assert report["refusal"]["reason"].startswith(("bad.npz: ", "model.", "evil", "weights", "data"))
    assert str(tmp_path) not in report["refusal"]["reason"] + report["verdict"]["reasons"][0]
    assert str(tmp_path) not in (tmp_path / "out" / "report.sarif").read_text()


def test_a_disk_that_fails_is_named_without_its_place(
    planted: Path, policy: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "x y"))

    monkeypatch.setattr("seamfast.gating.pipeline.audit", fail)
    (reason,) = gate(planted, "digits", policy=policy(), out=tmp_path / "out").report["verdict"]["reasons"]
    assert reason == "could not complete: OSError: [Errno 28] No space left on device: 'x y'"


def test_shortened_paths() -> None:
    shortened = Shortened("/srv/in/model", "/srv/clean.npz", "/srv/\x1bin", None)
    for text, short in (
        ("/srv/in/model/a.bin is a pickle", "a.bin is a pickle"),
        ("'/srv/in/model' holds code", "'model' holds code"),
        ("/srv/in/model, which", "model, which"),
        ("/srv/in/model2/x and /srv/in/other", "model2/x and other"),
        ("/other/srv/in/model/x", "/other/srv/in/model/x"),
        ("/srv/clean.npz: label 7", "clean.npz: label 7"),
        (r"'/srv/\x1bin/x' is", "'x' is"),
        ("/etc/passwd in a zip", "/etc/passwd in a zip"),
        (f"{os.getcwd()}/here", "here"),
    ):
        assert shortened(text) == short, text


COMMANDS = [
    "::set-output name=a::b",
    "##[error]no",
    "##vso[task.setvariable variable=a]b",
    ":::warning::",
    "###[group]",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_a_ci_system_are_escaped(command: str) -> None:
    escaped = without_commands(f"x {command}")
    assert "::" not in escaped
    assert "##" not in escaped
    assert escaped.replace(r"\x3a", ":").replace(r"\x23", "#") == f"x {command}"
    assert without_commands("12:30 a:b #1 c # d") == "12:30 a:b #1 c # d"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_from_the_model_folder_are_no_commands(
    command: str, options: list[str], planted: Path, policy: Policies, tmp_path: Path, capsys: Capture
) -> None:
    model = tmp_path / command
    shutil.copytree(planted, model)
    (model / f"{command}.toml").touch()
    rules = policy()
    given = ["gate", command, "--data", "digits", "--policy", str(rules), "--dry-run", *options]
    assert main(given) == 3
    (model / "evil.py").write_text("import os\n")
    assert main(given) == 3
    assert main(["gate", command, "--data", command, "--policy", command]) == 4
    printed = capsys.readouterr()
    assert not re.search("::|##", printed.out + printed.err)
    if options:
        first, _ = json.JSONDecoder().raw_decode(printed.out)
        assert first["policy"]["ignored"] == [f"{command}.toml"]
        assert first["model"]["path"] == command
    else:
        assert "in the model folder was not read" in printed.out


def test_a_summary_holds_no_command() -> None:
    report = example("pass")
    for command in COMMANDS:
        report["model"]["path"] = report["policy"]["rules"][0]["id"] = report["policy"]["path"] = command
        report["warnings"] = report["statements"] = report["verdict"]["reasons"] = [command]
        summary = as_markdown(report)
        assert "::" not in summary
        assert not re.search(r"##\S*\[", summary)


def test_a_traceback_of_a_defect_holds_no_command(
    planted: Path, policy: Policies, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\n::error::b")

    monkeypatch.setattr("seamfast.gating.pipeline.audit", fail)
    assert main(["gate", str(planted), "--data", "digits", "--policy", str(policy())]) == 2
    printed = capsys.readouterr()
    assert "ZeroDivisionError" in printed.err
    assert "::" not in printed.err + printed.out
    assert seamfast.gate is gate
