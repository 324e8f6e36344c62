"""The folder of a fleet, and how it tells what is done."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import DataFileError, InputError
from seamfast.fleet.fingerprint import Inputs, digest_of, stamp_of
from seamfast.fleet.jobs import Job
from seamfast.fleet.store import (
    COLUMNS,
    JOBS,
    STAGING,
    Store,
    as_row,
    n_listed,
    publish,
    rows,
    shards_missing,
    write_job,
)

SETTINGS = {"data": "digits", "seed": 0}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    data = tmp_path / "data.npz"
    data.write_bytes(b"1")
    return Job("one", {"model": str(model), "data": str(data), "seed": 0})


def leave(store: Store, job: Job) -> None:
    """What a worker leaves of a job."""
    staged = store.folder / STAGING / "staged"
    staged.mkdir()
    digests = {**store.digests(job), "model": digest_of(job.settings["model"])}
    write_job(staged, job.id, digests, stamp_of(job.settings["model"]), as_row({"id": job.id, "outcome": "accepted"}))
    publish(staged, store.folder / JOBS / job.id)


OPEN: list[Store] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def reopened(folder: Path) -> Store:
    """The store, once the one before is closed."""
    while OPEN:
        OPEN.pop().close()
    OPEN.append(Store(folder, SETTINGS, (0, 1)))
    return OPEN[-1]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    Store(tmp_path / "out", SETTINGS, (0, 1)).close()
    with pytest.raises(
        InputError, match="of a fleet whose seed is 0, and this call's is 1; expected the same settings"
    ):
        Store(tmp_path / "out", {**SETTINGS, "seed": 1}, (0, 1))
    with pytest.raises(InputError, match="whose method is None, and this call's is 'seam'"):
        Store(tmp_path / "out", {**SETTINGS, "method": "seam"}, (0, 1))
    reopened(tmp_path / "out").close()


def test_two_calls_at_once_are_refused_and_shards_are_not(tmp_path: Path) -> None:
    first = Store(tmp_path / "out", SETTINGS, (0, 2))
    second = Store(tmp_path / "out", SETTINGS, (1, 2))
    with pytest.raises(InputError, match="where another call is at work; expected to be alone"):
        Store(tmp_path / "out", SETTINGS, (1, 2))
    first.close()
    second.close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="which is not empty and no fleet's; expected a new folder"):
        Store(tmp_path, SETTINGS, (0, 1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is no folder of a fleet"):
        list(rows(tmp_path))


def test_torn_line_of_the_manifest_stays_alone(tmp_path: Path) -> None:
    store = reopened(tmp_path)
    store.record("began", n_jobs=3)
    store.close()
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"event": "do')
    store = reopened(tmp_path)
    store.record("began", n_jobs=5)
    store.close()
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 3
    assert n_listed(tmp_path) == 5


def test_what_a_killed_call_left_in_staging_goes(tmp_path: Path) -> None:
    reopened(tmp_path).close()
    left = tmp_path / STAGING / "worker-0.0123456789abcdef"
    left.mkdir()
    (left / "lock").touch()
    (left / "half").touch()
    reopened(tmp_path).close()
    assert not left.exists()


class TestDone:
    def test_same_job_is_done(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        assert store.is_done(job) is None
        leave(store, job)
        found = store.is_done(job)
        assert found is not None
        assert found["outcome"] == "accepted"

    @pytest.mark.parametrize("changed", ["model", "new file", "data", "seed", "version"])
    def test_whatever_changed_is_done_again(
        self, changed: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job)
        store.close()
        model = Path(job.settings["model"])
        if changed == "model":
            (model / "model.json").write_text("[]")
        elif changed == "new file":
            (model / "model.safetensors").touch()
        elif changed == "data":
            Path(job.settings["data"]).write_bytes(b"2")
        elif changed == "seed":
            job = Job(job.id, {**job.settings, "seed": 1})
        else:
            monkeypatch.setattr("seamfast.fleet.store.__version__", "99")
        assert reopened(tmp_path / "out").is_done(job) is None

    def test_a_touched_model_is_read_and_found_the_same(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job)
        os.utime(Path(job.settings["model"]) / "model.json", (1, 1))
        assert store.is_done(job) is not None

    def test_given_up_stays_given_up_unless_asked(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        row = store.quarantine(job, ["first", "last"], ["first\nwith stderr", "last"])
        assert (row["outcome"], row["reason"], row["attempts"]) == ("quarantined", "last", 2)
        assert store.is_done(job) == row
        assert store.is_done(job, retry_quarantined=True) is None
        assert list(rows(tmp_path / "out")) == [row]
        leave(store, job)
        store.forget_quarantine(job)
        assert [found["outcome"] for found in rows(tmp_path / "out")] == ["accepted"]

    def test_half_a_job_file_is_none(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job)
        path = tmp_path / "out" / JOBS / job.id / "job.json"
        path.write_text(path.read_text()[:-20])
        assert store.is_done(job) is None
        assert list(rows(tmp_path / "out")) == []


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    for content in ("old", "new"):
        staged = tmp_path / "staging" / "out"
        staged.mkdir(parents=True)
        (staged / content).touch()
        publish(staged, tmp_path / "place")
    assert [entry.name for entry in (tmp_path / "place").iterdir()] == ["new"]
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, [1], 10**400])
def test_rows_hold_nothing_that_was_made_up(value: Any) -> None:
    row = as_row({"id": "x", "outcome": "accepted", "accuracy_lost": value, "reason": "a\x1b[31m" * 1000, "more": 1})
    assert tuple(row) == COLUMNS
    assert row["accuracy_lost"] is None
    assert len(row["reason"]) < 500
    assert "\x1b" not in row["reason"]
    assert as_row({"outcome": "cleared"})["outcome"] == "error"
    json.dumps(row, allow_nan=False)


def test_shards_that_never_began_are_missed(tmp_path: Path) -> None:
    assert shards_missing(tmp_path) == []
    for k in (0, 2):
        (tmp_path / f"manifest-{k}-of-4.jsonl").touch()
    assert shards_missing(tmp_path) == ["1/4", "3/4"]
    (tmp_path / "manifest.jsonl").touch()
    assert shards_missing(tmp_path) == []


class TestFingerprint:
    def test_digest_is_of_names_and_bytes(self, tmp_path: Path) -> None:
        one = tmp_path / "one"
        one.mkdir()
        (one / "a").write_bytes(b"1")
        first, stamp = digest_of(one), stamp_of(one)
        os.utime(one / "a", (1, 1))
        assert digest_of(one) == first
        assert stamp_of(one) != stamp
        (one / "a").rename(one / "b")
        assert digest_of(one) != first

    def test_nothing_blocks_or_is_followed(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "zero").symlink_to("/dev/zero")
        (folder / "up").symlink_to(tmp_path)
        first = digest_of(folder)
        (tmp_path / "beside").write_bytes(b"1")
        assert digest_of(folder) == first
        assert stamp_of(folder)

    def test_missing_is_an_error_of_its_own(self, tmp_path: Path) -> None:
        for look in (stamp_of, digest_of):
            with pytest.raises(DataFileError, match="cannot be looked into"):
                look(tmp_path / "missing")

    def test_inputs_are_read_once_until_they_change(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, read = tmp_path / "data", []
        path.write_bytes(b"1")
        monkeypatch.setattr("seamfast.fleet.fingerprint.digest_of", lambda place: read.append(place) or f"d{len(read)}")
        for _ in range(2):
            inputs = Inputs(tmp_path / "inputs.json")
            assert inputs.digest(str(path)) == inputs.digest(str(path)) == "d1"
        time.sleep(0.01)
        path.write_bytes(b"22")
        assert Inputs(tmp_path / "inputs.json").digest(str(path)) == "d2"
        assert Inputs(tmp_path / "inputs.json").digest("digits") == "name:digits"
