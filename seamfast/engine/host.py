"""How a run uses the host: threads, deterministic mode, freed memory, random numbers; all put back when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from seamfast.ops import dispatch

_SLACK = 1.05
"""As many threads as there are stay, unless one is faster than so many times: a draw is no reason."""


@contextmanager
def in_use() -> Iterator[None]:
    """Freed memory stays with the process, as the next step wants as much again; PyTorch's threads and deterministic
    mode, whatever is made of them in here, are as before afterwards, on errors too.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with dispatch.package("cpp").freed_memory_kept():
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the CPU and of ``device`` seeded, and put back to where they were afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # Not torch.manual_seed: it seeds every accelerator, also those that are not put back.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def choose_threads(step_seconds: Callable[[], float], limit_s: float = math.inf) -> str:
    """One thread, or as many as PyTorch has: what a step is faster with here and now; returns why.

    PyTorch's threads wait for each other by spinning: beside other load, or in steps of a millisecond, many are slower
    than one by up to twenty times.

    Args:
        step_seconds: takes a training step and returns its duration.
        limit_s: seconds that trying may take, roughly.
    """
    n = torch.get_num_threads()
    if n == 1:
        return "PyTorch was set to one thread"
    if limit_s <= 0 or 3 * step_seconds() > limit_s:  # the first pays for what is made once
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
