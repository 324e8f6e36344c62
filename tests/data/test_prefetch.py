from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import Callback, CleanSet, FineTuneConfig
from seamfast.data.prefetch import _PinnedRing, prefetch
from seamfast.data.resident import Resident
from seamfast.data.split import split_by_class
from seamfast.engine.model import WorkingCopy
from seamfast.engine.optimizer import SGD
from seamfast.engine.run import Clock, Run
from seamfast.engine.step import TrainingBatch
from seamfast.engine.subject import Subject
from seamfast.errors import InputError
from seamfast.modalities import Augmentation
from seamfast.ops import gather_augment

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (60, 3, 9, 7), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def numbers(n: int, made: list[int] | None = None) -> Iterator[tuple[Tensor]]:
    for k in range(n):
        if made is not None:
            made.append(k)
        yield (torch.full((5,), k),)


def of_prefetch() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "seamfast-prefetch"]


def wait_for(condition: Callable[[], bool]) -> None:
    """Fails where ``condition`` does not come true within seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    assert of_prefetch() == []
    yield
    assert of_prefetch() == []


# What comes out.


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 20])
def test_batches_come_in_order_and_all(n: int, depth: int) -> None:
    assert [int(batch[0]) for (batch,) in prefetch(numbers(n), device=CPU, depth=depth)] == list(range(n))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_pixels_do_not_depend_on_depth_threads_or_batch_size(depth: int, threads: int, batch_size: int) -> None:
    def augmented(size: int, n_threads: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in torch.arange(60).split(size):
            how: dict[str, Any] = {"mean": 0.4, "std": 0.2, "pad": 3, "flip": True, "seed": 5, "epoch": 2}
            yield indices, gather_augment(IMAGES, indices, **how, threads=n_threads)

    ((_, wanted),) = augmented(60, 1)
    got = list(prefetch(augmented(batch_size, threads), device=CPU, depth=depth))
    assert torch.equal(torch.cat([indices for indices, _ in got]), torch.arange(60))
    assert torch.equal(torch.cat([pixels for _, pixels in got]), wanted)


def test_a_batch_that_is_kept_does_not_change() -> None:
    with closing(prefetch(numbers(30), device=CPU, depth=1)) as batches:
        kept = [batch for (batch,) in batches]
    assert [batch.tolist() for batch in kept] == [[k] * 5 for k in range(30)]


def test_named_tensors_stay_named() -> None:
    batches = [(torch.tensor([k]), {"a": torch.tensor([k]), "b": torch.tensor([-k])}) for k in range(3)]
    assert list(prefetch(batches, device=CPU)) == batches


@pytest.mark.parametrize(("depth", "shown"), [(0, "0"), (65, "65"), (1.5, "1.5")])
def test_depth_out_of_range(depth: Any, shown: str) -> None:
    with pytest.raises(InputError, match=rf"depth is {shown}; expected an integer in \[1, 64\]"):
        prefetch(numbers(1), device=CPU, depth=depth)


# How far ahead, and at what cost.


@pytest.mark.parametrize("depth", [1, 4])
def test_so_many_are_made_ahead_while_the_caller_computes_and_no_more(depth: int) -> None:
    made: list[int] = []
    with closing(prefetch(numbers(100, made), device=CPU, depth=depth)) as batches:
        for taken in range(1, 4):
            next(batches)
            wait_for(lambda n=taken + depth: len(made) >= n)  # type: ignore[misc]
            time.sleep(0.02)
            assert len(made) == taken + depth
    assert len(made) == 3 + depth


def test_waiting_takes_no_processor_time() -> None:
    def slow() -> Iterator[tuple[Tensor]]:
        for batch in numbers(3):
            time.sleep(0.2)
            yield batch

    begin = time.process_time()
    for _ in prefetch(slow(), device=CPU):  # the caller waits
        pass
    for _ in prefetch(numbers(4), device=CPU, depth=1):  # the thread waits
        time.sleep(0.15)
    assert time.process_time() - begin < 0.2


# How it ends.


def test_an_exception_arrives_in_its_place_with_where_it_came_from() -> None:
    def failing() -> Iterator[tuple[Tensor]]:
        yield from numbers(2)
        raise OSError("the disk is gone")

    batches = prefetch(failing(), device=CPU)
    assert [int(next(batches)[0][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone") as error:
        next(batches)
    assert [frame.name for frame in traceback.extract_tb(error.value.__traceback__)][-1] == "failing"
    assert next(batches, None) is None


@pytest.mark.parametrize("kind", [OSError, SystemExit])  # the latter is no Exception
def test_an_error_holds_on_to_nothing(kind: type[BaseException]) -> None:
    """No cycle of error, traceback and frame: batches can be large, and the garbage collector late."""

    def failing() -> Iterator[tuple[Tensor]]:
        yield from numbers(1)
        raise kind("gone")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(kind, match="gone") as error:
            list(prefetch(failing(), device=CPU))
        del error
        assert [thing for thing in gc.get_objects() if type(thing).__name__ == "_Maker"] == []
    finally:
        gc.enable()


def half_way(batches: Iterator[tuple[Tensor]]) -> None:
    next(batches)
    assert len(of_prefetch()) == 1


@pytest.mark.parametrize("how", ["closed", "dropped", "collected", "exhausted"])
def test_every_end_is_the_threads_end(how: str) -> None:
    batches = prefetch(numbers(100), device=CPU)
    half_way(batches)
    if how == "closed":
        batches.close()
    elif how == "exhausted":
        assert len(list(batches)) == 99
    elif how == "collected":
        cycle: list[Any] = [batches]
        cycle.append(cycle)
        del cycle
    if how in ("dropped", "collected"):
        del batches
    if how == "collected":
        gc.collect()
    assert of_prefetch() == []


def test_the_garbage_collector_may_find_it_on_the_thread_itself() -> None:
    dropped = threading.Event()

    def collecting() -> Iterator[tuple[Tensor]]:
        yield from numbers(1)
        assert dropped.wait(20)
        gc.collect()
        yield from numbers(100)

    batches = prefetch(collecting(), device=CPU)
    half_way(batches)
    cycle: list[Any] = [batches]
    cycle.append(cycle)
    gc.disable()
    try:
        del batches, cycle
        dropped.set()
        wait_for(lambda: of_prefetch() == [])
    finally:
        gc.enable()


def test_one_that_was_not_begun_has_no_thread() -> None:
    made: list[int] = []
    batches = prefetch(numbers(3, made), device=CPU)
    assert of_prefetch() == []
    batches.close()
    assert made == []


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_exception_of_the_caller_ends_the_thread(stop: type[BaseException]) -> None:
    def caller() -> None:
        for _ in prefetch(numbers(100), device=CPU):
            raise stop

    with pytest.raises(stop) as held:  # the traceback, and what its frames hold
        caller()
    assert held.value.__traceback__ is not None
    assert of_prefetch() == []


def test_control_c_while_the_caller_waits() -> None:
    def interrupting() -> Iterator[tuple[Tensor]]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        yield from numbers(1)

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(interrupting(), device=CPU))
    assert of_prefetch() == []


AT_EXIT = """
import sys, torch
from seamfast.data.prefetch import prefetch
from seamfast.data.resident import Resident
from seamfast import CleanSet

