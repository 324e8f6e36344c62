"""The examples run, from an empty folder, and say what they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seamfast.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
MAIN = "import sys; from seamfast.cli import main; sys.exit(main())"


def run_example(name: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forty_lines(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert len((EXAMPLES / "sanitize_in_40_lines.py").read_text(encoding="utf-8").splitlines()) <= 40
    rows = run_example("sanitize_in_40_lines.py", tmp_path).splitlines()
    rates = {row[:12].strip(): [float(x) for x in re.findall(r"([\d.]+)%", row)] for row in rows[1:]}
    assert list(rates) == ["as received", "fine_tune", "seam"]
    assert rates["as received"][1] > 90, "the planted backdoor does not work"
    assert rates["seam"][1] < rates["as received"][1] / 2
    assert rates["seam"][0] > 90


def test_walkthrough(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    out = run_example("walkthrough.py", tmp_path)
    picture = tmp_path / "seamfast-demo" / "walkthrough.png"
    assert f"drawn: {picture.relative_to(tmp_path)}" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_gate_in_shell(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    commands = tmp_path / "bin"  # `seamfast`, whether or not its script is installed
    commands.mkdir()
    script = commands / "seamfast"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{MAIN}' \"$@\"\n", encoding="utf-8")
    script.chmod(0o755)
    work = tmp_path / "work"
    done = subprocess.run(
        ["bash", str(EXAMPLES / "ci_gate.sh"), str(work)],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert {path.name for path in (work / "received").iterdir()} >= {"model.safetensors", "model.json", "triggers.npz"}
    left = {path.name for path in (work / "sanitized").iterdir()}
    if done.returncode == 0:
        assert f"gate: passed; use {work / 'sanitized'}" in done.stdout
        assert left >= {"model.safetensors", "model.json", "report.json"}
    else:
        assert "gate: blocked; not accepted" in done.stdout
        assert left == {"report.json"}


@pytest.mark.parametrize("name", ["ci-gate.yml", "ci_gate.sh"])
def test_gates_use_options_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"\bseamfast (\w+) (.*--.*)", (EXAMPLES / name).read_text(encoding="utf-8"))
    assert lines
    for subcommand, rest in lines:
        with pytest.raises(SystemExit) as stopped:
            main([subcommand, "--help"])
        shown = capsys.readouterr()
        assert stopped.value.code == 0, shown.err
        assert options_in(rest) <= options_in(shown.out), subcommand


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", text))
