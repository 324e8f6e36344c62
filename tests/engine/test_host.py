from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet, SeamConfig
from seamfast.engine import compute
from seamfast.engine.host import choose_threads, in_use
from seamfast.ops import cpp

Make = Callable[[], nn.Module]

SHORT = SeamConfig(forget_max_steps=3, forget_eval_every=3, recover_max_steps=4, recover_eval_every=4, strengths=(1.0,))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


class Watch(seamfast.Callback):
    """What PyTorch was set to during the steps."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, bool]] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))


class Fails(Watch):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt  # any other error would be a warning


def timed(seconds: dict[int, float]) -> Callable[[], float]:
    return lambda: seconds[torch.get_num_threads()]


def test_what_is_faster_is_taken() -> None:
    torch.set_num_threads(2)
    assert choose_threads(timed({1: 0.5, 2: 0.3})) == "a step took 300 ms with 2 threads and 500 ms with one"
    assert torch.get_num_threads() == 2
    assert choose_threads(timed({1: 0.29, 2: 0.3})) == "a step took 300 ms with 2 threads and 290 ms with one"
    assert torch.get_num_threads() == 2
    assert choose_threads(timed({1: 0.003, 2: 0.06})) == "a step took 3 ms with one thread and 60 ms with 2"
    assert torch.get_num_threads() == 1
    assert choose_threads(timed({})) == "PyTorch was set to one thread"
    torch.set_num_threads(2)
    for limit_s in (-1.0, 0.5):
        why = choose_threads(timed({1: 0.1, 2: 0.3}), limit_s)
        assert why == "the time budget left no time to try another number"
        assert torch.get_num_threads() == 2


def test_a_step_that_fails_with_one_thread_leaves_as_many_as_there_were() -> None:
    def step_seconds() -> float:
        if torch.get_num_threads() == 1:
            raise RuntimeError("no memory")
        return 0.1

    torch.set_num_threads(2)
    with pytest.raises(RuntimeError, match="no memory"):
        choose_threads(step_seconds)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_settings_hold_for_the_run_and_are_in_use(
    tiny_data: CleanSet, tiny_model: Make, deterministic: bool, fails: bool
) -> None:
    watch: Any = Fails() if fails else Watch()
    torch.set_num_threads(1)
    try:
        result = seamfast.sanitize(
            tiny_model(), tiny_data, config=SHORT, threads=2, deterministic=deterministic, callbacks=[watch]
        )
    except KeyboardInterrupt:
        assert fails
    else:
        assert watch.seen == {(2, deterministic)}
        assert result.report["run"]["threads"] == {"chosen": 2, "reason": "2 were asked for"}
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_warning_mode_of_the_caller_comes_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    with in_use():
        torch.use_deterministic_algorithms(False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_slow_pair_of_threads_is_not_used(
    tiny_data: CleanSet, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "step_seconds", lambda *_: 0.01 if torch.get_num_threads() == 1 else 0.2)
    torch.set_num_threads(2)
    watch = Watch()
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, callbacks=[watch])
    assert watch.seen == {(1, False)}
    assert result.report["run"]["threads"] == {
        "chosen": 1,
        "reason": "a step took 10 ms with one thread and 200 ms with 2",
    }
    assert torch.get_num_threads() == 2


def test_deterministic_decides_nothing_by_the_clock(
    tiny_data: CleanSet, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any) -> float:
        raise AssertionError("a step was timed")

    monkeypatch.setattr(compute, "step_seconds", timed)
    monkeypatch.setattr("seamfast.engine.precision.step_seconds", timed)
    torch.set_num_threads(2)
    results = [seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, deterministic=True) for _ in range(2)]
    run = results[0].report["run"]
    assert run["precision"] == {
        "chosen": "fp32",
        "reason": "float32, as nothing is chosen by timing in deterministic mode",
        "trials": [],
    }
    assert run["threads"] == {"chosen": 2, "reason": "as many as PyTorch has"}
    assert results[0].report["model"]["digest_after"] == results[1].report["model"]["digest_after"]


def test_compiled_models_are_what_steps_run_on(
    tiny_data: CleanSet, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself is PyTorch's; what is ours is that student and teacher go through it, and come back."""
    compiled: list[nn.Module] = []

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner, self.n = model, 0
            compiled.append(self)

        def forward(self, images: torch.Tensor) -> Any:
            self.n += 1
            return self.inner(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    plain = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, deterministic=True)
    assert not compiled
    result = seamfast.sanitize(tiny_model(), tiny_data, config=SHORT, deterministic=True, compile=True)
    student, teacher = compiled
    assert (student.n, teacher.n) == (7, 4)
    assert type(result.model) is type(plain.model)
    assert result.report["model"]["digest_after"] == plain.report["model"]["digest_after"]


def test_freed_memory_stays_for_the_length_of_a_run() -> None:
    """Counted in page faults: what was given back to the system comes again as new pages."""
    if cpp.why_unavailable() is not None or not sys.platform.startswith("linux"):
        pytest.skip("needs the compiled extension, on Linux")
    code = """
import resource, torch
from seamfast.ops import cpp

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB, above all thresholds of the C library
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

at_first = faults()
held = resident()
with cpp.freed_memory_kept():
    faults()
    with cpp.freed_memory_kept():
        faults()
    within = faults()
    kept = resident()
print(at_first, within, kept - held, resident() - held)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    at_first, within, kept, left = map(int, done.stdout.split())
    a_block = 64 * 2**20 // resource.getpagesize()
    if at_first < 10 * a_block:
        pytest.skip("this C library, or its settings, keep freed memory anyway, or use huge pages")
    assert within < a_block / 10
    assert kept > 0.9 * a_block
    assert left < 0.2 * a_block
