"""Whatever ends or disturbs a fleet: what is there is whole, the next call does the rest, and nothing stays."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seamfast.fleet import FleetResult, run
from seamfast.fleet.nursery import ERRORS, RESULT, Nursery
from seamfast.fleet.slot import Slot
from seamfast.fleet.store import Store
from tests.fleet.small import (
    LONG,
    SHORT,
    awaited,
    children,
    events,
    gone,
    half_written,
    none_left,
    processes,
    results,
    staged,
    workers,
    write_images,
    write_jobs,
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a fleet is for Linux"),
    pytest.mark.usefixtures("temporary"),
]
CONFIG = {**SHORT, "recover_max_steps": 60, "recover_easy_steps": 60}
"""Of a job that takes long enough for a test to find its process."""
IDS = ("m0", "m1", "m2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of digits."""
    return write_images(tmp_path_factory.mktemp("fleet") / "models", 3)


@pytest.fixture(scope="module")
def undisturbed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ``results`` where nothing happens."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(models, out, data="digits", config=CONFIG, workers=1, progress=False)
    return results(out)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """The folder of a fleet, of which no process outlives the test."""
    with none_left(tmp_path / "out"):
        yield tmp_path / "out"


@contextlib.contextmanager
def meanwhile(does: Callable[[], None]) -> Iterator[None]:
    """Run ``does`` in a thread beside what is in the block; its errors are raised at the end."""
    raised: list[BaseException] = []

    def act() -> None:
        try:
            does()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