# Large, so that at the exit the thread is within compiled code, or is waiting for room, whichever it happens to be.
data = Resident(CleanSet(torch.zeros(64, 3, 224, 224, dtype=torch.uint8), torch.zeros(64).long()), torch.device("cpu"))
batches = prefetch(data.batches((torch.arange(64), k) for k in range(10**9)), device=torch.device("cpu"))
for _ in range(int(sys.argv[1])):
    next(batches)
if sys.argv[2] == "error":
    raise ValueError("left")
print("left")
"""


@pytest.mark.parametrize("how", ["end", "error"])
@pytest.mark.parametrize("taken", [1, 3])
def test_the_interpreter_exits_with_a_thread_at_work(how: str, taken: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(taken), how], capture_output=True, text=True, timeout=120, check=False
    )
    if how == "end":
        assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
    else:
        assert done.returncode == 1
        assert done.stderr.endswith("ValueError: left\n")


# To a CUDA device: the order of things, on a device that copies as late as it may.


class LateCuda:
    """Stands for ``torch.cuda``. A copy runs when the host waits for an event after it, or at ``finish``: no sooner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies: list[Callable[[], object]] = []
        self.n_run = 0
        self.n_pinned = 0
        self.on_side = False
        self.held: list[int] = []
        self.ready: list[int] = []
        late = self

        class Pinned(Tensor):
            def to(self, *args: Any, **kwargs: Any) -> Tensor:
                assert kwargs == {"non_blocking": True}
                assert late.on_side
                there = torch.full(self.shape, -1, dtype=self.dtype)
                late.copies.append(lambda: there.copy_(self.as_subclass(Tensor)))
                return there

        class Event:
            def __init__(self, blocking: bool) -> None:
                assert blocking
                self.after = 0

            def record(self) -> None:
                assert late.on_side
                self.after = len(late.copies)

            def synchronize(self) -> None:
                late.run(self.after)

        class Stream:
            def __init__(self, device: torch.device | None = None) -> None:
                pass

            def wait_event(self, event: Event) -> None:
                late.ready.append(event.after)

        @contextmanager
        def stream(side: Stream) -> Iterator[None]:
            late.on_side = True
            yield
            late.on_side = False

        def empty_like(tensor: Tensor, pin_memory: bool) -> Tensor:
            assert pin_memory
            self.n_pinned += 1
            return torch.empty(tensor.shape, dtype=tensor.dtype).as_subclass(Pinned)

        main = Stream()
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch, "empty_like", empty_like)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, by: self.held.append(id(tensor)))

    def run(self, until: int) -> None:
        while self.n_run < until:
            self.copies[self.n_run]()
            self.n_run += 1


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_pinned_buffers_are_filled_anew_only_after_their_copy(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    late = LateCuda(monkeypatch)
    batches = [(torch.full((3,), k), {"x": torch.full((2, 2), -k)}) for k in range(12)]
    got = list(prefetch(batches, device=torch.device("cuda"), depth=depth))
    assert late.n_run == 2 * (12 - depth)  # the others are still under way: nobody has waited for them
    late.run(24)
    for (a, named), (wanted, wanted_named) in zip(got, batches, strict=True):
        assert torch.equal(a, wanted)
        assert torch.equal(named["x"], wanted_named["x"])
    assert late.n_pinned == 2 * depth
    assert late.held == [id(tensor) for a, named in got for tensor in (a, named["x"])]


def test_the_callers_stream_waits_for_each_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateCuda(monkeypatch)
    ring = _PinnedRing(torch.device("cuda"), 2)
    for k in range(5):
        ring.receive(*ring.send((torch.tensor([k]),)))
    assert late.ready == [1, 2, 3, 4, 5]


def test_batches_of_other_sizes_get_buffers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateCuda(monkeypatch)
    batches = [(torch.arange(n),) for n in (4, 4, 4, 3, 4)]
    got = list(prefetch(batches, device=torch.device("cuda"), depth=2))
    late.run(5)
    assert [tensor.tolist() for (tensor,) in got] == [list(range(n)) for n in (4, 4, 4, 3, 4)]


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 3])
def test_on_a_gpu(depth: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    batches = [(torch.full((200, 1000), k), {"x": torch.full((300,), -k)}) for k in range(40)]
    with closing(prefetch(batches, device=device, depth=depth)) as sent:
        got = []
        for a, named in sent:
            torch.cuda._sleep(2_000_000)  # the caller's stream lags behind
            got.append((a + 0, named["x"] + 0))
            del a, named
    for (a, x), (wanted, wanted_named) in zip(got, batches, strict=True):
        assert a.device == device
        assert torch.equal(a.cpu(), wanted)
        assert torch.equal(x.cpu(), wanted_named["x"])


# In a run.


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are made ahead, as where the samples are not on the model's device."""
    monkeypatch.setattr(Resident, "_sent", lambda self, made: prefetch(made, device=self.device))


def fine_tuned(model: nn.Module, data: CleanSet, **options: Any) -> seamfast.SanitizeResult:
    config = FineTuneConfig(max_steps=12, batch_size=32, crop_pad=1, flip=True)
    return seamfast.sanitize(model, data, method="fine_tune", config=config, **options)


def test_a_run_comes_out_the_same(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], request: pytest.FixtureRequest
) -> None:
    wanted = fine_tuned(tiny_model(), tiny_data).model.state_dict()
    request.getfixturevalue("always")
    got = fine_tuned(tiny_model(), tiny_data).model.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in wanted.items())


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])  # which end a run from within a callback
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
def test_a_run_that_breaks_off_leaves_no_thread(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module], stop: type[BaseException], event: str
) -> None:
    seen: list[threading.Thread] = []

    def on_event(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seen.extend(of_prefetch())
        if seen:
            raise stop

    callback = Callback()
    setattr(callback, event, on_event)
    with pytest.raises(stop) as held:
        fine_tuned(tiny_model(), tiny_data, callbacks=[callback])
    assert len(seen) == 1
    assert held.value.__traceback__ is not None
    assert of_prefetch() == []


def test_steps_bring_augmented_samples_new_at_each_pass_and_attempt(
    tiny_data: CleanSet, tiny_model: Callable[[], nn.Module]
) -> None:
    data, augmentation = Resident(tiny_data, CPU), Augmentation(pad=2, flip=True, seed=7)
    split = split_by_class(tiny_data.labels, holdout_fraction=0.2, forget_fraction=1.0, seed=0)
    samples = split.recovery[:40]
    copied = WorkingCopy(tiny_model(), CPU)
    run = Run(
        copied,
        Subject.of(copied.model, data),
        split,
        batch_size=16,
        augmentation=augmentation,
        seed=7,
        clock=Clock(None),
        accuracy_budget=0.03,
    )
    seen: list[TrainingBatch] = []

    def loss(batch: TrainingBatch) -> Tensor:
        seen.append(batch)
        return run.logits(batch.inputs).sum()

    for attempt in range(2):
        run.restart()
        seen.clear()
        optimizer = SGD(copied.model)
        for step in run.steps("recover", loss, optimizer, of=samples, max_steps=8):
            step.take(0.0)
        first_pass = torch.cat([batch.indices for batch in seen])[:40]
        assert torch.equal(first_pass.sort().values, samples.sort().values)
        for batch, number in zip(seen, range(8), strict=True):
            epoch = 8 * attempt + number // 3
            assert torch.equal(batch.inputs, data.inputs(batch.indices, augmentation, epoch))
            assert torch.equal(batch.labels, tiny_data.labels[batch.indices])
