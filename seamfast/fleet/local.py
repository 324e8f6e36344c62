"""Workers on this machine: one thread of ``concurrent.futures`` for each, which owns a slot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from seamfast.fleet.slot import Answer, Slot, Task
from seamfast.isolation.limits import machine_memory

_MEMORY_SHARE = 0.9  # of the machine's, for all jobs together


class LocalWorkers:
    """As many slots as workers.

    Args:
        how: for the slots.
        n_workers: 1 or more.
        gpus_per_job: share of a GPU for each worker; 0 for none.
    """

    def __init__(self, how: Mapping[str, Any], n_workers: int, gpus_per_job: float) -> None:
        self._gpus = _visible_gpus() if gpus_per_job else []
        self._per_gpu = max(1, int(1 / gpus_per_job)) if gpus_per_job else 1
        self._slots = {f"{number}": Slot(self._with_gpu(how, number), str(number)) for number in range(n_workers)}
        # A thread each, so that a worker has the same one as its parent for as long as it lives.
        self._threads = {name: ThreadPoolExecutor(1) for name in self._slots}
        self._waiting: dict[Future[Answer], tuple[str, int]] = {}

    def names(self) -> list[str]:
        """The workers that take tasks now."""
        return list(self._slots)

    def submit(self, worker: str, number: int, task: Task) -> None:
        """Give ``worker`` a task, to be done after those that it has."""
        self._waiting[self._threads[worker].submit(self._slots[worker].run, task)] = worker, number

    def wait(self, timeout_s: float) -> list[tuple[str, int, Answer]]:
        """The answers that are there within the time, at least one if any comes: who gave it, and to which task."""
        done, _ = wait(self._waiting, timeout_s, FIRST_COMPLETED)
        return [(*self._waiting.pop(future), future.result()) for future in done]

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for future in self._waiting:
            future.cancel()
        for name, slot in self._slots.items():
            slot.stop()
            self._threads[name].submit(slot.close)  # there, since a worker ends at once with the thread that started it
        for thread in self._threads.values():
            thread.shutdown()

    def _with_gpu(self, how: Mapping[str, Any], number: int) -> dict[str, Any]:
        if not self._gpus:
            return dict(how)
        gpu = self._gpus[number // self._per_gpu % len(self._gpus)]
        return {**how, "environment": {**how["environment"], "CUDA_VISIBLE_DEVICES": gpu}}


def _visible_gpus() -> list[str]:
    """Those that CUDA would see, without asking it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    found = [name[6:] for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdecimal()]
    return sorted(found, key=int)


def n_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0))


def n_default_workers(gpus_per_job: float) -> int:
    """A worker a core, or as many as the GPUs have shares."""
    if gpus_per_job:
        return max(1, len(_visible_gpus())) * max(1, int(1 / gpus_per_job))
    return n_cores()


def share_of_memory(n_workers: int) -> int | None:
    """Bytes for each of ``n_workers`` on this machine; ``None`` where it is not known how many there are."""
    whole = machine_memory()
    return None if whole is None else int(_MEMORY_SHARE * whole / n_workers)
