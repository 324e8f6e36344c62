"""A fleet that nothing disturbs: each job is a result, equal bit by bit however it was done, and is done once."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seamfast
from seamfast.errors import InputError
from seamfast.fleet import FleetResult, run
from seamfast.methods import SeamConfig
from seamfast.models.folder import load_model, save_model
from seamfast.triggers import load_triggers
from tests.fleet.small import (
    SHORT,
    events,
    half_written,
    processes,
    results,
    staged,
    write_images,
    write_jobs,
    write_table,
    write_text,
)
from tests.gating.conftest import policy_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a fleet is for Linux")
SETTINGS: dict[str, Any] = {"data": "digits", "config": SHORT, "progress": False}

N_TEST = 200  # of the 359 held-out digits, so that the two parts differ


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of digits."""
    return write_images(tmp_path_factory.mktemp("fleet") / "models", 3)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module", autouse=True)
def _temporary(temporary: Path) -> Any:
    """A folder for temporary files of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        yield


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> FleetResult:
    """The three models, sanitized by two workers."""
    return run(models, tmp_path_factory.mktemp("done") / "out", workers=2, **SETTINGS)


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker may be started."""

    def refused(*_: Any) -> Any:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(importlib.import_module("seamfast.fleet.run"), "LocalWorkers", refused)


