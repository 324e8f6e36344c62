"""``seamfast gate`` as a command: it runs in a process of its own, and this one watches, cleans up and answers.

    supervisor ── starts ──▶ worker: isolated Python, limits, Landlock, seccomp, then torch; writes to private folders
        │                      │
        │◀── ends, or is ended ┘
        ├── renames what the worker staged to --out, prints its document, returns its exit code
        └── janitor: a child that waits for the supervisor to be killed, then ends the worker and removes the folders

The worker's exit status is no verdict: that is in a file, which it writes last. What ends it otherwise is reported as
incomplete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from seamfast.errors import InputError
from seamfast.isolation.child import command, environment, user_site, why_ended
from seamfast.isolation.confine import adopt_orphans
from seamfast.isolation.folders import open_to_others, private_folder, why_unusable
from seamfast.isolation.limits import Limits
from seamfast.options import EXIT_INCOMPLETE, EXIT_USAGE, gate_parser, written_to
from seamfast.terminal import say, write_out
from seamfast.worker import RESULT

_REPORTING_S = 600.0  # that the report on a run that was ended may take


class _Interrupted(Exception):
    """One of the signals came that end a run."""


def supervise(argv: Sequence[str], *, has_stdout: bool = True) -> int:
    """Run ``seamfast gate ARGV`` in a process of its own and return the exit code.

    Args:
        argv: what stands behind ``gate``.
        has_stdout: whether the descriptor was open when the command began.
    """
    arguments = gate_parser().parse_args(argv)
    if reason := why_unusable(arguments.model, arguments.out, arguments.architecture_path):
        say(f"seamfast: {reason}")
        return EXIT_USAGE
    # Blocked, they are waited for, and interrupt nothing else.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_ending(), signal.SIGCHLD})
    try:
        return _Run(arguments, argv).answer(has_stdout)
    except _Interrupted:
        say("seamfast: interrupted")
    except OSError as error:
        say(f"seamfast: could not complete: {type(error).__name__}: {error}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return EXIT_INCOMPLETE


class _Run:
    """One run of the gate, its folders and its processes."""

    def __init__(self, arguments: Namespace, argv: Sequence[str]) -> None:
        self.arguments, self.argv = arguments, argv
        self.out = None if arguments.out is None or arguments.dry_run else Path(os.path.abspath(arguments.out))
        self.limits = Limits.of(arguments.max_memory, arguments.max_time)
        self.private = Path()
        self.staging: Path | None = None
        self.locks: list[int] = []
        self.signed_by: str | None = None

    def answer(self, has_stdout: bool) -> int:
        """Run, publish, print; the exit code."""
        with contextlib.ExitStack() as stack:
            try:
                self._make_folders(stack)
            except OSError as error:
                if self.out is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE):
                    raise
                say(
                    f"seamfast: out is {self.arguments.out!r}, beside which nothing can be written ({error.strerror}); "
                    "expected a folder that does not exist yet in one that can be written to"
                )
                return EXIT_USAGE
            self.janitor = stack.enter_context(_janitor([self.private, *([self.staging] if self.staging else [])]))
            try:
                self._look_at_key()
            except InputError as error:
                say(f"seamfast: {type(error).__name__}: {error}")
                return EXIT_USAGE
            self.adopts = adopt_orphans()
            self.others = _children()
            answer = self._answer_of_worker()
            code, text = answer["code"], answer["text"]
            if self._publish(code) and not self.arguments.json:
                text += written_to(self.arguments.out) + "\n"
            if code == 0 and self.out is not None and not self.out.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the run passed and wrote no output", self.arguments.out)
        is_told = has_stdout and write_out(text)
        if not is_told and text and (self.out is None or not self.out.is_dir()):
            say("seamfast: could not complete: the report cannot be written to stdout, and there is no --out")
            return EXIT_INCOMPLETE
        return int(code)

    def _make_folders(self, stack: contextlib.ExitStack) -> None:
        if self.out is not None:
            stack.callback(_remove_empty, _made(self.out.parent))
            self.staging, lock = stack.enter_context(private_folder(self.out.parent, f".{self.out.name}"))
            self.locks.append(lock)
        self.private, lock = stack.enter_context(private_folder(Path(tempfile.gettempdir()), "seamfast-gate"))
        self.locks.append(lock)
        (self.private / "tmp").mkdir()

    def _look_at_key(self) -> None:
        """Find a key that cannot sign before the run. The worker gets the digest of the key, never the key."""
        if self.staging is None or self.arguments.sign_key is None:
            return
        from seamfast.gating.provenance.attestation import signing_key_sha256  # imports what may start threads

        self.signed_by, warnings = signing_key_sha256(self.arguments.sign_key, model=self.arguments.model)
        for warning in warnings:
            say(f"seamfast: {warning}")

    def _answer_of_worker(self) -> dict[str, Any]:
        """What the worker left; where it left nothing, what another one reports about that."""
        ended = self._start_and_wait(self.limits, None)
        if ended is None:
            answer = self._result()
            if "failed" not in answer:
                return answer
            ended = answer["failed"]
        self._clear_staging()
        say(f"seamfast: {ended}")
        reporting = Limits.of(None, _REPORTING_S)
        if self._start_and_wait(reporting, ended) is None and "code" in (answer := self._result()):
            return answer
        return {"code": EXIT_INCOMPLETE, "text": ""}

    def _start_and_wait(self, limits: Limits, stopped: str | None) -> str | None:
        """Run a worker; why it was ended, or ``None`` where it left a result."""
        (self.private / RESULT).unlink(missing_ok=True)
        how = {
            "private": str(self.private),
            "staging": None if self.staging is None else str(self.staging),
            "parent": os.getpid(),
            "limits": limits.to_dict(),
            "stopped": stopped,
            "cuda": self.arguments.device != "cpu",
            "path": user_site(),
            "signed_by": self.signed_by,
        }
        process = subprocess.Popen(
            command("seamfast.worker", [json.dumps(how), *self.argv]),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what is printed there is no document
            env=environment(self.private / "tmp"),
            pass_fds=self.locks,
            start_new_session=True,
        )
        self._tell_janitor(process.pid)
        try:
            in_time = _wait(process, limits.time_s)
        finally:
            self._end(process)
        if not in_time:
            return f"did not end within {limits.time_s:g} s, the limit that --max-time sets"
        if (self.private / RESULT).exists():
            return None
        return why_ended(process.returncode, limits)

    def _tell_janitor(self, process: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self.janitor, b"%d\n" % process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the worker and all that it started, also what has left its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._tell_janitor(0)
        while self.adopts and (left := _children() - self.others):
            for child in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, 0)

    def _result(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.private / RESULT).read_text(encoding="ascii"))
        return answer

    def _clear_staging(self) -> None:
        for folder in (self.staging, self.private / "tmp"):
            for entry in [] if folder is None else os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.name != "lock":
                    os.unlink(entry.path)

    def _publish(self, code: int) -> bool:
        """Whether something was staged, which is ``--out`` now."""
        if self.out is None or self.staging is None or not (self.staging / "out").is_dir():
            return False
        if self.signed_by is not None:  # here, since the process that has read the model must not read the key
            from seamfast.gating.provenance.attestation import sign_folder

            key, model = self.arguments.sign_key, self.arguments.model
            sign_folder(self.staging / "out", key, self.signed_by, model=model)
        open_to_others(self.staging / "out")  # which the worker may not
        os.rename(self.staging / "out", self.out)  # over an empty folder too, and over nothing else
        return True


def _ending() -> set[signal.Signals]:
    """The signals that end a run: those of the three that are not ignored, as they are under nohup."""
    return {s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN}


def _wait(process: subprocess.Popen[bytes], time_s: float) -> bool:
    """Whether the process ended by itself within the time."""
    end = time.monotonic() + time_s
    while process.poll() is None:
        left = end - time.monotonic()
        if left <= 0:
            return False
        came = signal.sigtimedwait({*_ending(), signal.SIGCHLD}, min(left, 60.0))
        if came is not None and came.si_signo != signal.SIGCHLD:
            raise _Interrupted
    return True


def _children() -> set[int]:
    """The processes whose parent is this one."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                status = Path("/proc", name, "stat").read_bytes()
                if int(status.rpartition(b")")[2].split()[1]) == os.getpid():
                    found.add(int(name))
    return found


@contextlib.contextmanager
def _janitor(folders: Sequence[Path]) -> Iterator[int]:
    """A process that waits for this one to end, in whatever way, and then cleans up what it did not.

    Yields a descriptor to which the process to end with this one is written, a line each, 0 for none.
    """
    reader, writer = os.pipe()
    child = os.fork()  # of a process without threads
    if child == 0:
        os.close(writer)
        _clean_after(reader, folders)
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _clean_after(reader: int, folders: Sequence[Path]) -> NoReturn:
    try:
        os.setsid()  # what ends the supervisor's group, or its terminal, does not end this one
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # so that nobody waits for their end
            os.dup2(null, descriptor)
        told = b"0\n"
        while part := os.read(reader, 4096):
            told = (told + part)[-100:]
        worker = int(told.splitlines()[-1])
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)
        for folder in folders:
            for _ in range(50):  # while what was ended may still write
                shutil.rmtree(folder, ignore_errors=True)
                if not os.path.lexists(folder):
                    break
                time.sleep(0.1)
    finally:
        os._exit(0)


def _made(folder: Path) -> list[Path]:
    """The folders that did not exist, ``folder`` and those that it lies in, which are made; the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    if not missing and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
