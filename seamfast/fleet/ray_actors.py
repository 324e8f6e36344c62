"""The process that is connected to a Ray cluster, and the actors, one for each slot.

Tasks and answers travel as JSON, models and data as paths. An actor imports no torch and reads no model: it owns a
slot, whose process does. So nothing that has touched a model is unpickled by Ray.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from seamfast.fleet.local import n_cores, share_of_memory
from seamfast.fleet.ray_workers import LIFE_S
from seamfast.fleet.schedule import MOST_LOST, WorkersLost
from seamfast.fleet.slot import Answer, Slot, Task
from seamfast.isolation.confine import die_with_parent

_TICK_S = 0.05  # between looks at what was told
_LOOK_AROUND_S = 5.0  # between looks at which nodes there are
_LEAVE_S = 10.0  # for idle actors to end their slots
_REACH_S = 5.0  # to reach the head
_NO_ROOM_S = 10.0  # without a worker, until that is said
_OBJECT_STORE_BYTES = 100 << 20  # nothing large goes through it


def main() -> NoReturn:
    """Until stdin ends: a task a line on stdin; on stdout, which actors take tasks, answers, and why all was lost."""
    given = json.loads(sys.argv[3])
    die_with_parent(given["parent"])
    sys.path[:] = given["path"]  # as Ray's workers have it too
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Ray prints pages when a node is lost, which are in the logs of its session too.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    with suppress(BrokenPipeError):  # nobody listens any more
        try:
            ray = connected(given["address"], given["n_workers"])
            actors = RayActors(
                ray, given["how"], given["n_workers"], given["gpus_per_job"], lambda text: tell({"say": text})
            )
            _serve(actors, told, tell)
            ray.shutdown()
        except WorkersLost as error:
            tell({"lost": str(error)})
        except Exception as error:  # Ray's are of many kinds
            tell({"lost": f"the Ray cluster was lost: {_first_line(error)}"})
    os._exit(0)  # what Ray would do at the end can wait for ever


def _listen(told: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """In a thread of its own, so that the driver can always write."""
    for line in sys.stdin:
        told.put(json.loads(line))
    told.put(None)


def _serve(actors: RayActors, told: queue.SimpleQueue[dict[str, Any] | None], tell: Any) -> None:
    """Until there is nobody to serve."""
    names: list[str] | None = None
    lived = 0.0
    while True:
        now = time.monotonic()
        if (found := actors.names()) != names or now - lived > LIFE_S:
            names, lived = found, now
            tell({"names": names})
        with suppress(queue.Empty):
            while True:
                message = told.get_nowait()
                if message is None:
                    actors.close()
                    return
                actors.submit(message["worker"], message["number"], message["task"])
        for worker, number, answer in actors.wait(_TICK_S):
            tell({"worker": worker, "number": number, "answer": answer})


class SlotActor:
    """A slot in a process of Ray."""

    def __init__(self, how: str, name: str) -> None:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(raylet: int) -> None:
    """In a thread: end this process, and with it its slot's, once its raylet is gone. Ray lets a call go on for hours,
    whose result nobody waits for."""
    while os.getppid() == raylet:
        time.sleep(LIFE_S)
    os._exit(1)


class RayActors:
    """Actors, as ``RayWorkers`` has them.

    Args:
        ray: the module, connected.
        how, n_workers, gpus_per_job: as given to ``RayWorkers``.
        say: tells the operator.
        actor: the class of the actors.
    """

    def __init__(
        self,
        ray: Any,
        how: Mapping[str, Any],
        n_workers: int | None,
        gpus_per_job: float,
        say: Callable[[str], None],
        actor: type = SlotActor,
    ) -> None:
        self._say = say
        self._ray, self._how, self._n_workers, self._gpus = ray, json.dumps(how), n_workers, gpus_per_job
        options = {"num_cpus": 1, "num_gpus": gpus_per_job, "max_restarts": 0, "max_task_retries": 0}
        self._remote = ray.remote(**options)(actor)
        self._node = ray.get_runtime_context().get_node_id()
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, str] = {}
        self._ready: list[str] = []
        self._waiting: dict[Any, tuple[str, int]] = {}
        self._undelivered: list[tuple[str, int, Answer]] = []
        self._n_started, self._n_failed, self._wanted = 0, 0, n_workers or 1
        self._looked, self._had_worker = float("-inf"), time.monotonic()
        self._has_said = False

    def names(self) -> list[str]:
        """The actors that take tasks now; missing ones are asked for. Raises ``WorkersLost``."""
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
            except self._ray.exceptions.RayError as error:
                self._drop(name)
                self._n_failed += 1
                if self._n_failed >= MOST_LOST:
                    raise WorkersLost(f"actors of Ray cannot be started: {_first_line(error)}") from error
            else:
                self._n_failed = 0
                self._ready.append(name)
        return list(self._ready)

    def submit(self, worker: str, number: int, task: Task) -> None:
        """Give ``worker`` a task, to be done after those that it has."""
        if worker not in self._actors:  # what the driver does not know yet
            self._undelivered.append((worker, number, {"lost": "its worker was lost before", "worker": worker}))
            return
        self._waiting[self._actors[worker].run.remote(json.dumps(task))] = worker, number

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        """The answers that are there within the time: who gave it, and to which task."""
        answers, self._undelivered = self._undelivered, []
        if not self._waiting:
            time.sleep(timeout_s)
            return answers
        done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout_s)
        for reference in done:
            worker, number = self._waiting.pop(reference)
            try:
                answer = json.loads(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                answer = {"lost": _first_line(error), "worker": worker}
                self._drop(worker)
                self._looked = float("-inf")
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
        """How large the cluster is now; raises ``WorkersLost`` where it has lost the node of this process."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AROUND_S:
            return
        self._looked = now
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        if not any(node["NodeID"] == self._node for node in alive):
            raise WorkersLost("the Ray node that the fleet is connected through was lost")
        cpus, gpus = (sum(node["Resources"].get(kind, 0) for node in alive) for kind in ("CPU", "GPU"))
        if self._n_workers is None:
            self._wanted = max(1, int(gpus / self._gpus) if self._gpus else int(cpus))
        if self._ready:
            self._had_worker = now
        elif now - self._had_worker > _NO_ROOM_S and not self._has_said:
            self._has_said = True
            wanted = f"1 CPU and {self._gpus:g} of a GPU" if self._gpus else "1 CPU"
            self._say(
                f"seamfast: waiting for {wanted}; the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, taken or not"
            )


def connected(address: str, n_workers: int | None) -> Any:
    """The module ``ray``, connected to a cluster; raises ``WorkersLost``.

    Args:
        address: as given to ``RayWorkers``.
        n_workers: CPUs of a local one; ``None``: those of this machine.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
        except (OSError, OverflowError) as error:
            raise WorkersLost(f"ray is {address!r}, where nothing answers: {_first_line(error)}") from error
    import ray

    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        how |= {"num_cpus": n_workers, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address, **how)
    except Exception as error:  # Ray's are of many kinds
        raise WorkersLost(f"ray is {address!r}: {_first_line(error)}") from error
    return ray


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
