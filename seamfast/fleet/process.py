"""A process that is told JSON objects on stdin, one a line, and answers in such lines on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_BYTES = 4 << 20  # of an answer


class ProcessLost(Exception):
    """The process ended, or answered what is no answer."""


class JsonProcess:
    """Starts it, in a session of its own.

    Args:
        name: of the process, for messages.
        command: program and arguments.
        environment: all variables that it has.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._answers = self._process.stdin, self._process.stdout
        self._unread = b""
        self._ready = select.poll()  # which, unlike select, takes descriptors above 1,023
        self._ready.register(self._answers, select.POLLIN)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def tell(self, message: Mapping[str, Any]) -> None:
        """Write a line; raises ``ProcessLost``."""
        try:
            self._tasks.write(json.dumps(message).encode() + b"\n")
            self._tasks.flush()
        except (OSError, ValueError) as error:  # the latter where another thread closed the pipe
            raise ProcessLost(f"{self._name} takes nothing more: {error}") from error

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """The next line, or ``None`` if none is there in time; raises ``ProcessLost``."""
        end = time.monotonic() + timeout_s  # of the whole line, however slowly it comes
        while b"\n" not in self._unread:
            if not self._ready.poll(1000 * max(0.0, end - time.monotonic())):
                return None
            part = os.read(self._answers.fileno(), 1 << 16)
            if not part:
                raise ProcessLost(f"{self._name} ended with status {self._process.wait()}")
            if len(self._unread) > _MOST_BYTES:
                raise ProcessLost(f"{self._name} answered with more than {_MOST_BYTES:,} bytes")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise ProcessLost(f"{self._name} answered with what is not JSON") from error
        if not isinstance(answer, dict):
            raise ProcessLost(f"{self._name} answered with what is not an object")
        return answer

    def leave(self) -> None:
        """Nothing more comes: the process ends what it is at, cleans up and ends. From any thread."""
        with contextlib.suppress(OSError, ValueError):
            self._tasks.close()

    def close(self, leave_s: float) -> None:
        """End the process, and what it started in its session; it may take ``leave_s`` seconds to clean up."""
        self.leave()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(leave_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()
