"""``seamfast fleet`` as a command: usage, status, exit codes; what it does is tested elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from seamfast.errors import InputError
from seamfast.fleet.command import main
from seamfast.fleet.jobs import Jobs
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
        (["--data", "digits", "--shard", "2/2"], "shard is '2/2'; expected k/n with k from 0 to n - 1"),
        (["--data", "digits", "--shard", ""], "shard is ''; expected k/n with k from 0 to n - 1"),
        (["--config", "missing.toml"], "missing.toml cannot be read as TOML"),
        (["--data", ""], "the fleet: data is ''; expected text"),
        (["--data", "digits", "--policy", "p.toml", "--preset", "fast"], "has 'preset', but a job with a policy is a"),
        ([], "has no data; expected 'data' in the job, or data for the fleet"),
        (["--data", "digits", "--policy", "p.toml", "--ray", "local", "--shard", "x"], "shard is 'x'"),
    ],
)
def test_wrong_calls_end_with_their_message(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    assert main([str(tmp_path / "models"), "--out", str(tmp_path / "out"), *more]) == 4
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("seamfast: ")
    assert told.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: JOBS, --out"),
        (["{models}"], "the following arguments are required: --out"),
        (["{models}", "--out", "{out}", "--workers", "0"], "argument --workers: "),
        (["{models}", "--out", "{out}", "--seed", "-1"], "argument --seed: "),
        (["{models}", "--out", "{out}", "--fraction", "0"], "argument --fraction: "),
        (["{models}", "--out", "{out}", "--max-time", "nan"], "argument --max-time: "),
        (["{models}", "--out", "{out}", "--max-memory", "-1"], "argument --max-memory: "),
        (["{models}", "--out", "{out}", "--gpus-per-job", "2"], "argument --gpus-per-job: "),
        (["{models}", "--out", "{out}", "--split", "dev"], "argument --split: "),
        (["{models}", "--out", "{out}", "--retry"], "unrecognized arguments: --retry"),
        (["status"], "the following arguments are required: DIR"),
    ],
)
def test_wrong_options_end_with_the_usage(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    places = {"models": tmp_path / "models", "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as ended:
        main([argument.format(**places) for argument in arguments])
    assert ended.value.code == 4
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("usage: seamfast fleet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 2020-01-01", "the fleet: config is {'x': datetime.date(2020, 1, 1)}; expected an object of JSON values"),
        ("x = inf", "the fleet: config is {'x': inf}; expected an object of JSON values"),
        ("x =", "cannot be read as TOML"),
        ("\xff", "cannot be read as TOML"),
    ],
)
def test_settings_of_a_file_that_cannot_be_used(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    (tmp_path / "c.toml").write_text(text, encoding="latin-1")
    call = [str(tmp_path / "models"), "--out", str(tmp_path / "out"), "--data", "digits"]
    assert main([*call, "--config", str(tmp_path / "c.toml")]) == 4
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["models", "models/cured", "models/a", "models/a/cured", "link/cured"])
def test_a_fleet_is_none_of_its_own_models(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder would be a job of the next call, or change a model."""
    (tmp_path / "models" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("models")
    assert main([str(tmp_path / "models"), "--out", str(tmp_path / out), "--data", "digits"]) == 4
    assert "which lies in the folder of the models; expected a folder elsewhere" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "models").rglob("*")] == ["a"]


def done_already(tmp_path: Path) -> list[str]:
    """A call that has nothing to do: its jobs were given up."""
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
    settings = {"seed": 0, "data": "digits"}
    with closing(Store(tmp_path / "out", settings, (0, 1))) as store:
        for job in Jobs(tmp_path / "models", settings):
            store.quarantine(job, ["did not end within 1 s"], ["did not end within 1 s"])
    return [str(tmp_path / "models"), "--out", str(tmp_path / "out"), "--data", "digits"]


def test_a_call_tells_what_became_of_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(done_already(tmp_path)) == 2
    told = capsys.readouterr().out
    assert told.startswith("2 jobs: 2 quarantined\n")
    assert "quarantined: a: did not end within 1 s\n" in told
    assert told.endswith(f"written to {tmp_path / 'out'}/\n")
    assert {"summary.html", "summary.csv", "summary.jsonl"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "fleet.prom").exists()


