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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import seamfast
from seamfast.cli import main
from seamfast.gating import pipeline
from seamfast.models.folder import save_model
from tests.gating.conftest import DESCRIPTION, policy_in
from tests.hostile.pickles import GOOD, torch_zip

Policies = Callable[..., Path]
STAGES = ("audit.stamped_evidence", "pipeline.sanitize", "audit.audit_disagreement", "output.as_html")
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
    answers = []
    for command in json.loads(sys.argv[2]):
        answers.append({"code": main(command), "seen": seen[:]})
        seen.clear()
    with open(sys.argv[1], "w") as file:
        json.dump(answers, file)
"""


@dataclass
class Watched:
    """What two runs in one process did that others could notice: of a model that passed, and of a pickle."""

    folder: Path  # of what the runs were given, and of their output: ``out`` and ``out 2``
    here: Path  # the working directory
    private: Path  # the system's temporary folder
    passed: dict[str, Any]
    pickled: dict[str, Any]


@pytest.fixture(scope="module")
def watched(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder, here, private = (tmp_path_factory.mktemp(name) for name in ("folder", "here", "private"))
    (folder / "model").mkdir()
    (folder / "model" / "model.pt").write_bytes(torch_zip(GOOD))
    given = ["--data", "digits", "--policy", str(policy_in(folder, inversion=True)), "--out"]
    chosen = [f"--argument={k}={v}" for k, v in (("num_classes", 10), ("in_channels", 1), ("image_size", 8))]
    chosen += ["--architecture", "registered:small_cnn", "--allow-pickle"]
    commands = [
        ["gate", str(planted), *given, str(folder / "out")],
        ["gate", str(folder / "model"), *given, str(folder / "out 2"), *chosen],
    ]
    answers = tmp_path_factory.mktemp("answers") / "answers.json"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), str(answers), json.dumps(commands)],
        cwd=here,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(private)},
        check=True,
    )
    return Watched(folder, here, private, *json.loads(answers.read_text()))


def written(found: dict[str, Any]) -> set[Path]:
    """What was written to; what lies below ``out``, in the folder that becomes it, counts as that."""
    names = {Path(path) for event, path in found["seen"] if event == "writes"} - {Path("/dev/null")}
    places = set()
    for name in names:
        parts = [*reversed(name.parents), name]
        hidden = next((part for part in parts if re.fullmatch(r"\.out( 2)?\.[0-9a-f]{16}", part.name)), None)
        places.add(hidden.with_name(hidden.name[1:-17]) if hidden else name)
    return places


def test_a_run_writes_to_out_alone_and_calls_nobody(watched: Watched) -> None:
    assert watched.passed["code"] == 0
    assert {event for event, _ in watched.passed["seen"]} == {"writes"}  # no socket, no process
    assert written(watched.passed) <= {watched.folder, watched.folder / "out"}  # the first is made if it is not there
    assert os.listdir(watched.here) == []


def test_a_pickle_is_converted_in_a_private_folder_that_goes(watched: Watched) -> None:
    assert watched.pickled["code"] == 3  # its weights are of another architecture
    assert {event for event, _ in watched.pickled["seen"] if event.startswith("socket.")} == set()
    public = {path for path in written(watched.pickled) if watched.private not in path.parents}
    assert public <= {watched.folder, watched.folder / "out 2"}
    assert os.listdir(watched.private) == os.listdir(watched.here) == []


@pytest.mark.parametrize("stage", [*STAGES, "pipeline.decide", "pipeline.check_written"])
@pytest.mark.usefixtures("sanitized_once")
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
    if stage == "output.as_html":
        assert not out.exists()
        return
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"]["reasons"] == ["could not complete: ZeroDivisionError: a defect"]
    assert (report["verdict"]["outcome"], report["sanitized"]) == ("incomplete", None)
    assert not (out / "sanitized").exists()


class Interrupts(seamfast.Callback):
    def on_step_end(self, *_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("own_sigint")
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
            signal.raise_signal(signal.SIGINT)

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
