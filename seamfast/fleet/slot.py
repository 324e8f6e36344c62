"""A slot: one worker process, which is told its jobs over a pipe and answers in JSON, and is started anew when it ends.

driver, or an actor of Ray ── slot ── pipe ──▶ nursery: torch loaded, data shared, no model ever read
                                                 └── fork ──▶ work: one job, limited and confined
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from seamfast.isolation.child import command, environment, user_site

START_S = 300.0
"""That a worker may take to import torch and to read the clean data, on a machine with much other load."""
_LEAVE_S = 10.0  # that a worker may take to clean up
_GRACE_S = 120.0  # beyond the limit on a job, which the nursery enforces
_MOST_BYTES = 4 << 20  # of an answer

Task = dict[str, Any]
Answer = dict[str, Any]


class SlotLost(Exception):
    """The worker process ended, or did not answer, and its job with it."""


class Slot:
    """One job at a time, in a process that stays.

    Args:
        how: for ``seamfast.fleet.nursery``: the fleet's folder, limits, the device's share; JSON values.
        name: of the worker, for the manifest.
    """

    def __init__(self, how: dict[str, Any], name: str) -> None:
        self.how, self.name = how, name
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._stopped = threading.Event()

    def run(self, task: Task) -> Answer:
        """The answer to one task; ``{"lost": why}`` where the worker ended meanwhile, which is none of the job's."""
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            self._tell(task)
            answer = self._answer(time.monotonic() + task["time_s"] + _GRACE_S)
        except (SlotLost, OSError, ValueError) as error:  # the latter where another thread closed the pipe
            self.close()
            return {"lost": str(error), "worker": self.name}
        return {**answer, "worker": self.name}

    def stop(self) -> None:
        """From another thread: end the worker, so that ``run`` returns, and start none any more."""
        self._stopped.set()
        if self._process is not None:
            self._leave(self._process)

    def close(self) -> None:
        """End the worker and what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        self._leave(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    @staticmethod
    def _leave(process: subprocess.Popen[bytes]) -> None:
        """Nothing more comes: the worker ends its job, cleans up and ends."""
        if process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.close()

    def _start(self) -> None:
        self.close()
        if self._stopped.is_set():
            raise SlotLost("the fleet was stopped")
        self._unread = b""
        how = {**self.how, "parent": os.getpid(), "path": user_site(), "name": self.name}
        # One thread for each library: the nursery forks, and models as small as these gain nothing from a second.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            command("seamfast.fleet.nursery", [json.dumps(how)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(Path(tempfile.gettempdir())) | threads | self.how["environment"],
            start_new_session=True,
        )
        if self._stopped.is_set():
            self.close()
            raise SlotLost("the fleet was stopped")
        ready = self._answer(time.monotonic() + START_S)
        if "ready" not in ready:
            raise SlotLost(f"the worker could not start: {ready.get('failed', 'no reason given')}")

    def _tell(self, task: Task) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, end: float) -> Answer:
        """The next line of the worker, read as JSON."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise SlotLost("the worker did not answer in time")
            part = os.read(descriptor, 1 << 16)
            if not part or len(self._unread) > _MOST_BYTES:
                status = self._process.wait() if not part else 0
                raise SlotLost(f"the worker process ended with status {status}")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise SlotLost("the worker's answer was none")
        return answer
