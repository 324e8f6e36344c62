"""``seamfast fleet`` as a command: usage, status, exit codes; what it does is tested elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seamfast.errors import InputError
from seamfast.fleet.command import main
from seamfast.fleet.run import FleetResult, exit_code_of, run
from seamfast.fleet.store import JOBS, STAGING, Store, as_row, publish, write_job


def leave(folder: Path, **outcomes: str) -> None:
    """A fleet with these jobs done."""
    store = Store(folder, {"seed": 0}, (0, 1))
    store.record("began", n_jobs=len(outcomes))
    for name, outcome in outcomes.items():
        staged = folder / STAGING / name
        staged.mkdir()
        write_job(staged, name, {}, None, as_row({"id": name, "outcome": outcome}))
        publish(staged, folder / JOBS / name)
    store.close()


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ({}, 0),
        ({"accepted": 3, "pass": 1, "refused": 0}, 0),
        ({"accepted": 3, "refused": 1, "undecided": 1}, 1),
        ({"fail": 1}, 1),
        ({"accepted": 1, "undecided": 1}, 3),
        ({"inconclusive": 1}, 3),
        ({"invalid": 1}, 3),
        ({"quarantined": 1, "refused": 1}, 2),
        ({"error": 1}, 2),
        ({"waiting": 1, "accepted": 9}, 2),
    ],
)
def test_exit_code_is_that_of_the_worst(outcomes: dict[str, int], code: int, tmp_path: Path) -> None:
    assert exit_code_of(outcomes) == code
    assert FleetResult(tmp_path, 1, outcomes, 0, 1.0).exit_code == code
    assert FleetResult(tmp_path, 1, outcomes, 0, 1.0, "interrupted").exit_code == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "2/2"], "shard is '2/2'; expected k/n with k from 0 to n - 1"),
        (["--config", "missing.toml"], "missing.toml cannot be read as TOML"),
        ([], "has no data; expected 'data' in the job, or data for the fleet"),
        (["--data", "digits", "--policy", "p.toml", "--ray", "local", "--shard", "x"], "shard is 'x'"),
    ],
)
def test_wrong_calls_end_with_their_message(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert main([str(tmp_path / "models"), "--out", str(tmp_path / "out"), *more]) == 4
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers is 0; expected an integer of at least 1, or None"),
        ({"gpus_per_job": 2}, r"gpus_per_job is 2; expected a number in \[0, 1\]"),
        ({"max_time_s": 0}, "max_time_s is 0; expected a number of seconds above 0"),
        ({"sead": 1}, "the fleet: unknown key 'sead'; did you mean 'seed'"),
    ],
)
def test_wrong_arguments_of_run_are_named(given: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "models", tmp_path / "out", data="digits", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_status_tells_the_verdict_over_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "out", a="accepted", b="refused")
    assert main(["status", str(tmp_path / "out"), "--prometheus"]) == 1
    assert capsys.readouterr().out.startswith("2 jobs: 1 refused, 1 accepted\n")
    assert (tmp_path / "out" / "summary.html").exists()
    assert (tmp_path / "out" / "fleet.prom").exists()
    assert main(["status", str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"n_jobs": 2, "outcomes": {"accepted": 1, "refused": 1}}


def test_status_of_shards_that_never_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "out", a="accepted")
    (tmp_path / "out" / "manifest.jsonl").rename(tmp_path / "out" / "manifest-0-of-2.jsonl")
    assert main(["status", str(tmp_path / "out")]) == 2
    assert "shard 1/2 never began" in capsys.readouterr().err


def test_status_of_no_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 4
    assert "is no folder of a fleet" in capsys.readouterr().err


def test_driver_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['seamfast', 'fleet', 'status', 'missing']; from seamfast.launch import main; main(); "
    )
    code += "assert 'torch' not in sys.modules; assert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "seamfast", "--help"], capture_output=True, text=True)
    assert "fleet" in done.stdout
