"""How a run uses the host: threads, deterministic mode, freed memory, random numbers; all restored at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from seamfast.ops import dispatch

_MODES = ("default", "warn", "error")  # of torch.get_deterministic_debug_mode
_SLACK = 1.05
"""One thread is chosen only if a step is at least this many times as fast with it."""


@contextmanager
def in_use() -> Iterator[None]:
    """Keep freed memory for the next step; restore PyTorch's threads and deterministic mode at the end."""
    threads = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    try:
        with dispatch.package("cpp").freed_memory_kept():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_deterministic_debug_mode() != deterministic:
            set_deterministic(_MODES[deterministic], compiles="torch._inductor.config" in sys.modules)


def set_deterministic(mode: str, *, compiles: bool) -> None:
    """``torch.use_deterministic_algorithms``, which imports torch's compiler, only where that is in use.

    Args:
        mode: ``"default"``: off; ``"warn"`` or ``"error"``: on, and what happens where there is no such algorithm.
        compiles: whether the compiler is to know.
    """
    if compiles:
        torch.use_deterministic_algorithms(mode != "default", warn_only=mode == "warn")
    else:
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device``, and restore their states at the end."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # Not torch.manual_seed: it seeds every accelerator, also those that are not restored.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def choose_threads(step_seconds: Callable[[], float], limit_s: float = math.inf) -> str:
    """Set one thread, or as many as PyTorch has, whichever makes a step faster; returns the reason.

    PyTorch's threads wait for each other by spinning: next to other load, or in steps of a millisecond, many are up to
    twenty times slower than one.

    Args:
        step_seconds: takes a training step and returns its duration.
        limit_s: approximate limit on the trials, in seconds.
    """
    n = torch.get_num_threads()
    if n == 1:
        return "PyTorch was set to one thread"
    if limit_s <= 0 or 3 * step_seconds() > limit_s:  # the first includes one-time costs
        return "the time budget left no time to try another number"
    many = step_seconds()
    chosen = n
    torch.set_num_threads(1)
    try:
        one = step_seconds()
        if one * _SLACK < many:
            chosen = 1
            return f"a step took {one * 1e3:.3g} ms with one thread and {many * 1e3:.3g} ms with {n}"
    finally:
        torch.set_num_threads(chosen)
    return f"a step took {many * 1e3:.3g} ms with {n} threads and {one * 1e3:.3g} ms with one"