def test_a_call_tells_it_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*done_already(tmp_path), "--json", "--prometheus"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told.pop("seconds") >= 0
    assert told == {
        "n_jobs": 2,
        "outcomes": {"quarantined": 2},
        "n_done_before": 2,
        "stopped": None,
        "out": str(tmp_path / "out"),
    }
    assert (tmp_path / "out" / "fleet.prom").exists()


def test_options_reach_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def noted(jobs: str, out: str, **more: object) -> FleetResult:
        given.update(more, jobs=jobs, out=out)
        return FleetResult(tmp_path, 2, {"accepted": 1, "waiting": 1}, 0, 1.0, "interrupted")

    monkeypatch.setattr("seamfast.fleet.command.run", noted)
    (tmp_path / "c.toml").write_text("rate = 0.5")
    texts = {name: name for name in ("data", "root", "holdout", "test", "triggers", "policy", "method", "preset")}
    options = [part for name, text in texts.items() for part in (f"--{name}", text)]
    options += [
        "--split",
        "test",
        "--fraction",
        "0.5",
        "--config",
        str(tmp_path / "c.toml"),
        "--evidence",
        "--seed",
        "3",
    ]
    options += ["--max-time", "9", "--max-memory", "2G", "--workers", "3", "--ray", "auto", "--gpus-per-job", "0.25"]
    options += ["--shard", "1/2", "--retry-quarantined", "--prometheus", "--json"]
    assert main(["models", "--out", "cured", *options]) == 2
    assert given == {
        **texts,
        "jobs": "models",
        "out": "cured",
        "split": "test",
        "fraction": 0.5,
        "config": {"rate": 0.5},
        "evidence": True,
        "seed": 3,
        "max_time_s": 9,
        "max_memory": 2 << 30,
        "workers": 3,
        "ray": "auto",
        "gpus_per_job": 0.25,
        "shard": "1/2",
        "retry_quarantined": True,
        "prometheus": True,
    }


def test_a_call_that_was_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "out", a="accepted")
    stopped = FleetResult(tmp_path / "out", 5, {"accepted": 1, "waiting": 4}, 0, 1.0, "interrupted")
    monkeypatch.setattr("seamfast.fleet.command.run", lambda *_, **__: stopped)
    assert main(["models", "--out", "cured", "--data", "digits"]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("5 jobs: 1 accepted, 4 waiting\n")
    assert told.err == "seamfast: interrupted: 1 of 5 jobs are done; the same command goes on\n"


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


def test_status_of_a_fleet_that_is_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "out", a="accepted", b="pass")
    with closing(Store(tmp_path / "out", {"seed": 0}, (0, 1))) as store:
        store.record("began", n_jobs=5)
        assert main(["status", str(tmp_path / "out"), "--json"]) == 2
        outcomes = {"accepted": 1, "pass": 1, "waiting": 3}
        assert json.loads(capsys.readouterr().out) == {"n_jobs": 5, "outcomes": outcomes}
        assert not (tmp_path / "out" / "fleet.prom").exists()


def test_status_after_another_division_into_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "out", a="accepted")
    for k in range(2):
        with closing(Store(tmp_path / "out", {"seed": 0}, (k, 2))) as store:
            store.record("began", n_jobs=k)
    assert main(["status", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("1 jobs: 1 accepted\n")


def test_status_of_no_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 4
    assert "is no folder of a fleet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["status", "missing"], ["--help"], ["status", "--help"], ["missing", "--out", "x"]]
)
def test_driver_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['seamfast', 'fleet', *{arguments}]\n"
        "from seamfast.launch import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_command_and_its_options() -> None:
    done = subprocess.run([sys.executable, "-m", "seamfast", "--help"], capture_output=True, text=True)
    assert re.search(r"^ +fleet +sanitize or gate many models", done.stdout, re.MULTILINE)
    own = subprocess.run([sys.executable, "-m", "seamfast", "fleet", "--help"], capture_output=True, text=True)
    assert own.returncode == 0
    assert own.stdout.startswith("usage: seamfast fleet [-h]")
    assert "2 some were given up or not reached" in " ".join(own.stdout.split())
