"""The worker process: has torch loaded and the clean data at hand, and forks a child for each job.

It reads no model. A child does, limited and confined, and writes to a staging folder; what it leaves there is checked
and published here. A child that crashes, hangs or takes too much memory ends alone, and nothing of one job is left in
the process of the next. On a GPU, children of ``sanitize`` jobs live on, since a CUDA context and captured graphs are
what a job would wait for; a gate's never do.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from seamfast.errors import DataFileError, SeamfastError
from seamfast.fleet.store import JOBS, STAGING, as_row, publish, write_job
from seamfast.isolation import state
from seamfast.isolation.child import why_ended
from seamfast.isolation.confine import confine, die_with_parent
from seamfast.isolation.folders import open_to_others, private_folder
from seamfast.isolation.limits import Limits
from seamfast.terminal import say
from seamfast.untrusted import open_regular, printable

RESULT, ERRORS = "result.json", "stderr.txt"
REPORTS = ("report.json", "report.html")
_MOST_BYTES = 1 << 20  # of a result
_MOST_ERRORS = 4000  # characters of stderr that are kept
_OUT_OF_MEMORY_SCORE = "800"  # of 1000: where memory runs out, the system ends a job before anything else


def main() -> NoReturn:
    """Answer each line on stdin with one on stdout, until stdin ends."""
    how = json.loads(sys.argv[3])
    die_with_parent(how["parent"])
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what is printed is no answer
    sys.path += how["path"]

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        with private_folder(Path(how["out"]) / STAGING, f"worker-{how['name']}") as (staging, lock):
            os.set_inheritable(lock, True)
            nursery = Nursery(how, staging)
            tell({"ready": True})
            with contextlib.suppress(_Abandoned):
                for line in sys.stdin:
                    tell(nursery.answer(json.loads(line)))
            nursery.close()
    except BrokenPipeError:  # nobody waits for the answer any more
        pass
    except (OSError, MemoryError, ImportError, SeamfastError) as error:
        with contextlib.suppress(BrokenPipeError):
            tell({"failed": f"{type(error).__name__}: {error}"})
    sys.stderr.flush()
    os._exit(0)


class _Abandoned(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class _Child:
    """A forked process: its number, a descriptor that is readable when it has ended, and the way to it."""

    pid: int
    ended: int
    tasks: Any
    answers: Any


class Nursery:
    """Runs tasks in children.

    Args:
        how: what the slot was given.
        staging: where children write; on the file system of the fleet's folder.
    """

    def __init__(self, how: dict[str, Any], staging: Path) -> None:
        from seamfast.fleet import work

        self.how, self.staging, self.work = how, staging, work
        self.child: _Child | None = None
        work.prepare(how)

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run a task to its end: ``{"row": ...}``, published; ``{"ended": why}``, to be tried again; or ``{"error":
        ...}`` to a question about settings."""
        if "check" in task:
            return {"error": self.work.why_wrong(task["check"])}
        for entry in self.staging.iterdir():
            if entry.name != "lock":
                _remove(entry)
        place = self.staging / "job"
        place.mkdir()
        began = time.monotonic()
        with contextlib.suppress(SeamfastError):  # which the child meets too, and reports
            self.work.share_data(task["settings"])
        ended = self._run({**task, "place": str(place)})
        seconds = time.monotonic() - began
        if ended is not None:
            self.end_child()
            return {"ended": ended, "errors": _tail(place / ERRORS), "seconds": seconds}
        try:
            return self._publish(task, place, seconds)
        except OSError as error:
            return {"ended": f"the result could not be written: {error.strerror}", "errors": "", "seconds": seconds}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {"ended": "left a result that cannot be read", "errors": _tail(place / ERRORS), "seconds": seconds}

    def close(self) -> None:
        """End the child, and leave the clean data to others."""
        self.end_child()
        self.work.finish()

    # A child and its end

    def _run(self, task: dict[str, Any]) -> str | None:
        """Let a child do ``task``; why it was ended, or ``None`` where it left a result."""
        limits = Limits.of(task["memory_bytes"] or self.how["memory_bytes"], task["time_s"])
        child = self.child = self.child or self._fork(limits, task["lives_on"], task["cuda"])
        with contextlib.suppress(BrokenPipeError):
            child.tasks.write(json.dumps(task).encode() + b"\n")
            child.tasks.flush()
        # stdin is watched too: nothing comes meanwhile but its end, when nobody waits for the answer any more.
        ready, _, _ = select.select([child.answers, child.ended, 0], [], [], task["time_s"])
        if not ready:
            self.end_child()
            return f"did not end within {task['time_s']:g} s, the limit that --max-time sets"
        if child.answers in ready and child.answers.read(1) == b"+":
            if not task["lives_on"]:
                self.end_child()
            return None
        status = self.end_child()
        if ready == [0]:
            raise _Abandoned
        return why_ended(status, limits)

    def _fork(self, limits: Limits, lives_on: bool, cuda: bool) -> _Child:
        if (n_threads := len(os.listdir("/proc/self/task"))) != 1:
            raise OSError(f"the worker has {n_threads} threads; expected one, to fork")
        task_reader, task_writer = os.pipe()
        answer_reader, answer_writer = os.pipe()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()  # of a process without threads
        if pid == 0:
            os.close(task_writer)
            os.close(answer_reader)
            self._be_child(parent, task_reader, answer_writer, limits, lives_on, cuda)
        os.close(task_reader)
        os.close(answer_writer)
        tasks, answers = os.fdopen(task_writer, "wb"), os.fdopen(answer_reader, "rb", buffering=0)
        return _Child(pid, os.pidfd_open(pid), tasks, answers)

    def _be_child(self, parent: int, tasks: int, answers: int, limits: Limits, lives_on: bool, cuda: bool) -> NoReturn:
        """The child: isolated, then one job, or one after another."""
        try:
            os.setsid()
            die_with_parent(parent)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE, encoding="ascii")
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            (limits if not lives_on else _without_cpu_limit(limits)).apply()
            state.current.isolated, state.current.limits = True, limits
            confine([str(self.staging)], cuda=cuda, isolation=state.current)
            with os.fdopen(tasks, "rb") as lines:
                for line in lines:
                    task = json.loads(line)
                    errors = os.open(Path(task["place"]) / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    os.dup2(errors, 1)
                    os.dup2(errors, 2)
                    os.close(errors)
                    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = task["place"]  # known already here
                    result = self.work.do(task)
                    partial = Path(task["place"]) / f"{RESULT}.partial"
                    partial.write_text(json.dumps(result), encoding="ascii")
                    partial.rename(partial.with_name(RESULT))
                    os.write(answers, b"+")
                    if not lives_on:
                        break
        except BaseException as error:  # whatever an import under a limit brings up
            say(state.explained(error))
            os._exit(3)
        os._exit(0)

    def end_child(self) -> int:
        """End the child and its session, if there is one; its status, below 0 by a signal."""
        if self.child is None:
            return 0
        child, self.child = self.child, None
        with contextlib.suppress(OSError):
            child.tasks.close()
        for end in (os.killpg, os.kill):  # its session, and itself where it has not come to have one
            with contextlib.suppress(ProcessLookupError):
                end(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        child.answers.close()
        os.close(child.ended)
        return os.waitstatus_to_exitcode(status)

    # Its result

    def _publish(self, task: dict[str, Any], place: Path, seconds: float) -> dict[str, Any]:
        _check_kinds(place)
        with open_regular(place / RESULT, "the result of a job", follow=False) as file:
            result = json.loads(file.read(_MOST_BYTES))
        if "ended" in result:
            ended = printable(result["ended"], _MOST_ERRORS)
            return {"ended": ended, "errors": _tail(place / ERRORS), "seconds": seconds}
        given = {"id": task["id"], "model": task["settings"]["model"], "kind": task["kind"]}
        given |= {"seconds": round(seconds, 3), "attempts": task["attempt"]}
        out = place / "out"
        out.mkdir(exist_ok=True)
        named = result["row"].get("report")
        is_there = named in REPORTS and (out / named).is_file()
        given["report"] = f"{JOBS}/{task['id']}/{named}" if is_there else None
        row = as_row({**result["row"], **given})
        if row["outcome"] == "error":
            (out / ERRORS).write_text(_tail(place / ERRORS), encoding="utf-8")
        digest, stamp = (value if isinstance(value, str) else None for value in (result["digest"], result["stamp"]))
        write_job(out, task["id"], {**task["digests"], "model": digest}, stamp, row)
        open_to_others(out)  # which a confined process may not
        publish(out, Path(self.how["out"]) / JOBS / task["id"])
        return {"row": row, "seconds": seconds}


def _without_cpu_limit(limits: Limits) -> Limits:
    """Of a child that lives on: processor time adds up over its jobs, and the clock is watched from outside."""
    return Limits(limits.memory_bytes, limits.time_s, resource.RLIM_INFINITY, limits.open_files, limits.file_bytes)


def _remove(path: Path) -> None:
    """What a child left, of whatever kind."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_kinds(place: Path) -> None:
    """Raise ``ValueError`` if there is anything but folders and regular files: a link could lead this process, which is
    not confined, out of the staging folder, and a pipe would block it."""
    waiting = [place]
    while waiting:
        path = waiting.pop()
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            waiting.extend(path.iterdir())
        elif not stat.S_ISREG(mode):
            raise ValueError(f"{path.name} is neither a folder nor a regular file")


def _tail(path: Path) -> str:
    """The end of what was printed, without escapes."""
    try:
        with open_regular(path, "what a job printed", follow=False) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _MOST_ERRORS))
            text = file.read(_MOST_ERRORS).decode("utf-8", "backslashreplace")
    except (OSError, DataFileError):
        return ""
    return "\n".join(printable(line, 400) for line in text.splitlines())
