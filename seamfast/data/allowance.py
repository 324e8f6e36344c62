"""``Allowance``: how much of a caller's data is read, since a loader need not end."""

from __future__ import annotations

import math
import time

from seamfast.checks import as_count

MAX_SAMPLES, TIME_BUDGET = "max_samples", "time_budget_s"
"""Why reading ended early: the argument that set the limit."""

_SMALL_BATCH = 16
"""Samples read between two looks at the clock, at most, where there is a limit in seconds."""


class Allowance:
    """Limits on the reading of one source of samples, and what was read of it.

    Attributes:
        max_samples: that may be read; ``None``: all.
        n_read: samples that were read.
        stopped: ``MAX_SAMPLES`` or ``TIME_BUDGET``; ``None``: everything was read.

    Args:
        max_samples: at least 1, or ``None``.
        seconds: from ``begin`` on, after which no further batch is asked for; ``None``: no limit.
    """

    def __init__(self, max_samples: int | None = None, seconds: float | None = None) -> None:
        self.max_samples = None if max_samples is None else as_count("max_samples", max_samples)
        self.n_read = 0
        self.stopped: str | None = None
        self._seconds = seconds
        self._until = math.inf

    @property
    def is_limited(self) -> bool:
        """Whether perhaps not everything is read."""
        return self.is_timed or self.max_samples is not None

    @property
    def is_timed(self) -> bool:
        """Whether there is a limit in seconds."""
        return self._seconds is not None

    def begin(self) -> None:
        """Start the clock."""
        if self._seconds is not None:
            self._until = time.perf_counter() + self._seconds

    def batch_size(self, wanted: int) -> int:
        """``wanted``, or less, so that the clock is looked at often enough."""
        return min(wanted, _SMALL_BATCH) if self.is_timed else wanted

    def time_is_up(self) -> bool:
        """Whether to ask for no further batch."""
        if time.perf_counter() < self._until:
            return False
        self.stopped = TIME_BUDGET
        return True
