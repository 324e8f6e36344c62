"""Batches made ahead on a thread, so that the model does not wait for them."""

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

from seamfast.checks import as_integer

T = TypeVar("T", bound=tuple[Any, ...])

MAX_DEPTH = 64


def prefetch(batches: Iterable[T], *, device: torch.device, depth: int = 2) -> Generator[T, None, None]:
    """``batches``, in order, on ``device``; a thread makes and sends up to ``depth`` of them ahead.

    The memory of a yielded batch is not reused. For a CUDA device, the thread copies each batch into one of ``depth``
    sets of pinned buffers and from there to the device, on a separate stream; it reuses a set only after that copy is
    done. The caller's stream waits for the copy; the caller does not.

    The thread starts with the first ``next``, and has ended when ``close()`` returns, an exception is raised, or the
    interpreter exits; it finishes a batch that it has begun. An exception of ``batches`` is raised in place of its
    batch.

    Args:
        batches: tuples of CPU tensors and of mappings of names to CPU tensors. Iterated on the thread, so draws must
            not come from torch's global generators.
        device: of the yielded batches.
        depth: batches that are being made, or are made and not yet yielded, in [1, 64].

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
    # A daemon thread in compiled code would crash the process at exit, so the exit stops it too. The registered method
    # holds no reference to this generator, which may be dropped before its end.
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
    """The thread, with a queue of batches to the caller, and a count of the batches that it may still make."""

    def __init__(self, batches: Iterable[T], carrier: _Carrier, depth: int) -> None:
        self.thread = threading.Thread(target=self._make, name="seamfast-prefetch", daemon=True)
        self._batches = batches
        self._carrier = carrier
        self._room = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[tuple[T, Any] | _Failure | None] = queue.SimpleQueue()
        self._stopped = False

    def take(self) -> T | None:
        """Wait for the next batch; ``None`` after the last."""
        made = self._ready.get()
        if isinstance(made, _Failure):
            try:
                raise made.error
            finally:
                del made  # breaks the cycle of the error, its traceback and this frame
        if made is None:
            return None
        batch = self._carrier.receive(*made)
        self._room.release()  # after receive: the next batch may reuse the buffers of this one
        return batch

    def stop(self) -> None:
        """End the thread, and wait until it has ended."""
        self._stopped = True
        self._room.release()
        # No ident: starting failed. The current thread: the garbage collector closes the generator there.
        if self.thread.ident is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def _make(self) -> None:
        try:
            batches = iter(self._batches)
            while self._room.acquire() and not self._stopped and (batch := next(batches, None)) is not None:
                self._ready.put(self._carrier.send(batch))
        except BaseException as error:  # raised in the caller's thread
            self._ready.put(_Failure(error))
        self._ready.put(None)


class _Plain:
    """For a CPU, and for devices without pinned memory."""

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
        """``tensor`` in pinned memory; only the last batch has another size."""
        buffer = self.buffers.get(number)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self.buffers[number] = torch.empty_like(tensor, pin_memory=True)
        return buffer.copy_(tensor)


class _PinnedRing:
    """For a CUDA device: pinned buffers, used in turn; copies from pageable memory do not overlap."""

    def __init__(self, device: torch.device, depth: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        events = [torch.cuda.Event(blocking=True) for _ in range(depth)]  # type: ignore[no-untyped-call]
        self._slots = [_Slot(event) for event in events]  # a wait for a blocking event does not spin
        self._turn = count()

    def send(self, batch: T) -> tuple[T, torch.cuda.Event]:
        slot = self._slots[next(self._turn) % len(self._slots)]
        slot.copied.synchronize()
        number = count()

        def sent(tensor: Tensor) -> Tensor:
            return slot.filled(next(number), tensor).to(self._device, non_blocking=True)

        with torch.cuda.stream(self._stream):
            moved = _each(sent, batch)
            slot.copied.record()
        return moved, slot.copied

    def receive(self, batch: T, sent: torch.cuda.Event) -> T:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(sent)

        def held(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # else the other stream may reuse its memory too early
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
