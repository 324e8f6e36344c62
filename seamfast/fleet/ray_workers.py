"""Workers on a Ray cluster, as the driver sees them: it talks to a process, which alone is connected to Ray.

driver ── pipe ── ray_actors: connected ── Ray ── an actor a slot ── slot ── pipe ── nursery

Ray ends a process whose raylet or head is lost, by a signal or a code of its own, or leaves it waiting for ever. So it
is another process than the one that writes the summary.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

from seamfast.errors import InputError
from seamfast.fleet.process import JsonProcess, ProcessLost
from seamfast.fleet.schedule import WorkersLost
from seamfast.fleet.slot import Answer, Task
from seamfast.isolation.child import command
from seamfast.terminal import say

LIFE_S = 1.0
"""Between two signs of life of the process that is connected."""
_CONNECT_S = 120.0  # that it may take to be connected
_SILENT_S = 30.0  # without a sign of life
_LEAVE_S = 20.0  # that it may take to end the actors and to leave the cluster


class RayWorkers:
    """As many actors as asked for, or as the cluster has room for; those that are lost are replaced.

    Args:
        address: ``"local"``: a cluster of this machine alone, for this call, that other machines cannot reach;
            ``"auto"``, ``"HOST:PORT"``: one that runs.
        how: for the slots.
        n_workers: 1 or more; ``None``: one for each CPU of the cluster, or for each share of a GPU.
        gpus_per_job: share of a GPU for each; 0 for none.

    Raises:
        InputError: ``ray is 'auto', and Ray is not installed; expected pip install "seamfast[fleet]"``.
        WorkersLost: by all but ``close``: there is no such cluster, or it was lost.
    """

    def __init__(self, address: str, how: Mapping[str, Any], n_workers: int | None, gpus_per_job: float) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError(f'ray is {address!r}, and Ray is not installed; expected pip install "seamfast[fleet]"')
        given: dict[str, Any] = {"address": address, "how": dict(how), "parent": os.getpid(), "path": sys.path}
        given |= {"n_workers": n_workers, "gpus_per_job": gpus_per_job}
        program = command("seamfast.fleet.ray_actors", [json.dumps(given)])
        self._process = JsonProcess("the process that is connected to Ray", program, _variables(address))
        self._names: list[str] | None = None  # until it is connected
        self._heard = time.monotonic()

    def names(self) -> list[str]:
        """The actors that take tasks now; missing ones are asked for."""
        return list(self._names or ())

    def submit(self, worker: str, number: int, task: Task) -> None:
        """Give ``worker`` a task, to be done after those that it has."""
        try:
            self._process.tell({"worker": worker, "number": number, "task": task})
        except ProcessLost as error:
            raise WorkersLost(f"the Ray cluster was lost: {error}") from error

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        """The answers that are there within the time: who gave it, and to which task."""
        end = time.monotonic() + timeout_s
        answers: list[tuple[str, int, Answer]] = []
        changed = False
        while message := self._message(0.0 if answers or changed else max(0.0, end - time.monotonic())):
            if "answer" in message:
                answers.append((message["worker"], message["number"], message["answer"]))
            if "names" in message:
                changed = changed or message["names"] != self._names
                self._names = message["names"]
            if "say" in message:
                say(message["say"])
        return answers

    def close(self) -> None:
        """End all actors, whatever they are at."""
        self._process.close(_LEAVE_S)

    def _message(self, timeout_s: float) -> dict[str, Any] | None:
        try:
            message = self._process.hear(timeout_s)
        except ProcessLost as error:
            raise WorkersLost(f"the Ray cluster was lost: {error}") from error
        now = time.monotonic()
        if message is None:
            silent = now - self._heard
            if silent > (_CONNECT_S if self._names is None else _SILENT_S):
                raise WorkersLost(f"the Ray cluster does not answer: nothing was heard of it for {silent:.0f} s")
            return None
        self._heard = now
        if "lost" in message:
            raise WorkersLost(message["lost"])
        return message


def _variables(address: str) -> dict[str, str]:
    """All that this process has, and Ray's, where the operator has not set them."""
    found = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",  # else whoever reaches a port runs code
        "RAY_NUM_REDIS_GET_RETRIES": "3",  # of some seconds each, to reach a cluster
        **os.environ,
    }
    if address == "local":
        found.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Whatever its name says, it is what keeps Ray to the loopback: an address that is asked for is replaced.
        found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif found["RAY_AUTH_MODE"] != "token":
        say("seamfast: warning: RAY_AUTH_MODE is not 'token': whoever reaches the cluster can run code on it")
    return found
