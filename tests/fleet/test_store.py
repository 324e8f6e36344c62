"""The folder of a fleet, and how it tells what is done."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from seamfast.errors import InputError
from seamfast.fleet.fingerprint import digest_of, stamp_of
from seamfast.fleet.jobs import Job
from seamfast.fleet.store import (
    COLUMNS,
    JOBS,
    OUTCOMES,
    QUARANTINE,
    STAGING,
    Store,
    as_row,
    n_listed,
    n_rows,
    publish,
    read_job,
    rows,
    settings_of,
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


def leave(store: Store, job: Job, outcome: str = "accepted") -> None:
    """What a worker leaves of a job."""
    staged = store.folder / STAGING / "staged"
    staged.mkdir()
    digests = {**store.digests(job), "model": digest_of(job.settings["model"])}
    write_job(staged, job.id, digests, stamp_of(job.settings["model"]), as_row({"id": job.id, "outcome": outcome}))
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
    left, fresh, used = (tmp_path / STAGING / f"worker-{k}.0123456789abcdef" for k in range(3))
    for folder in (left, fresh, used):
        folder.mkdir()
    (left / "lock").touch()
    (left / "half").touch()
    (used / "half").touch()
    with (used / "lock").open("w") as lock:  # a worker of another shard
        fcntl.flock(lock, fcntl.LOCK_EX)
        reopened(tmp_path).close()
        assert not left.exists()
        assert not fresh.exists()  # of one that was killed before it had a lock
        assert (used / "half").exists()
    reopened(tmp_path).close()
    assert not used.exists()


def test_run_json_is_what_was_asked_for(tmp_path: Path) -> None:
    settings = {**SETTINGS, "config": {"a": 1}, "fraction": 1.0}
    Store(tmp_path / "deep" / "out", settings, (0, 1)).close()
    document = json.loads((tmp_path / "deep" / "out" / "run.json").read_text())
    assert document == {"format": "seamfast-fleet", "version": 1, "settings": settings}
    assert settings_of(tmp_path / "deep" / "out") == settings
    with pytest.raises(
        InputError, match=r"out is 'out', of a fleet whose config is \{'a': 1\}, and this call's is None"
    ):
        Store(tmp_path / "deep" / "out", SETTINGS, (0, 1))
    Store(tmp_path / "deep" / "out", {**settings, "fraction": 1}, (0, 1)).close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": "other", "version": 1, "settings": {}}',
        '{"format": "seamfast-fleet", "version": 2, "settings": {}}',
        '{"format": "seamfast-fleet", "version": 1, "settings": 7}',
    ],
)
def test_a_run_json_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    reopened(tmp_path).close()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"is no folder of a fleet: it holds no run\.json of one"):
        Store(tmp_path, SETTINGS, (0, 1))
    with pytest.raises(InputError, match="is no folder of a fleet"):
        n_rows(tmp_path)
    assert (tmp_path / "run.json").read_text() == text


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="out is 'out', which is no folder; expected a new one"):
        Store(tmp_path / "out", SETTINGS, (0, 1))


def test_an_empty_folder_and_a_link_to_one_are_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    reopened(tmp_path / "out").close()
    assert (tmp_path / "real" / "run.json").is_file()


def test_a_call_that_did_nothing_can_be_taken_back(tmp_path: Path) -> None:
    """So that the next may have other settings."""
    store = reopened(tmp_path / "out")
    store.inputs.digest(str(tmp_path))
    store.record("began", n_jobs=1)
    store.take_back()
    store.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (mine := Store(tmp_path / "out", {"seed": 1}, (0, 1))).take_back()
    mine.close()
    assert list((tmp_path / "out").iterdir()) == []  # it was there before
    reopened(tmp_path / "out")


def test_what_others_may_need_is_not_taken_back(job: Job, tmp_path: Path) -> None:
    first = Store(tmp_path / "shards", SETTINGS, (0, 2))
    first.take_back()
    first.close()
    assert (tmp_path / "shards" / "run.json").exists()
    reopened(tmp_path / "out").close()
    reopened(tmp_path / "out").take_back()  # an earlier call made it
    assert (tmp_path / "out" / "run.json").exists()
    store = reopened(tmp_path / "done")
    leave(store, job)
    store.take_back()
    assert [row["id"] for row in rows(tmp_path / "done")] == ["one"]
    assert settings_of(tmp_path / "done") == SETTINGS


def test_events_are_lines_with_their_time(tmp_path: Path) -> None:
    store = reopened(tmp_path)
    store.record("began", n_jobs=3)
    store.record("done", id="x", reason='"began"\n')
    store.close()
    began, done = map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines())
    assert (began["event"], began["n_jobs"], done["reason"]) == ("began", 3, '"began"\n')
    assert datetime.fromisoformat(began["time"]).tzinfo is not None
    reopened(tmp_path).close()
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 2


def test_jobs_are_counted_over_shards_and_once(tmp_path: Path) -> None:
    """Each call lists its jobs anew, and another division into shards has the same jobs."""

    def call(n_jobs: int, shard: tuple[int, int]) -> None:
        with closing(Store(tmp_path, SETTINGS, shard)) as store:
            store.record("began", n_jobs=n_jobs)

    assert n_listed(tmp_path) == 0
    for shard, n_jobs in (((0, 2), 9), ((1, 2), 4), ((0, 2), 6)):
        call(n_jobs, shard)
    assert n_listed(tmp_path) == 10
    call(3, (1, 3))
    assert n_listed(tmp_path) == 3
    assert shards_missing(tmp_path) == ["0/3", "2/3"]
    call(11, (0, 1))
    assert n_listed(tmp_path) == 11
    assert shards_missing(tmp_path) == []
    (tmp_path / "manifest-of-mine.jsonl").write_text("{}")
    assert n_listed(tmp_path) == 11


class TestDone:
    def test_same_job_is_done(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        assert store.is_done(job) is None
        leave(store, job)
        found = store.is_done(job)
        assert found is not None
        assert found["outcome"] == "accepted"

    @pytest.mark.parametrize("changed", ["model", "same size", "new file", "no model", "data", "seed", "version"])
    def test_whatever_changed_is_done_again(
        self, changed: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job)
        store.close()
        model = Path(job.settings["model"])
        if changed == "model":
            (model / "model.json").write_text("[1]")
        elif changed == "same size":
            (model / "model.json").write_text("[]")
            os.utime(model / "model.json", (1, 1))
        elif changed == "no model":
            shutil.rmtree(model)
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

    def test_a_defect_stays_one_unless_asked(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job, outcome="error")
        assert store.is_done(job) is not None
        assert store.is_done(job, retry_quarantined=True) is None

    @pytest.mark.parametrize("changed", ["model", "touched", "no model", "data", "seed"])
    def test_given_up_is_tried_again_when_it_changed(self, changed: str, job: Job, tmp_path: Path) -> None:
        reopened(tmp_path / "out").quarantine(job, ["killed"], ["killed"])
        model = Path(job.settings["model"])
        if changed == "model":
            (model / "model.json").write_text("[1]")
        elif changed == "touched":  # its bytes were not looked at
            os.utime(model / "model.json", (1, 1))
        elif changed == "no model":
            shutil.rmtree(model)
        elif changed == "data":
            Path(job.settings["data"]).write_bytes(b"22")
        else:
            job = Job(job.id, {**job.settings, "seed": 1})
        assert reopened(tmp_path / "out").is_done(job) is None

    def test_a_huge_model_that_was_given_up_is_not_read(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A sparse file takes no place, and hashing it no end."""
        with (Path(job.settings["model"]) / "model.safetensors").open("wb") as file:
            file.truncate(1 << 40)
        monkeypatch.setattr("seamfast.fleet.store.digest_of", lambda _: pytest.fail("it was read"))
        store = reopened(tmp_path / "out")
        row = store.quarantine(job, ["did not end"], ["did not end"])
        assert store.is_done(job) == row
        os.utime(Path(job.settings["model"]) / "model.safetensors", (1, 1))
        assert store.is_done(job) is None

    def test_given_up_takes_the_place_of_what_the_job_was_before(self, job: Job, tmp_path: Path) -> None:
        """The result of the model that was there first is none of the one that was given up."""
        store = reopened(tmp_path / "out")
        leave(store, job)
        (Path(job.settings["model"]) / "model.json").write_text("[1]")
        assert store.is_done(job) is None
        row = store.quarantine(job, ["killed"], ["killed"])
        assert list(rows(tmp_path / "out")) == [row]
        assert store.is_done(job) == row
        assert n_rows(tmp_path / "out") == 1

    def test_given_up_holds_where_a_result_of_before_is_left(self, job: Job, tmp_path: Path) -> None:
        """A kill can come between the two."""
        store = reopened(tmp_path / "out")
        leave(store, job)
        shutil.copytree(tmp_path / "out" / JOBS / job.id, tmp_path / "before")
        (Path(job.settings["model"]) / "model.json").write_text("[1]")
        row = store.quarantine(job, ["killed"], ["killed"])
        (tmp_path / "before").rename(tmp_path / "out" / JOBS / job.id)
        assert store.is_done(job) == row

    def test_a_model_that_was_not_there(self, job: Job, tmp_path: Path) -> None:
        missing = Job("none", {**job.settings, "model": str(tmp_path / "missing")})
        store = reopened(tmp_path / "out")
        row = store.quarantine(missing, ["killed"], ["killed"])
        assert store.is_done(missing) == row
        (tmp_path / "missing").mkdir()
        assert store.is_done(missing) is None

    def test_the_row_is_of_the_job_and_its_details_are_kept(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        store.quarantine(job, ["first", "last"], ["first\nwith stderr", "last"])
        document = read_job(tmp_path / "out" / QUARANTINE / job.id)
        assert document is not None
        assert document["reasons"] == ["first\nwith stderr", "last"]
        assert document["row"]["report"] == "quarantine/one/job.json"
        shutil.copytree(tmp_path / "out" / QUARANTINE / job.id, tmp_path / "out" / QUARANTINE / "renamed")
        found = store.is_done(Job("renamed", job.settings))
        assert found is not None
        assert found["id"] == "renamed"
        assert os.listdir(tmp_path / "out" / STAGING) == ["lock"]

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "null",
            "{}",
            "[" * 100_000,
            '{"format": "seamfast-fleet-job", "digests": [], "row": {}}',
            '{"format": "seamfast-fleet-job", "digests": {}, "row": null}',
            '{"format": "seamfast-fleet-job", "digests": {}}',
            '{"format": "other", "digests": {}, "row": {}}',
        ],
    )
    def test_a_job_file_of_something_else_is_none(self, text: str, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        place = tmp_path / "out" / JOBS / job.id
        place.mkdir()
        (place / "job.json").write_text(text)
        assert read_job(place) is None
        assert store.is_done(job) is None
        assert list(rows(tmp_path / "out")) == []

    def test_half_a_job_file_is_none(self, job: Job, tmp_path: Path) -> None:
        store = reopened(tmp_path / "out")
        leave(store, job)
        path = tmp_path / "out" / JOBS / job.id / "job.json"
        path.write_text(path.read_text()[:-20])
        assert store.is_done(job) is None
        assert list(rows(tmp_path / "out")) == []


@pytest.mark.parametrize("before", ["nothing", "empty", "full", "file"])
def test_publishing_needs_no_free_place(before: str, tmp_path: Path) -> None:
    place, staged = tmp_path / "jobs" / "one", tmp_path / "staging" / "out"
    staged.mkdir(parents=True)
    (staged / "job.json").touch()
    place.parent.mkdir()
    if before == "file":
        place.touch()
    elif before != "nothing":
        place.mkdir()
        if before == "full":
            (place / "old").mkdir()
            (place / "old" / "file").touch()
    publish(staged, place)
    assert [path.name for path in (tmp_path / "jobs").rglob("*")] == ["one", "job.json"]
    assert not staged.exists()


def test_publishing_where_it_cannot_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged, place = tmp_path / "out", tmp_path / "missing" / "one"
    staged.mkdir()
    with pytest.raises(FileNotFoundError):
        publish(staged, place)
    place.mkdir(parents=True)
    (place / "old").touch()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        publish(staged, place)
    assert (place / "old").exists()


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    for content in ("old", "new"):
        staged = tmp_path / "staging" / "out"
        staged.mkdir(parents=True)
        (staged / content).touch()
        publish(staged, tmp_path / "place")
    assert [entry.name for entry in (tmp_path / "place").iterdir()] == ["new"]
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True, [1], {}, None, 10**400, 2**63, -(2.0**63)])
def test_rows_hold_nothing_that_was_made_up(value: Any) -> None:
    row = as_row({"id": "x", "outcome": "accepted", "accuracy_lost": value, "reason": "a\x1b[31m" * 1000, "more": 1})
    assert tuple(row) == COLUMNS
    assert row["accuracy_lost"] is None
    assert len(row["reason"]) < 500
    assert "\x1b" not in row["reason"]
    assert as_row({"outcome": "cleared"})["outcome"] == "error"
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("value", [7, None, [], {"a": 1}, True, math.nan])
def test_texts_of_a_row_are_texts(value: Any) -> None:
    made_up = as_row(dict.fromkeys(COLUMNS, value))
    texts = ("id", "model", "kind", "reason", "architecture", "report")
    assert {name: made_up[name] for name in texts} == dict.fromkeys(texts)
    assert made_up["outcome"] == "error"


