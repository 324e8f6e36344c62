"""What docs/threat-model.md promises of a whole run: where it writes, whom it calls, and when it ends in 0."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast.cli import main
from seamfast.gating import pipeline
from seamfast.model_files import save_model
from tests.gating.conftest import DESCRIPTION
from tests.hostile.pickles import GOOD, torch_zip

Policies = Callable[..., Path]
STAGES = ("audit.stamped_evidence", "pipeline.sanitize", "audit.parting", "output.as_html")
WATCHED = """
    import json, os, sys

    seen = []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changing = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")

    def watch(event, args):
        if event == "open":
            if (args[2] or 0) & writing and not isinstance(args[0], int):
                seen.append(["writes", os.path.abspath(os.fsdecode(args[0]))])
        elif event in changing:
            if event in ("os.remove", "os.rmdir") and args[1] != -1:
                return  # below a folder that is held open, which is how a folder of one's own is emptied
            for name in args[:2]:
                if isinstance(name, (str, bytes, os.PathLike)):
                    seen.append(["writes", os.path.abspath(os.fsdecode(name))])
        elif event.startswith("socket.") or event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            seen.append([event, repr(args[0])])

    sys.dont_write_bytecode = True
    sys.addaudithook(watch)
    from seamfast.cli import main
    code = main(sys.argv[2:])
    answer = json.dumps({"code": code, "seen": seen})
    with open(sys.argv[1], "w") as file:
        file.write(answer)
"""


def watched(place: Path, *arguments: object) -> dict[str, Any]:
    """The exit code of a command line in a process of its own, and what it did that others could notice."""
    answer = place.parent / f"{place.name}.json"
    command = [sys.executable, "-c", textwrap.dedent(WATCHED), answer, *arguments]
    done = subprocess.run([*map(str, command)], cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def written(found: dict[str, Any]) -> set[Path]:
    """What was written to; what lies below ``out``, in the folder that becomes it, counts as that."""
    names = {Path(path) for event, path in found["seen"] if event == "writes"} - {Path("/dev/null")}
    places = set()
    for name in names:
        parts = [*reversed(name.parents), name]
        hidden = next((part for part in parts if re.fullmatch(r"\.out\.[0-9a-f]{16}", part.name)), None)
        places.add(hidden.with_name("out") if hidden else name)
    return places


def test_a_run_writes_to_out_alone_and_calls_nobody(
    planted: Path, policy: Policies, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = tmp_path_factory.mktemp("here")
    rules = policy(inversion=True)
    found = watched(here, "gate", planted, "--data", "digits", "--policy", rules, "--out", tmp_path / "out")
    assert found["code"] == 0
    assert {event for event, _ in found["seen"]} == {"writes"}  # no socket, no process
    assert written(found) <= {tmp_path, tmp_path / "out"}  # the first is made if it is not there
    assert os.listdir(here) == []


def test_a_pickle_is_converted_in_a_private_folder_that_goes(
    policy: Policies, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, private = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("private")
    monkeypatch.setenv("TMPDIR", str(private))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pt").write_bytes(torch_zip(GOOD))
    chosen = [f"--argument={k}={v}" for k, v in (("num_classes", 10), ("in_channels", 1), ("image_size", 8))]
    found = watched(
        here,
        *("gate", tmp_path / "model", "--data", "digits", "--policy", policy(), "--out", tmp_path / "out"),
        *("--architecture", "registered:small_cnn", *chosen, "--allow-pickle"),
    )
    assert found["code"] == 3  # its weights are of another architecture
    assert {event for event, _ in found["seen"] if event.startswith("socket.")} == set()
    assert {path for path in written(found) if private not in path.parents} <= {tmp_path, tmp_path / "out"}
    assert os.listdir(private) == os.listdir(here) == []


@pytest.mark.parametrize("stage", [*STAGES, "pipeline.decide"])
def test_a_defect_anywhere_is_no_pass(
    stage: str,
    planted: Path,
    policy: Policies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(f"seamfast.gating.{stage}", fail)
    out = tmp_path / "out"
    assert main(["gate", str(planted), "--data", "digits", "--policy", str(policy()), "--out", str(out)]) == 2
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err
    assert not out.exists()


class Interrupts(seamfast.Callback):
    def on_step_end(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_in_2_and_leaves_nothing(
    stage: str,
    planted: Path,
    policy: Policies,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = pipeline.sanitize

    def interrupted(*given: Any, **options: Any) -> Any:
        if stage != "pipeline.sanitize":
            raise KeyboardInterrupt

        return real(*given, **options, callbacks=[Interrupts()])

    monkeypatch.setattr(f"seamfast.gating.{stage}", interrupted)
    out = tmp_path / "out"
    rules = policy()
    assert main(["gate", str(planted), "--data", "digits", "--policy", str(rules), "--out", str(out)]) == 2
    assert "seamfast: interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {rules.name}


def test_a_killed_run_leaves_no_out(planted: Path, policy: Policies, tmp_path: Path) -> None:
    """Killed in the middle of writing: what is there has a name of its own, which nobody takes for the result."""
    slow = """
        import sys, time
        from pathlib import Path
        from seamfast.gating import output
        from seamfast.cli import main

        def wait(report, pictures):
            Path(sys.argv[1]).touch()
            time.sleep(600)

        output.as_html = wait
        main(sys.argv[2:])
    """
    flag = tmp_path / "flag"
    arguments = ["gate", planted, "--data", "digits", "--policy", policy(), "--out", tmp_path / "out"]
    run = subprocess.Popen(
        [*map(str, (sys.executable, "-c", textwrap.dedent(slow), flag, *arguments))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        end = time.monotonic() + 120
        while not flag.exists() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        run.kill()
    assert run.wait() == -signal.SIGKILL
    assert flag.exists()
    assert not (tmp_path / "out").exists()


def test_a_model_that_answers_nan_is_refused_with_a_report(policy: Policies, tmp_path: Path) -> None:
    model = DESCRIPTION.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3e38)  # finite weights, infinite sums
    save_model(tmp_path / "model", model, DESCRIPTION)
    result = pipeline.gate(tmp_path / "model", "digits", policy=policy(), progress=False)
    assert (result.outcome, result.exit_code) == ("refused", 3)
    assert result.report["refusal"]["code"] == "model"
