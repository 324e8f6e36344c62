"""Workers on a Ray cluster: an actor for each slot. Tasks and answers travel as JSON, models and data as paths.

An actor imports no torch and reads no model: it owns a slot, whose process does. So nothing that has touched a model is
unpickled by Ray.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from seamfast.errors import InputError
from seamfast.fleet.local import n_cores, share_of_memory
from seamfast.fleet.schedule import WorkersLost
from seamfast.fleet.slot import Answer, Slot, Task
from seamfast.terminal import say

_LOOK_AROUND_S = 10.0  # between looks at how large the cluster is
_LEAVE_S = 10.0
_ANSWER_S = 20.0  # that the cluster's head may take to say how large it is
_NO_ROOM_S = 10.0  # without a worker, until that is said
_OBJECT_STORE_BYTES = 100 << 20  # nothing large goes through it


class _Look:
    """A call in a thread, since it may never return; ``found`` is its result once there is one."""

    def __init__(self, call: Callable[[], dict[str, float]]) -> None:
        self._call = call
        self.found: dict[str, float] | None = None
        self.thread = threading.Thread(target=self._do, daemon=True)
        self.thread.start()

    def _do(self) -> None:
        with suppress(Exception):  # what goes wrong shows as no answer
            self.found = self._call()


class SlotActor:
    """A slot in a process of Ray."""

    def __init__(self, how: str, name: str) -> None:
        given = json.loads(how)
        if "CUDA_VISIBLE_DEVICES" in os.environ:  # as Ray assigns them
            given["environment"]["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        # A worker for each CPU that Ray has on this machine is the most that there can be.
        given["memory_bytes"] = share_of_memory(n_cores())
        self._slot = Slot(given, name)

    def ready(self) -> bool:
        return True

    def run(self, task: str) -> str:
        return json.dumps(self._slot.run(json.loads(task)))

    def close(self) -> None:
        self._slot.close()


class RayWorkers:
    """As many actors as asked for, or as the cluster has room for; those that are lost are replaced.

    Args:
        ray: the module, connected.
        how: for the slots.
        n_workers: 1 or more; ``None``: one for each CPU of the cluster, or for each share of a GPU.
        gpus_per_job: share of a GPU for each; 0 for none.
    """

    def __init__(self, ray: Any, how: Mapping[str, Any], n_workers: int | None, gpus_per_job: float) -> None:
        self._ray, self._how, self._n_workers, self._gpus = ray, json.dumps(how), n_workers, gpus_per_job
        options = {"num_cpus": 1, "num_gpus": gpus_per_job, "max_restarts": 0, "max_task_retries": 0}
        self._remote = ray.remote(**options)(SlotActor)
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, str] = {}
        self._ready: list[str] = []
        self._waiting: dict[Any, tuple[str, int]] = {}
        self._n_started, self._wanted = 0, n_workers or 1
        self._look: _Look | None = None
        self._looked = self._had_worker = time.monotonic()
        self._has_said = False

    def names(self) -> list[str]:
        """The actors that take tasks now; missing ones are asked for."""
        self._look_around()
        while len(self._actors) < self._wanted:
            name = str(self._n_started)
            self._n_started += 1
            self._actors[name] = actor = self._remote.remote(self._how, name)
            self._starting[actor.ready.remote()] = name
        for reference in self._started():
            name = self._starting.pop(reference)
            try:
                self._ray.get(reference)
                self._ready.append(name)
            except self._ray.exceptions.RayError:
                self._drop(name)
        return list(self._ready)

    def submit(self, worker: str, number: int, task: Task) -> None:
        """Give ``worker`` a task, to be done after those that it has."""
        self._waiting[self._actors[worker].run.remote(json.dumps(task))] = worker, number

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        """The answers that are there within the time: who gave it, and to which task."""
        if not self._waiting:
            time.sleep(timeout_s)
            return []
        done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout_s)
        answers = []
        for reference in done:
            worker, number = self._waiting.pop(reference)
            try:
                answer = json.loads(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                answer = {"lost": f"{type(error).__name__}: {str(error).splitlines()[0]}", "worker": worker}
                self._drop(worker)
            answers.append((worker, number, answer))
        return answers

    def close(self) -> None:
        """End all actors, whatever they are at."""
        idle = set(self._ready) - {worker for worker, _ in self._waiting.values()}
        leaving = [self._actors[name].close.remote() for name in idle]
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S) if leaving else None
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _started(self) -> list[Any]:
        """Of the actors that were asked for, what says that they are there, or that they are not to come."""
        if not self._starting:
            return []
        done, _ = self._ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        return list(done)

    def _drop(self, name: str) -> None:
        actor = self._actors.pop(name, None)
        if name in self._ready:
            self._ready.remove(name)
        if actor is not None:
            self._ray.kill(actor)

    def _look_around(self) -> None:
        """How large the cluster is now; raises ``WorkersLost`` where its head does not answer.

        Ray itself would end this process a minute after its head was lost, with a code of its own.
        """
        now = time.monotonic()
        if self._look is None and (now - self._looked > _LOOK_AROUND_S or not self._n_started):
            self._looked = now
            self._look = _Look(self._ray.cluster_resources)
        if self._look is None:
            return
        if not self._n_started:
            self._look.thread.join(_ANSWER_S)
        if self._look.found is None:
            if now - self._looked > _ANSWER_S:
                raise WorkersLost("the head of the Ray cluster does not answer")
            return
        resources, self._look = self._look.found, None
        room = int(resources.get("GPU", 0) / self._gpus) if self._gpus else int(resources.get("CPU", 0))
        if self._n_workers is None:
            self._wanted = max(1, room)
        if self._ready:
            self._had_worker = now
        elif now - self._had_worker > _NO_ROOM_S and not self._has_said:
            self._has_said = True
            wanted = f"1 CPU and {self._gpus:g} of a GPU" if self._gpus else "1 CPU"
            whole = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            say(f"seamfast: waiting for {wanted}; the Ray cluster has {whole}, taken or not")


@contextmanager
def connected(address: str, n_workers: int | None) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster.

    Args:
        address: ``"local"``: a cluster of this machine alone, for this call, that other machines cannot reach;
            ``"auto"``, ``"HOST:PORT"``: one that runs.
        n_workers: CPUs of a local one; ``None``: those of this machine.

    Raises:
        InputError: ``ray is 'auto', and Ray is not installed; expected pip install "seamfast[fleet]"``.
        WorkersLost: there is no such cluster, or it was lost.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # of some seconds each, to reach a cluster
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else whoever reaches a port runs code
    if address == "local":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Whatever its name says, it is what keeps Ray to the loopback: an address that is asked for is replaced.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif os.environ["RAY_AUTH_MODE"] != "token":
        say("seamfast: warning: RAY_AUTH_MODE is not 'token': whoever reaches the cluster can run code on it")
    ray = _imported(address)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        how |= {"num_cpus": n_workers, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address, **how)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise WorkersLost(f"ray is {address!r}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    if address == "local" and ray.util.get_node_ip_address() != "127.0.0.1":
        say("seamfast: warning: Ray was imported before, and its local cluster can be reached from other machines")
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise WorkersLost(f"the Ray cluster was lost: {type(error).__name__}") from error
    finally:
        ending = threading.Thread(target=ray.shutdown, daemon=True)  # which waits where the head was lost
        ending.start()
        ending.join(_LEAVE_S)
        if ending.is_alive():
            atexit.unregister(ray.shutdown)


def _imported(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        message = f'ray is {address!r}, and Ray is not installed ({error}); expected pip install "seamfast[fleet]"'
        raise InputError(message) from error
    return ray
