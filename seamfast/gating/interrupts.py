"""Whether a ``KeyboardInterrupt`` came of a signal, or was raised by code that was called."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """``came``: whether a signal that interrupts has come."""

    came = False


@contextmanager
def noticed() -> Iterator[Interrupts]:
    """Note the signals whose handlers are Python functions, and let these handle them.

    In another thread than the first there is nothing to note: Python handles signals in the first alone.
    """
    seen = Interrupts()
    given: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        seen.came = True
        given[signal.Signals(number)](number, frame)

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        given = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in given:
            signal.signal(number, note)
        yield seen
    finally:
        for number, handler in given.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
