"""Batches made ahead by a thread of their own, so that the model does not wait for them."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from seamfast.ops._check import as_integer

T = TypeVar("T", bound=tuple[Any, ...])

MAX_DEPTH = 64


def prefetch(batches: Iterable[T], *, device: torch.device, depth: int = 2) -> Generator[T, None, None]:
    """``batches``, in their order, on ``device``; a thread makes and sends up to ``depth`` ahead of the caller.

    What is yielded is the caller's to keep: it lies in memory that nothing writes to again. For a CUDA device the
    thread copies each batch into one of ``depth`` sets of pinned buffers and from there to the device on a stream of
    its own; it fills a set anew only after that copy is done. The caller's stream waits for the copy, the caller does
    not.

    The thread starts at the first batch asked for, and has ended by the time that ``close()`` returns, an exception
    passes through here, or the interpreter exits; if it is in the middle of a batch, that one is finished first. An
    exception of ``batches`` is raised where its batch would have been yielded.

    Args:
        batches: tuples of CPU tensors and of mappings of names to such. Iterated on the thread: draws must come from
            generators of its own, not from torch's global ones.
        device: where the batches go.
        depth: batches that are being made, or are made and not yet asked for, in [1, 64].

    Raises:
        InputError: ``depth is 0; expected an integer in [1, 64]``.

    Example:
        >>> squares = ((torch.tensor(k * k),) for k in range(4))
        >>> [int(x) for (x,) in prefetch(squares, device=torch.device("cpu"))]
        [0, 1, 4, 9]
    """
    depth = as_integer("depth", depth, 1, MAX_DEPTH)
    carrier = _PinnedRing(device, depth) if device.type == "cuda" else _Plain(device)
    return _taken(_Maker(batches, carrier, depth))


def _taken(maker: _Maker[T]) -> Generator[T, None, None]:
    # A daemon left in compiled code at exit would take the process down with it. So the exit stops it too; what is
    # registered does not hold this generator, which may be dropped half-way.
    atexit.register(maker.stop)
    try:
        maker.thread.start()
        while (batch := maker.take()) is not None:
            yield batch
    finally:
        maker.stop()
        atexit.unregister(maker.stop)


class _Carrier(Protocol):
    """Takes batches to the device: ``send`` on the maker's thread, ``receive`` on the caller's."""

    def send(self, batch: T) -> tuple[T, Any]: ...

    def receive(self, batch: T, sent: Any) -> T: ...


@dataclass
class _Failure:
    error: BaseException


class _Maker(Generic[T]):
    """The thread and what it shares with the caller: a queue of batches, and a count of how many more it may make."""

    def __init__(self, batches: Iterable[T], carrier: _Carrier, depth: int) -> None:
        self.thread = threading.Thread(target=self._make, name="seamfast-prefetch", daemon=True)
        self._batches = batches
        self._carrier = carrier
        self._room = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[tuple[T, Any] | _Failure | None] = queue.SimpleQueue()
        self._stopped = False

    def take(self) -> T | None:
        """The next batch, waited for; ``None`` after the last."""
        made = self._ready.get()
        if isinstance(made, _Failure):
            try:
                raise made.error
            finally:
                del made  # else the error, its traceback and this frame hold each other
        if made is None:
            return None
        batch = self._carrier.receive(*made)
        self._room.release()  # only now: the next batch may go the way of this one
        return batch

    def stop(self) -> None:
        """Ask the thread to end, and wait until it has."""
        self._stopped = True
        self._room.release()
        # It has not started where starting failed; it is this one where the garbage collector closes the generator.
        if self.thread.ident is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def _make(self) -> None:
        try:
            batches = iter(self._batches)
            while self._room.acquire() and not self._stopped and (batch := next(batches, None)) is not None:
                self._ready.put(self._carrier.send(batch))
        except BaseException as error:  # the caller's to handle, whatever it is
            self._ready.put(_Failure(error))
        self._ready.put(None)


class _Plain:
    """To a CPU, where there is nothing to do, and to devices that have no pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, batch: T) -> tuple[T, None]:
        return _each(lambda tensor: tensor.to(self._device), batch), None

    def receive(self, batch: T, sent: None) -> T:
        return batch


@dataclass
class _Slot:
    """Pinned buffers, one for each tensor of a batch, and the event after the last copy out of them."""

    copied: torch.cuda.Event
    buffers: dict[int, Tensor] = field(default_factory=dict)

    def filled(self, number: int, tensor: Tensor) -> Tensor:
        """``tensor`` in pinned memory; of batches, only the last is of another size."""
        buffer = self.buffers.get(number)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self.buffers[number] = torch.empty_like(tensor, pin_memory=True)
        return buffer.copy_(tensor)


class _PinnedRing:
    """To a CUDA device, through pinned buffers used in turn: from pageable memory a copy would not overlap."""

    def __init__(self, device: torch.device, depth: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Blocking: whoever waits for such an event sleeps, and does not spin.
        self._slots = [
            _Slot(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
            for _ in range(depth)
        ]
        self._turn = count()

    def send(self, batch: T) -> tuple[T, torch.cuda.Event]:
        slot = self._slots[next(self._turn) % len(self._slots)]
        slot.copied.synchronize()
        number = count()

        def sent(tensor: Tensor) -> Tensor:
            return slot.filled(next(number), tensor).to(self._device, non_blocking=True)

        with torch.cuda.stream(self._stream):
            there = _each(sent, batch)
            slot.copied.record()
        return there, slot.copied

    def receive(self, batch: T, sent: torch.cuda.Event) -> T:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(sent)

        def held(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # made on the other stream, whose next batch must not get its memory too soon
            return tensor

        return _each(held, batch)


def _each(function: Callable[[Tensor], Tensor], batch: T) -> T:
    """``batch`` with ``function`` applied to its tensors, in order."""
    return cast(
        T,
        tuple(
            {name: function(tensor) for name, tensor in part.items()} if isinstance(part, dict) else function(part)
            for part in batch
        ),
    )