def test_a_row_holds_what_was_measured() -> None:
    texts = {name: f"{name}-ü" for name in ("id", "model", "kind", "reason", "architecture", "report")}
    numbers = {name: 0.5 for name in COLUMNS if name not in (*texts, "outcome")}
    for outcome in OUTCOMES:
        row = {**texts, "outcome": outcome, **numbers}
        assert as_row(row) == row
    assert as_row({"seconds": 0, "accuracy_lost": -0.0, "attempts": 3})["attempts"] == 3
    assert as_row({"id": "x" * 401})["id"] == "x" * 200 + "..." + "x" * 200
    assert as_row({"id": "a\ud800"})["id"] == "'a\\ud800'"


def test_rows_are_in_the_order_of_their_ids_and_of_whole_folders(job: Job, tmp_path: Path) -> None:
    store = reopened(tmp_path / "out")
    assert list(rows(tmp_path / "out")) == []
    for name in ("b", "a"):
        leave(store, Job(name, job.settings))
    store.quarantine(Job("ab", job.settings), ["killed"], ["killed"])
    (tmp_path / "out" / JOBS / "c").mkdir()
    (tmp_path / "out" / JOBS / ".DS_Store").touch()
    assert [(row["id"], row["outcome"]) for row in rows(tmp_path / "out")] == [
        ("a", "accepted"),
        ("ab", "quarantined"),
        ("b", "accepted"),
    ]


def test_shards_that_never_began_are_missed(tmp_path: Path) -> None:
    assert shards_missing(tmp_path) == []
    for k in (0, 2):
        (tmp_path / f"manifest-{k}-of-4.jsonl").touch()
    assert shards_missing(tmp_path) == ["1/4", "3/4"]
    (tmp_path / "manifest.jsonl").touch()
    os.utime(tmp_path / "manifest.jsonl", (1 << 33, 1 << 33))
    assert shards_missing(tmp_path) == []