def test_each_job_is_a_folder_with_its_result(done: FleetResult, models: Path) -> None:
    assert done.n_jobs == 3
    assert done.n_done_before == 0
    assert done.stopped is None
    assert sum(done.outcomes.values()) == 3
    assert "waiting" not in done.outcomes
    assert sorted(os.listdir(done.folder / "jobs")) == ["m0", "m1", "m2"]
    assert half_written(done.folder) == []
    for row in done.rows():
        folder = done.folder / "jobs" / row["id"]
        assert row["model"] == str(models / row["id"])
        assert row["kind"] == "sanitize"
        assert row["architecture"] == "small_cnn"
        assert row["attempts"] == 1
        assert row["n_holdout"] == 287
        assert row["accuracy_lost"] == row["accuracy_before"] - row["accuracy_after"]
        assert 0 < row["seconds"] < 60
        assert 50 << 20 < row["peak_memory_bytes"] < 4 << 30
        assert row["report"] == f"jobs/{row['id']}/report.json"
        report = json.loads((done.folder / row["report"]).read_text())
        assert report["verdict"]["outcome"] == row["outcome"]
        assert report["verdict"]["reason"] == row["reason"]
        assert (folder / "model.safetensors").exists() == (row["outcome"] == "accepted")
        assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert sorted(event["id"] for event in events(done.folder, "done")) == ["m0", "m1", "m2"]
    assert [event["outcomes"] for event in events(done.folder, "finished")] == [done.outcomes | {"waiting": 0}]
    summary = (done.folder / "summary.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in summary] == list(done.rows())
    assert (done.folder / "summary.html").stat().st_size
    assert (done.folder / "summary.csv").read_text().count("\n") == 4
    assert not (done.folder / "fleet.prom").exists()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nothing_is_left(done: FleetResult, temporary: Path) -> None:
    assert staged(done.folder) == []
    assert processes(done.folder) == {}
    assert os.listdir(temporary) == []
    assert os.listdir(done.folder / "quarantine") == []


def test_results_have_the_same_bits_with_one_worker_in_another_order(
    done: FleetResult, models: Path, tmp_path: Path
) -> None:
    lines = [{"id": name, "model": str(models / name)} for name in ("m2", "m0", "m1")]
    again = run(write_jobs(tmp_path / "jobs.jsonl", lines), tmp_path / "out", workers=1, **SETTINGS)
    assert [event["id"] for event in events(again.folder, "done")] == ["m2", "m0", "m1"]
    assert results(again.folder) == results(done.folder)
    assert again.outcomes == done.outcomes


def test_results_have_the_same_bits_as_sanitize(done: FleetResult, models: Path, tmp_path: Path) -> None:
    accepted = [row for row in done.rows() if row["outcome"] == "accepted"]
    assert accepted
    for row in accepted[:2]:
        model, description = load_model(models / row["id"])
        data = seamfast.load("digits")
        direct = seamfast.sanitize(
            model, data, config=SeamConfig(**SHORT), seed=0, threads=1, precision="fp32", progress=False
        )
        assert direct.reason == row["reason"]
        save_model(tmp_path / row["id"], direct.model, description)
        there = done.folder / "jobs" / row["id"] / "model.safetensors"
        assert (tmp_path / row["id"] / "model.safetensors").read_bytes() == there.read_bytes()


def test_shards_together_do_all(done: FleetResult, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = [run(models, out, workers=1, shard=f"{k}/2", **SETTINGS) for k in range(2)]
    assert [part.n_jobs for part in parts] != [0, 3]
    assert sum(part.n_jobs for part in parts) == 3
    assert sorted(event["id"] for event in events(out, "done")) == ["m0", "m1", "m2"]
    assert results(out) == results(done.folder)
    assert len((out / "summary.jsonl").read_text().splitlines()) == 3
    assert staged(out) == []


# Another call


def test_another_call_does_nothing(done: FleetResult, models: Path, no_workers: None) -> None:
    again = run(models, done.folder, workers=2, **SETTINGS)
    assert again.n_done_before == 3
    assert again.outcomes == done.outcomes
    assert again.exit_code == done.exit_code
    assert again.seconds < done.seconds


def test_other_settings_are_refused(done: FleetResult, models: Path, no_workers: None) -> None:
    before = (done.folder / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"of a fleet whose seed is 0, and this call's is 1; expected the same"):
        run(models, done.folder, **SETTINGS, seed=1)
    with pytest.raises(InputError, match=r"whose preset is None, and this call's is 'fast'"):
        run(models, done.folder, **SETTINGS, preset="fast")
    assert (done.folder / "run.json").read_bytes() == before
    assert len(events(done.folder, "done")) == 3


def test_a_mistake_in_the_settings_is_one_error(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^ConfigError: .*recover_rat"):
        run(models, tmp_path / "out", workers=1, data="digits", config={"recover_rat": 1}, progress=False)
    assert processes(tmp_path / "out") == {}
    assert list(tmp_path.iterdir()) == []  # so that the next call may have other settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers is 0; expected an integer of at least 1, or None"),
        ({"workers": True}, "workers is True; expected an integer of at least 1, or None"),
        ({"gpus_per_job": 1.5}, r"gpus_per_job is 1.5; expected a number in \[0, 1\]"),
        ({"max_time_s": 0}, "max_time_s is 0; expected a number of seconds above 0"),
        ({"max_time_s": float("nan")}, "max_time_s is nan; expected a number of seconds above 0"),
        ({"max_memory": 0}, "max_memory is 0; expected an integer of at least 1, or None"),
        ({"max_memory": 1e9}, "max_memory is 1000000000.0; expected an integer of at least 1, or None"),
        ({"shard": "2/2"}, "shard is '2/2'; expected k/n with k from 0 to n - 1"),
        ({"sead": 1}, "the fleet: unknown key 'sead'; did you mean 'seed'?"),
        ({"seed": "x"}, r"the fleet: seed is 'x'; expected an integer in \[0, 2\*\*63\)"),
    ],
)
def test_arguments_that_cannot_be_used(wrong: dict[str, Any], message: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        run(models, tmp_path / "out", **{**SETTINGS, **wrong})
    assert not (tmp_path / "out").exists()


def test_the_progress_bar(
    done: FleetResult, models: Path, no_workers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(models, done.folder, **SETTINGS)
    run(models, done.folder, **{**SETTINGS, "progress": None})  # stderr is no terminal
    assert capsys.readouterr() == ("", "")
    run(models, done.folder, **{**SETTINGS, "progress": True})
    found = capsys.readouterr()
    assert found.out == ""
    assert "fleet: 100%" in found.err
    assert "3/3" in found.err


# Jobs of all kinds


@pytest.fixture(scope="module")
def jobs(models: Path) -> Callable[..., Path]:
    """``jobs(**changes)``: a list of one job of each kind, each with the changes under its id, in a file."""
    place = models.parent
    first = {"data": "digits", "config": SHORT}
    images = seamfast.load("digits", split="test")
    pixels, labels = images.inputs[:, 0].numpy(), images.labels.numpy()
    np.savez(place / "clean.npz", images=pixels, labels=labels)
    np.savez(place / "some.npz", images=pixels[:N_TEST], labels=labels[:N_TEST])
    write_table(place / "table")
    write_text(place / "text")
    policy_in(place, accuracy=0.5)
    broken = place / "broken"
    shutil.copytree(models / "m0", broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    known = {
        "plain": {"model": "models/m0", **first},
        "file": {"model": "models/m1", **first, "data": "clean.npz"},
        "full": {
            "model": "models/m2",
            **first,
            "test": "some.npz",
            "holdout": "digits",
            "fraction": 0.5,
            "triggers": "triggers.npz",
            "evidence": True,
            "audits": ["adversarial"],
        },
        "gated": {"model": "models/m0", "data": "digits", "policy": "gate.toml"},
        "table": {"model": "table", "data": "rows.csv", "config": SHORT},
        "text": {"model": "text", "data": "texts.tsv", "config": SHORT},
        "broken": {"model": "broken", **first},
        "missing": {"model": "nowhere", **first},
        "other": {"model": "models/m0", **first, "data": "rows.csv"},
    }

    def written(**changes: dict[str, Any]) -> Path:
        lines = [{"id": name, **job, **changes.get(name, {})} for name, job in known.items()]
        return write_jobs(place / "jobs.jsonl", lines)

    return written


@pytest.fixture(scope="module")
def kinds(jobs: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> FleetResult:
    """One job of each kind."""
    return run(jobs(), tmp_path_factory.mktemp("kinds") / "out", workers=2, progress=False)


@pytest.fixture(scope="module")
def rows(kinds: FleetResult) -> dict[str, dict[str, Any]]:
    """By id."""
    return {row["id"]: row for row in kinds.rows()}


def test_a_job_that_cannot_be_done_is_a_result(kinds: FleetResult, rows: dict[str, dict[str, Any]]) -> None:
    assert kinds.outcomes["invalid"] == 3
    assert kinds.exit_code == 3
    for name, reason in {
        "broken": "model.safetensors",
        "missing": "DataFileError: 'nowhere' cannot be looked into (No such file or directory)",
        "other": "InputError",
    }.items():
        assert rows[name]["outcome"] == "invalid"
        assert reason in rows[name]["reason"]
        assert rows[name]["report"] is None
        assert rows[name]["attempts"] == 1
        assert os.listdir(kinds.folder / "jobs" / name) == ["job.json"]


def test_a_row_holds_what_its_job_was_asked_for(kinds: FleetResult, rows: dict[str, dict[str, Any]]) -> None:
    full, plain = rows["full"], rows["plain"]
    asked = ("asr_before", "asr_after", "test_accuracy_before", "test_accuracy_after", "fidelity")
    blind = ("battery_before", "battery_after", "disagreement")
    for name in (*asked, *blind):
        assert plain[name] is None
        assert 0 <= full[name] <= (1 if name != "fidelity" else 100)
    assert full["n_holdout"] == 359  # the test split of digits, and none of what was trained on
    assert full["asr_before"] > 0.9
    report = json.loads((kinds.folder / full["report"]).read_text())
    assert report["data"]["n_samples"] == pytest.approx(1438 / 2, abs=5)
    assert full["test_accuracy_before"] == report["test"]["before"]["clean_accuracy"]["value"]
    assert full["asr_after"] == report["test"]["after"]["triggers"][0]["attack_success_rate"]["value"]
    evidence = json.loads((kinds.folder / "jobs" / "full" / "evidence.json").read_text())
    assert evidence["n"] == N_TEST
    assert full["battery_after"] == max(part["rate"]["value"] for part in evidence["battery"]["after"])


def test_the_test_part_is_measured_as_evaluate_does(rows: dict[str, dict[str, Any]], models: Path) -> None:
    model, _ = load_model(models / "m2")
    found = seamfast.evaluate(
        model,
        seamfast.load("digits", split="test").subset(range(N_TEST)),
        triggers=load_triggers(models.parent / "triggers.npz"),
    )
    assert rows["full"]["test_accuracy_before"] == found.clean_accuracy.value
    assert rows["full"]["asr_before"] == found.worst_attack_success_rate


def test_a_job_with_a_policy_is_a_gate(kinds: FleetResult, rows: dict[str, dict[str, Any]]) -> None:
    row = rows["gated"]
    assert row["kind"] == "gate"
    assert row["outcome"] in ("pass", "fail")
    assert row["report"] == "jobs/gated/report.html"
    report = json.loads((kinds.folder / "jobs" / "gated" / "report.json").read_text())
    assert report["verdict"]["outcome"] == row["outcome"]
    assert row["accuracy_before"] == report["audit"]["before"]["clean_accuracy"]["value"]
    assert row["battery_before"] is not None
    assert report["isolation"]["isolated"]
    assert (kinds.folder / "jobs" / "gated" / "sanitized").exists() == (row["outcome"] == "pass")


@pytest.mark.parametrize(("name", "architecture"), [("table", "mlp"), ("text", "text_cnn")])
def test_tables_and_texts(name: str, architecture: str, kinds: FleetResult, rows: dict[str, dict[str, Any]]) -> None:
    assert rows[name]["architecture"] == architecture
    assert rows[name]["accuracy_before"] > 0.8
    assert rows[name]["outcome"] in ("accepted", "undecided", "refused")
    if rows[name]["outcome"] == "accepted":
        _, description = load_model(kinds.folder / "jobs" / name)
        assert description.architecture == architecture


def test_jobs_of_all_kinds_are_done_once(kinds: FleetResult, jobs: Callable[..., Path], no_workers: None) -> None:
    again = run(jobs(), kinds.folder, progress=False)
    assert again.n_done_before == 9
    assert again.outcomes == kinds.outcomes


def test_what_changed_is_done_again(
    kinds: FleetResult, jobs: Callable[..., Path], models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(kinds.folder, out)
    place = models.parent
    before = results(out)
    # A model, data in a file, and a job's line; then, of the rest, times alone.
    model, description = load_model(models / "m2")
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.01)
    kept = tmp_path / "m2"
    shutil.copytree(models / "m2", kept)
    clean = (place / "clean.npz").read_bytes()
    with np.load(place / "clean.npz") as found:
        np.savez(place / "clean.npz", images=found["images"][:300], labels=found["labels"][:300])
    os.utime(place / "table" / "model.safetensors", (1, 1))
    os.utime(place / "texts.tsv", (1, 1))
    try:
        save_model(models / "m2", model, description)
        again = run(jobs(plain={"seed": 7}), out, workers=1, progress=False)
        assert again.n_done_before == 6
        assert {event["id"] for event in events(out, "done")[9:]} == {"file", "full", "plain"}
        after = results(out)
        assert {name for name in after if after[name] != before[name]} == {"file", "full", "plain"}
        assert after["file"][0]["n_holdout"] < before["file"][0]["n_holdout"]
    finally:
        shutil.rmtree(models / "m2")
        shutil.copytree(kept, models / "m2")
        (place / "clean.npz").write_bytes(clean)
        jobs()
    assert staged(out) == []
    assert half_written(out) == []
