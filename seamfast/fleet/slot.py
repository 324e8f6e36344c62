"""A slot: one worker process, which is told its jobs over a pipe and answers in JSON, and is started anew when it ends.

driver, or an actor of Ray ── slot ── pipe ──▶ nursery: torch loaded, data shared, no model ever read
                                                 └── fork ──▶ work: one job, limited and confined
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from seamfast.fleet.process import JsonProcess, ProcessLost
from seamfast.isolation.child import command, environment, user_site

START_S = 300.0
"""That a worker may take to import torch and to read the clean data, on a machine with much other load."""
_LEAVE_S = 10.0  # that a worker may take to clean up
_GRACE_S = 120.0  # beyond the limit on a job, which the nursery enforces

Task = dict[str, Any]
Answer = dict[str, Any]


class Slot:
    """One job at a time, in a process that stays.

    Args:
        how: for ``seamfast.fleet.nursery``: the fleet's folder, limits, the device's share; JSON values.
        name: of the worker, for the manifest.
    """

    def __init__(self, how: dict[str, Any], name: str) -> None:
        self.how, self.name = how, name
        self._process: JsonProcess | None = None
        self._stopped = threading.Event()

    def run(self, task: Task) -> Answer:
        """The answer to one task; ``{"lost": why}`` where the worker ended meanwhile, which is none of the job's."""
        try:
            process = self._process
            if process is None or not process.is_running():
                process = self._start()
            process.tell(task)
            answer = process.hear(task["time_s"] + _GRACE_S)
            if answer is None:
                raise ProcessLost("the worker did not answer in time")
        except (ProcessLost, OSError) as error:
            self.close()
            return {"lost": str(error), "worker": self.name}
        return {**answer, "worker": self.name}

    def stop(self) -> None:
        """From another thread: end the worker, so that ``run`` returns, and start none any more."""
        self._stopped.set()
        if self._process is not None:
            self._process.leave()

    def close(self) -> None:
        """End the worker and what it started."""
        process, self._process = self._process, None
        if process is not None:
            process.close(_LEAVE_S)

    def _start(self) -> JsonProcess:
        self.close()
        if self._stopped.is_set():
            raise ProcessLost("the fleet was stopped")
        how = {**self.how, "parent": os.getpid(), "path": user_site(), "name": self.name}
        # One thread for each library: the nursery forks, and models as small as these gain nothing from a second.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        variables = environment(Path(tempfile.gettempdir())) | threads | self.how["environment"]
        program = command("seamfast.fleet.nursery", [json.dumps(how)])
        self._process = process = JsonProcess("the worker process", program, variables)
        if self._stopped.is_set():
            raise ProcessLost("the fleet was stopped")
        ready = process.hear(START_S) or {"failed": f"it was not ready within {START_S:g} s"}
        if "ready" not in ready:
            raise ProcessLost(f"the worker could not start: {ready.get('failed', 'no reason given')}")
        return process