@pytest.fixture
def listed(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """``listed("m0", "m1", m1=changes)``: a file of jobs on these models, each with its changes."""

    def written(*names: str, **changes: dict[str, Any]) -> Path:
        lines = [{"id": name, "model": str(models / name), **changes.get(name, {})} for name in names or IDS]
        return write_jobs(tmp_path / "jobs.jsonl", lines)

    return written


def fleet(jobs: Path, out: Path, **changes: Any) -> FleetResult:
    return run(jobs, out, **{"data": "digits", "config": CONFIG, "workers": 1, "progress": False, **changes})


def kill_children(out: Path, number: int, times: int) -> None:
    """Send a signal to ``times`` processes of jobs, one after the other, as soon as they are there."""
    killed: set[int] = set()
    while len(killed) < times:
        pid = awaited(lambda: set(children(out)) - killed, "the process of a job").pop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        killed.add(pid)


def assert_tidy(out: Path, temporary: Path) -> None:
    """No process, and nothing half-written or left."""
    gone(out)
    assert half_written(out) == []
    assert staged(out) == []
    assert os.listdir(temporary) == []


# A job


def test_jobs_that_are_killed_are_tried_again(
    listed: Callable[..., Path], out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    jobs = listed("m0", "m1")

    def kill() -> None:
        kill_children(out, signal.SIGKILL, 1)
        awaited(lambda: events(out, "ended"), "the end of an attempt")
        kill_children(out, signal.SIGSEGV, 1)

    with meanwhile(kill):
        result = fleet(jobs, out)
    assert result.stopped is None
    assert results(out) == {name: undisturbed[name] for name in ("m0", "m1")}
    first, second = (event["reason"] for event in events(out, "ended"))
    assert "was ended by SIGKILL" in first
    assert "was ended by SIGSEGV" in second
    assert sorted(row["attempts"] for row in result.rows()) in ([2, 2], [1, 3])
    assert_tidy(out, temporary)


def test_a_job_that_is_killed_three_times_is_given_up(
    listed: Callable[..., Path], out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    jobs = listed("m1", "m0", m1={"config": LONG})

    def kill() -> None:
        kill_children(out, signal.SIGKILL, 1)
        awaited(lambda: events(out, "done"), "the end of the other job")
        kill_children(out, signal.SIGKILL, 2)

    with meanwhile(kill):
        result = fleet(jobs, out)
    assert result.outcomes["quarantined"] == 1
    assert result.exit_code == 2
    assert result.stopped is None
    given_up = {row["id"]: row for row in result.rows()}["m1"]
    assert given_up["attempts"] == 3
    assert given_up["report"] == "quarantine/m1/job.json"
    assert "was ended by SIGKILL" in given_up["reason"]
    reasons = json.loads((out / "quarantine" / "m1" / "job.json").read_text())["reasons"]
    assert len(reasons) == 3
    assert results(out)["m0"] == undisturbed["m0"]
    assert os.listdir(out / "jobs") == ["m0"]
    assert_tidy(out, temporary)

    # It stays given up, until something changes.
    assert fleet(jobs, out).n_done_before == 2
    assert len(events(out, "ended")) == 3
    again = fleet(listed("m1", "m0"), out)
    assert again.n_done_before == 1
    assert results(out) == {name: undisturbed[name] for name in ("m0", "m1")}
    assert os.listdir(out / "quarantine") == []
    assert_tidy(out, temporary)


def test_a_job_that_does_not_end_is_given_up(listed: Callable[..., Path], out: Path, temporary: Path) -> None:
    jobs = listed("m0", m0={"config": LONG})
    with meanwhile(lambda: kill_children(out, signal.SIGSTOP, 1)):  # the others use the processor
        result = fleet(jobs, out, max_time_s=1)
    (row,) = result.rows()
    assert row["outcome"] == "quarantined"
    assert [event["reason"] for event in events(out, "ended")] == [
        "did not end within 1 s, the limit that --max-time sets"
    ] * 3
    assert_tidy(out, temporary)


def test_a_job_that_lacks_memory_is_given_up(listed: Callable[..., Path], out: Path, temporary: Path) -> None:
    result = fleet(listed("m0"), out, max_memory=64 << 20)
    (row,) = result.rows()
    assert row["outcome"] == "quarantined"
    assert "the memory limit is 67,108,864 bytes; --max-memory sets it" in row["reason"]
    assert_tidy(out, temporary)


def test_a_model_that_changes_while_it_is_read_is_read_again(
    listed: Callable[..., Path], models: Path, out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    def touch() -> None:
        awaited(lambda: children(out), "the process of a job")
        while not events(out, "ended", "done"):
            os.utime(models / "m0" / "model.json")
            time.sleep(0.002)

    with meanwhile(touch):
        result = fleet(listed("m0"), out)
    assert events(out, "ended")[0]["reason"] == "the model's files changed while they were read"
    assert [row["attempts"] > 1 for row in result.rows()] == [True]
    assert results(out)["m0"] == undisturbed["m0"]
    assert_tidy(out, temporary)


# A worker


def test_a_worker_that_is_killed_is_replaced(
    listed: Callable[..., Path], out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    def kill() -> None:
        awaited(lambda: children(out), "the process of a job")
        os.kill(workers(out)[0], signal.SIGKILL)

    with meanwhile(kill):
        result = fleet(listed(), out, workers=2)
    assert result.stopped is None
    assert events(out, "lost")[0]["reason"] == "the worker process ended with status -9"
    assert results(out) == undisturbed
    assert sorted(event["id"] for event in events(out, "done")) == list(IDS)
    assert {row["attempts"] for row in result.rows()} == {1}  # a lost worker is not the job's fault
    assert events(out, "ended", "quarantined") == []
    assert_tidy(out, temporary)


# The call


def command(jobs: Path, out: Path, settings: Path, workers: int) -> list[str]:
    toml = settings / "short.toml"
    toml.write_text("".join(f"{name} = {value}\n" for name, value in CONFIG.items()))
    fixed = ("--data", "digits", "--config", str(toml), "--workers", str(workers))
    return [sys.executable, "-m", "seamfast", "fleet", str(jobs), "--out", str(out), *fixed, "--json"]


@pytest.fixture
def started(tmp_path: Path, temporary: Path, out: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``started(jobs)``: the command, as a process."""
    running: list[subprocess.Popen[str]] = []

    def start(jobs: Path, workers: int = 2) -> subprocess.Popen[str]:
        env = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
        running.append(
            subprocess.Popen(
                command(jobs, out, tmp_path, workers),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
                cwd=tmp_path,
            )
        )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


Started = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_fleet_in_order(
    number: int, started: Started, listed: Callable[..., Path], out: Path, temporary: Path
) -> None:
    process = started(listed("m0", "m1", m1={"config": LONG}), 1)
    awaited(lambda: events(out, "done") if out.exists() else None, "the end of a job")
    awaited(lambda: children(out), "the process of a job")
    process.send_signal(number)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == "seamfast: interrupted: 1 of 2 jobs are done; the same command goes on\n"
    document = json.loads(shown)
    assert document["stopped"] == "interrupted"
    assert document["outcomes"]["waiting"] == 1
    assert [event["stopped"] for event in events(out, "finished")] == ["interrupted"]
    assert events(out, "ended", "lost", "quarantined") == []
    assert len((out / "summary.jsonl").read_text().splitlines()) == 1
    assert processes(out) == {}
    assert_tidy(out, temporary)


def test_a_job_ends_with_its_worker(started: Started, listed: Callable[..., Path], out: Path) -> None:
    """Which gets no time to end it, where it is killed."""
    process = started(listed("m0", m0={"config": LONG}), 1)
    job = awaited(lambda: children(out), "the process of a job")[0]
    os.kill(workers(out)[0], signal.SIGKILL)
    awaited(lambda: job not in processes(out), "the end of the job", 5)
    process.terminate()
    process.communicate(timeout=60)
    gone(out)


def test_the_next_call_goes_on_where_a_kill_ended_one(
    started: Started, listed: Callable[..., Path], out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    process = started(listed(m1={"config": LONG}), 1)
    awaited(lambda: events(out, "done") if out.exists() else None, "the end of a job")
    awaited(lambda: children(out), "the process of a job")
    process.kill()
    process.wait()
    gone(out, 5)
    assert half_written(out) == []
    assert staged(out) != []  # nobody could remove it
    assert os.listdir(temporary) != []
    again = started(listed(), 1)
    shown, errors = again.communicate(timeout=100)
    assert errors == ""
    document = json.loads(shown)
    assert document["n_done_before"] == 1
    assert document["stopped"] is None
    assert sorted(event["id"] for event in events(out, "done")) == list(IDS)
    assert results(out) == undisturbed
    assert_tidy(out, temporary)


def test_kills_at_random_moments(
    started: Started, listed: Callable[..., Path], out: Path, temporary: Path, undisturbed: dict[str, Any]
) -> None:
    draw, jobs = random.Random(0), listed()
    for _ in range(3):
        process = started(jobs)
        awaited(lambda: workers(out), "a worker")
        time.sleep(draw.uniform(0, 3))
        if found := draw.choice([children, workers])(out):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(found), signal.SIGKILL)
        time.sleep(draw.uniform(0, 1))
        process.kill()
        process.communicate()
        gone(out, 5)
        assert half_written(out) == []
    _, errors = started(jobs).communicate(timeout=100)
    assert errors == ""
    assert results(out) == undisturbed
    assert {event["id"] for event in events(out, "done")} == set(IDS)
    assert_tidy(out, temporary)


# A full disk


def test_a_manifest_that_cannot_be_written_stops_the_fleet(
    started: Started, listed: Callable[..., Path], out: Path, temporary: Path
) -> None:
    Store(out, {"seed": 0, "data": "digits", "config": CONFIG}, (0, 1)).close()
    (out / "manifest.jsonl").unlink()
    (out / "manifest.jsonl").symlink_to("/dev/full")
    process = started(listed())
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert shown == ""
    assert errors == "seamfast: could not complete: OSError: [Errno 28] No space left on device\n"
    assert_tidy(out, temporary)


def test_a_result_that_may_not_be_written_is_given_up(listed: Callable[..., Path], out: Path, temporary: Path) -> None:
    def limit() -> None:
        awaited(lambda: children(out), "the process of a job")  # the clean data are written by then
        resource.prlimit(workers(out)[0], resource.RLIMIT_FSIZE, (1000, 1000))
        kill_children(out, signal.SIGKILL, 1)

    with meanwhile(limit):
        result = fleet(listed("m0"), out)
    (row,) = result.rows()
    assert row["outcome"] == "quarantined"
    assert [event["reason"] for event in events(out, "ended")][1:] == [row["reason"]] * 2
    assert row["reason"] == "OSError: [Errno 27] File too large (the limit on a file is 17,179,869,184 bytes)"
    assert_tidy(out, temporary)


# What a job leaves that was taken over


class Played(Nursery):
    """A worker whose children do what a test says."""

    def __init__(self, out: Path, play: Callable[[Path], Any]) -> None:
        staging = out / ".staging" / "worker"
        for folder in (staging, out / "jobs"):
            folder.mkdir(parents=True)
        super().__init__({"out": str(out), "key": "0123456789abcdef" * 4, "memory_bytes": None}, staging)
        self.play = play

    def _run(self, task: dict[str, Any]) -> str | None:
        self.play(Path(task["place"]))
        return None


TASK: dict[str, Any] = {
    "id": "m0",
    "kind": "sanitize",
    "settings": {"model": "/models/m0", "data": "digits"},
    "attempt": 2,
    "digests": {"data": "d", "config": "c", "version": "v"},
}
GOOD: dict[str, Any] = {"row": {"outcome": "refused", "reason": "why"}, "digest": "a", "stamp": "b"}


@pytest.fixture
def answer(tmp_path: Path) -> Iterator[Callable[[Callable[[Path], Any]], dict[str, Any]]]:
    """``answer(play)``: what a worker says where the child of a job does this to its folder."""
    made: list[Played] = []

    def answered(play: Callable[[Path], Any]) -> dict[str, Any]:
        if not made:
            made.append(Played(tmp_path / "out", play))
        made[0].play = play
        return made[0].answer(TASK)

    yield answered
    for nursery in made:
        nursery.close()


Answered = Callable[[Callable[[Path], Any]], dict[str, Any]]


def says(result: Any) -> Callable[[Path], Any]:
    """Leave this result."""
    text = result if isinstance(result, str) else json.dumps(result)
    return lambda place: (place / RESULT).write_text(text)


def test_a_result_is_published(answer: Answered, tmp_path: Path) -> None:
    found = answer(says(GOOD))
    assert found["row"]["outcome"] == "refused"
    assert found["row"]["attempts"] == 2
    document = json.loads((tmp_path / "out" / "jobs" / "m0" / "job.json").read_text())
    assert document["digests"] == {**TASK["digests"], "model": "a"}
    assert document["stamp"] == "b"
    assert document["row"] == found["row"]


@pytest.mark.parametrize(
    "result",
    [
        "",
        "{",
        "[" * 100_000,
        "1" * 10_000,
        '{"row": NaN}',
        "[]",
        '"ended"',
        "7",
        "null",
        json.dumps({**GOOD, "row": ["report"]}),
        json.dumps({**GOOD, "row": "report"}),
        json.dumps({**GOOD, "row": None}),
        json.dumps({"row": GOOD["row"]}),
        json.dumps({**GOOD, "more": "x" * (2 << 20)}),
    ],
    ids=lambda text: text[:12],
)
def test_a_result_that_is_none(result: str, answer: Answered, tmp_path: Path) -> None:
    assert answer(says(result))["ended"] == "left a result that cannot be read"
    assert os.listdir(tmp_path / "out" / "jobs") == []


def test_a_row_that_was_made_up(answer: Answered, tmp_path: Path) -> None:
    row = {"id": "other", "model": "/etc", "kind": "gate", "attempts": 1, "seconds": -1, "outcome": "quarantined\n"}
    row |= {"accuracy_before": 10**400, "accuracy_after": "1", "fidelity": True, "reason": "\x1b[31m" + "x" * 10_000}
    row |= {"report": "../../../etc/passwd", "made_up": 1, "n_holdout": float("inf"), "architecture": ["x"]}
    found = answer(says(json.dumps({**GOOD, "row": row, "digest": 1, "stamp": {}})))["row"]
    assert (found["id"], found["model"], found["kind"]) == ("m0", "/models/m0", "sanitize")
    assert found["attempts"] == 2
    assert found["seconds"] >= 0
    assert found["outcome"] == "error"
    for name in ("accuracy_before", "accuracy_after", "fidelity", "report", "n_holdout", "architecture"):
        assert found[name] is None
    assert "made_up" not in found
    assert "\x1b" not in found["reason"]
    assert len(found["reason"]) < 1000
    document = json.loads((tmp_path / "out" / "jobs" / "m0" / "job.json").read_text())
    assert document["digests"]["model"] is None
    assert document["stamp"] is None


def links(place: Path, outside: Path) -> None:
    (place / "out").symlink_to(outside)
    says(GOOD)(place)


def linked_file(place: Path, outside: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "model.safetensors").symlink_to(outside / "secret")
    says(GOOD)(place)


def linked_errors(place: Path, outside: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / ERRORS).symlink_to(outside / "secret")
    says({**GOOD, "row": {"outcome": "error"}})(place)


def linked_place(place: Path, outside: Path) -> None:
    place.rmdir()
    says(GOOD)(outside)
    place.symlink_to(outside)


def linked_result(place: Path, outside: Path) -> None:
    says(GOOD)(outside)
    (place / RESULT).symlink_to(outside / RESULT)


def piped_result(place: Path, outside: Path) -> None:
    os.mkfifo(place / RESULT)


def piped_errors(place: Path, outside: Path) -> None:
    os.mkfifo(place / ERRORS)
    says(GOOD)(place)


def folder_as_result(place: Path, outside: Path) -> None:
    (place / RESULT).mkdir()


def nothing(place: Path, outside: Path) -> None:
    pass


@pytest.mark.timeout(20)  # where it blocked, it would block for good
@pytest.mark.parametrize(
    "play",
    [
        *(links, linked_file, linked_errors, linked_place, linked_result),
        *(piped_result, piped_errors, folder_as_result, nothing),
    ],
)
def test_no_link_is_followed_and_no_pipe_is_opened(
    play: Callable[[Path, Path], None], answer: Answered, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("secret")
    found = answer(lambda place: play(place, outside))
    assert found["ended"] == "left a result that cannot be read"
    assert "secret" not in json.dumps(found)
    assert (outside / "secret").read_text() == "secret"
    assert not (outside / "job.json").exists()
    assert outside.stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "out" / "jobs") == []
    # And the next job is done as if nothing had been.
    assert answer(says(GOOD))["row"]["outcome"] == "refused"


def test_what_lies_beside_the_folder_of_a_job_does_not_disturb_the_next(answer: Answered, tmp_path: Path) -> None:
    def litter(place: Path) -> None:
        says(GOOD)(place)
        (place.parent / "file").write_text("x")
        (place.parent / "link").symlink_to(tmp_path)
        os.mkfifo(place.parent / "pipe")

    for _ in range(2):
        assert answer(litter)["row"]["outcome"] == "refused"
    assert tmp_path.is_dir()


def test_a_disk_that_is_full_is_a_reason_to_try_again(
    answer: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("seamfast.fleet.nursery.publish", full)
        found = answer(says(GOOD))
    assert found["ended"] == "the result could not be written: No space left on device"
    assert answer(says(GOOD))["row"]["outcome"] == "refused"


def test_what_a_job_printed_is_kept_in_part_and_without_escapes(answer: Answered, tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / ERRORS).write_bytes(b"early\n" + b"x" * 10_000 + b"\n\x1b[31mlate\xff\n")
        says({"ended": "MemoryError: \x1b[0m"})(place)

    found = answer(fail)
    assert found["ended"] == r"'MemoryError: \x1b[0m'"
    assert "early" not in found["errors"]
    assert "late" in found["errors"]
    assert "\x1b" not in found["errors"]


# A slot, without a fleet


def test_a_slot_that_was_stopped_starts_nothing(out: Path) -> None:
    slot = Slot({"out": str(out), "key": "k" * 64, "environment": {}, "memory_bytes": None}, "0")
    slot.stop()
    assert slot.run({"check": {}, "time_s": 1}) == {"lost": "the fleet was stopped", "worker": "0"}
    assert processes(out) == {}
    slot.close()


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("no folder")
    slot = Slot({"out": str(tmp_path / "out"), "key": "k" * 64, "environment": {}, "memory_bytes": None}, "0")
    found = slot.run({"check": {}, "time_s": 1})
    assert found["lost"].startswith("the worker could not start: NotADirectoryError: ")
    slot.close()
    assert processes(tmp_path / "out") == {}


def test_a_worker_whose_place_for_clean_data_is_taken_says_so(out: Path, temporary: Path) -> None:
    (out / ".staging").mkdir(parents=True)
    (temporary / f"seamfast-fleet-{os.getuid()}-{'k' * 16}").write_text("")
    slot = Slot({"out": str(out), "key": "k" * 64, "environment": {}, "memory_bytes": None}, "0")
    found = slot.run({"check": {}, "time_s": 1})
    assert found["lost"].startswith("the worker could not start: InputError: ")
    assert "is not a folder of this user alone; expected to make one, see TMPDIR" in found["lost"]
    slot.close()
    assert staged(out) == []


def test_workers_that_cannot_be_started_end_the_call(
    listed: Callable[..., Path], out: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("seamfast.fleet.slot"), "command", lambda *_: ["/bin/false"])
    result = fleet(listed(), out)
    assert result.stopped == "workers cannot be started: the worker process ended with status 1"
    assert result.outcomes == {"waiting": 3}
    assert result.exit_code == 2
    assert_tidy(out, temporary)


def test_a_full_disk_is_no_mistake_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would end the call as one that nobody need repeat."""
    work = importlib.import_module("seamfast.fleet.work")

    def met(number: int) -> Callable[[Any], None]:
        def raised(_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return raised

    for number in (errno.ENOSPC, errno.EDQUOT):
        monkeypatch.setattr(work, "share_data", met(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            work.why_wrong({"seed": 0})
    monkeypatch.setattr(work, "share_data", met(errno.ENOENT))
    assert work.why_wrong({"seed": 0}).startswith("FileNotFoundError: ")
