"""The compiled extension by itself: its own checks, its thread pool, and how it is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seamfast.ops.normalization import normalization
from seamfast.ops.trigger_table import Row, TriggerTable
from seamfast.triggers import Patch

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def run_python(code: str, timeout: float = 60) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout


SETUP = """
import os, sys, threading, torch
from seamfast.ops import gather_augment
images = torch.arange(256, dtype=torch.uint8).repeat(50 * 12).view(50, 3, 32, 32)
indices = torch.arange(1000) % 50
def batch(seed=0):
    return gather_augment(images, indices, mean=.5, std=.25, pad=4, seed=seed, threads=4, backend="cpp")
want = batch()
def child_agrees():
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(batch(), want) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_has_a_pool_of_its_own(native: Any) -> None:
    code = "assert all(child_agrees() for _ in range(5)); assert torch.equal(batch(), want); print('ok')"
    assert run_python(SETUP + code) == "ok\n"


def test_a_grandchild_too_and_while_the_pool_is_at_work(native: Any) -> None:
    code = """
stop = threading.Event()
def work():
    while not stop.is_set():
        batch(1)
worker = threading.Thread(target=work)
worker.start()
assert all(child_agrees() for _ in range(10))
stop.set()
worker.join()
child = os.fork()
if child == 0:
    batch()
    os._exit(0 if child_agrees() else 1)
assert os.waitpid(child, 0)[1] == 0
print('ok')
"""
    assert run_python(SETUP + code) == "ok\n"


def test_the_process_ends_while_workers_sleep(native: Any) -> None:
    assert run_python(SETUP + "print('ok')") == "ok\n"


def test_workers_sleep_when_there_is_nothing_to_do(native: Any) -> None:
    code = """
import time
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""
    assert float(run_python(SETUP + code)) < 0.1  # a spinning worker would burn 0.5 s


def test_threads_default_to_the_affinity_mask(native: Any) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from seamfast.ops import backends
print({row["threads"] for row in backends() if row["backend"] == "cpp"})
"""
    assert run_python(code) == "{1}\n"


def test_isas_run_from_the_baseline_up(native: Any) -> None:
    assert native.isas()[0] == "baseline"
    assert set(native.isas()) <= {"baseline", "avx2", "avx512"}


USUAL = {
    "uint8 as it is": ((0.0,), (1.0,)),
    "one half": ((0.5,), (0.5,)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 of BackdoorBench": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "GTSRB": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_normalisations_take_the_fast_way(native: Any, name: str) -> None:
    """The kernel computes what it can and looks up the rest. The bits are the same: nothing else would show a loss."""
    mean, std = USUAL[name]
    norm = normalization(mean, std, len(mean))
    for isa in native.isas()[1:]:
        for element, dtype in enumerate((torch.float32, torch.bfloat16)):
            table = norm.table(dtype, torch.device("cpu"))
            for channel in range(len(mean)):
                assert native.gather_augment_computes(
                    element=element,
                    table=table[channel].data_ptr(),
                    scale=norm.scale[channel],
                    bias=norm.bias[channel],
                    isa=isa,
                ), (isa, dtype, channel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (-1, 3, 8, 8)}, "a size is negative"),
        ({"batch": -1}, "a size is negative"),
        ({"shape": (4, 5, 8, 8)}, "channels is not in [1, 4]"),
        ({"shape": (4, 3, 0, 8)}, "an image has no pixels"),
        ({"pad": 8}, "pad is not in [0, min(height, width))"),
        ({"pad": -1}, "pad is not in [0, min(height, width))"),
        ({"element": 3}, "element is not in [0, 2]"),
        ({"scale": (1.0,)}, "scale is not one number a channel"),
        ({"bias": ()}, "bias is not one number a channel"),
        ({"threads": -1}, "threads is not in [0, 1024]"),
        ({"table": 0}, "the address of the table is null"),
        ({"out": 0}, "an address is null"),
        ({"images": 0}, "an address is null"),
        ({"isa": "mmx"}, "isa is not one that this CPU runs"),
    ],
)
def test_the_extension_refuses_what_would_corrupt_memory(native: Any, change: dict[str, Any], message: str) -> None:
    images, indices = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(2)
    out, table = torch.full((2, 3, 8, 8), 7.0), torch.zeros(3, 256)
    arguments = {
        "images": images.data_ptr(),
        "shape": (4, 3, 8, 8),
        "indices": indices.data_ptr(),
        "batch": 2,
        "out": out.data_ptr(),
        "element": 0,
        "channels_last": False,
        "table": table.data_ptr(),
        "scale": (1.0,) * 3,
        "bias": (0.0,) * 3,
        "pad": 0,
        "flip": False,
        "seed": 0,
        "epoch": 0,
        "threads": 1,
        "isa": "",
    }
    with pytest.raises(ValueError) as caught:
        native.gather_augment(**{**arguments, **change})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert bool((out == 7).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "a size is negative"),
        ({"classes": 1}, "classes is below 2"),
        ({"row_stride": -10}, "a stride is negative"),
        ({"type": 3}, "type is not in [0, 2]"),
        ({"reduction": 3}, "reduction is not in [0, 2]"),
        ({"logits": 0}, "an address is null"),
        ({"labels": 0}, "an address is null"),
        ({"loss": 0}, "an address is null"),
        ({"n_correct": 0}, "an address is null"),
        ({"mixed_labels": 0}, "mixed labels and their weights do not come together"),
        ({"mixed_weight": 0}, "mixed labels and their weights do not come together"),
        ({"threads": 1025}, "threads is not in [0, 1024]"),
        ({"isa": "mmx"}, "isa is not one that this CPU runs"),
    ],
)
def test_the_loss_refuses_what_would_corrupt_memory(native: Any, change: dict[str, Any], message: str) -> None:
    logits, labels, weight = torch.zeros(4, 10), torch.arange(4), torch.ones(4)
    loss, grad, n_correct = torch.full((), 7.0), torch.full((4, 10), 7.0), torch.full((), 7)
    arguments = {
        "logits": logits.data_ptr(),
        "type": 0,
        "rows": 4,
        "classes": 10,
        "row_stride": 10,
        "column_stride": 1,
        "labels": labels.data_ptr(),
        "sample_ids": labels.data_ptr(),
        "mixed_labels": labels.data_ptr(),
        "mixed_weight": weight.data_ptr(),
        "seed": 0,
        "step": 0,
        "exclude_true": True,
        "label_smoothing": 0.0,
        "reduction": 2,
        "loss": loss.data_ptr(),
        "grad": grad.data_ptr(),
        "n_correct": n_correct.data_ptr(),
        "threads": 1,
        "isa": "",
    }
    with pytest.raises(ValueError) as caught:
        native.cross_entropy(**{**arguments, **change})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert bool((grad == 7).all())
    assert (float(loss), int(n_correct)) == (7.0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "a size is negative"),
        ({"classes": 0}, "classes is below 1"),
        ({"triggers": -1}, "a size is negative"),
        ({"column_stride": -1}, "a stride is negative"),
        ({"type": -1}, "type is not in [0, 2]"),
        ({"logits": 0}, "an address is null"),
        ({"labels": 0}, "an address is null"),
        ({"targets": 0}, "an address is null"),
        ({"counters": 0}, "an address is null"),
        ({"threads": -1}, "threads is not in [0, 1024]"),
        ({"isa": "mmx"}, "isa is not one that this CPU runs"),
    ],
)
def test_counting_refuses_what_would_corrupt_memory(native: Any, change: dict[str, Any], message: str) -> None:
    logits, labels = torch.zeros(4, 10), torch.arange(4)
    counters, targets = torch.full((2, 6), 7), torch.zeros(1, 10, dtype=torch.int64)
    arguments = {
        "logits": logits.data_ptr(),
        "type": 0,
        "rows": 4,
        "classes": 10,
        "row_stride": 10,
        "column_stride": 1,
        "labels": labels.data_ptr(),
        "trigger_ids": 0,
        "targets": targets.data_ptr(),
        "triggers": 1,
        "counters": counters.data_ptr(),
        "class_correct": 0,
        "confusion": 0,
        "threads": 1,
        "isa": "",
    }
    with pytest.raises(ValueError) as caught:
        native.count_outcomes(**{**arguments, **change})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert bool((counters == 7).all())


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        ({"shape": (4, 5, 8, 8)}, {}, "channels is not in [1, 4]"),
        ({"shape": (-4, 3, 8, 8)}, {}, "a size is negative"),
        ({"batch": -1}, {}, "a size is negative"),
        ({"rows": 0}, {}, "an address is null"),
        ({"numbers": 0}, {}, "an address is null"),
        ({"images": 0}, {}, "an address is null"),
        ({"sample_ids": 0}, {}, "an address is null"),
        ({"out": 0}, {}, "an address is null"),
        ({"table": 0}, {}, "the address of the table is null"),
        ({"element": -1}, {}, "element is not in [0, 2]"),
        ({"size": 3}, {}, "the trigger table does not fit the images"),  # fewer numbers than the row takes
        ({}, {"kind": 6}, "the trigger table does not fit the images"),
        ({}, {"kind": -1}, "the trigger table does not fit the images"),
        ({}, {"start": -1}, "the trigger table does not fit the images"),
        ({}, {"start": 2**62}, "the trigger table does not fit the images"),
        ({}, {"channels": 2}, "the trigger table does not fit the images"),
        ({}, {"height": 9}, "the trigger table does not fit the images"),
        ({}, {"width": 2**62}, "the trigger table does not fit the images"),
        ({}, {"top": 7}, "the trigger table does not fit the images"),
        ({}, {"left": -1}, "the trigger table does not fit the images"),
    ],
)
def test_stamping_refuses_what_would_corrupt_memory(
    native: Any, change: dict[str, Any], row: dict[str, int], message: str
) -> None:
    table = TriggerTable.of([Patch.square(size=2)], (3, 8, 8))
    rows, numbers = table.rows.clone(), table.numbers
    for name, value in row.items():
        rows[0, Row[name.upper()]] = value
    images, ids = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    out, values = torch.full((2, 3, 8, 8), 7.0), torch.zeros(3, 256)
    arguments = {
        "images": images.data_ptr(),
        "interleaved": False,
        "shape": (4, 3, 8, 8),
        "indices": ids.data_ptr(),
        "trigger_ids": ids.data_ptr(),
        "sample_ids": ids.data_ptr(),
        "batch": 2,
        "rows": rows.data_ptr(),
        "triggers": 1,
        "numbers": numbers.data_ptr(),
        "size": numbers.numel(),
        "out": out.data_ptr(),
        "element": 0,
        "channels_last": False,
        "table": values.data_ptr(),
        "scale": (1.0,) * 3,
        "bias": (0.0,) * 3,
        "seed": 0,
        "threads": 1,
        "isa": "",
    }
    with pytest.raises(ValueError) as caught:
        native.stamp_trigger(**{**arguments, **change})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert bool((out == 7).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (-1, 3, 8, 8)}, "a size is negative"),
        ({"shape": (2, 0, 8, 8)}, "channels is not in [1, 4088]"),
        ({"shape": (2, 3, 0, 8)}, "an image has no pixels"),
        ({"n_rectangles": 65}, "n_rectangles is not in [0, 64]"),
        ({"lowest": [0.0]}, "lowest is not one number a channel"),
        ({"reach": []}, "reach is not one number a channel"),
        ({"heights": [1] * 8}, "a rectangle is higher than the image"),
        ({"widths": [1] * 8}, "a rectangle is wider than the image"),
        ({"mean": 0}, "an address is null"),
        ({"neutral": 0}, "an address is null"),
        ({"threads": -1}, "threads is not in [0, 1024]"),
    ],
)
def test_occluding_refuses_what_would_corrupt_memory(native: Any, change: dict[str, Any], message: str) -> None:
    images, ids, mean = torch.zeros(2, 3, 8, 8), torch.arange(2), torch.zeros(3, 8, 8)
    occluded, neutral = torch.full((2, 3, 8, 8), 7.0), torch.full((2, 3, 8, 8), 7.0)
    arguments = {
        "images": images.data_ptr(),
        "shape": (2, 3, 8, 8),
        "channels_last": False,
        "mean": mean.data_ptr(),
        "lowest": [0.0] * 3,
        "reach": [1.0] * 3,
        "heights": [1] * 3,
        "widths": [1] * 3,
        "sample_ids": ids.data_ptr(),
        "n_rectangles": 1,
        "seed": 0,
        "step": 0,
        "occluded": occluded.data_ptr(),
        "neutral": neutral.data_ptr(),
        "threads": 1,
    }
    with pytest.raises(ValueError) as caught:
        native.occlude(**{**arguments, **change})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert bool((occluded == 7).all() and (neutral == 7).all())


POOL = {
    "input": 1,
    "type": 0,
    "shape": (2, 3, 8, 8),
    "window": (2, 2),
    "output": 1,
    "index": 1,
    "threads": 1,
    "isa": "",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": 2}, "type is not in [0, 1]"),
        ({"type": -1}, "type is not in [0, 1]"),
        ({"shape": (-1, 3, 8, 8)}, "a size is negative"),
        ({"shape": (2, 0, 8, 8)}, "an image has no pixels"),
        ({"shape": (2, 3, 8, 0)}, "an image has no pixels"),
        ({"window": (9, 2)}, "the window does not fit the image"),
        ({"window": (2, 0)}, "the window does not fit the image"),
        ({"window": (17, 16), "shape": (2, 3, 20, 20)}, "the window has more than 256 pixels"),
        ({"window": (2**40, 2**40), "shape": (2, 3, 2**40, 2**40)}, "the window has more than 256 pixels"),
        ({"input": 0}, "an address is null"),
        ({"output": 0}, "an address is null"),
        ({"threads": -1}, "threads is not in [0, 1024]"),
        ({"isa": "mmx"}, "isa is not one that this CPU runs"),
    ],
)
def test_pooling_refuses_what_would_corrupt_memory(native: Any, change: dict[str, Any], message: str) -> None:
    arguments = {**POOL, **change}
    with pytest.raises(ValueError) as caught:  # before any address is followed
        native.max_pool2d(**arguments, rectified=False)
    assert str(caught.value) == f"seamfast._native: {message}"
    backwards = {"input": "grad_output", "output": "grad_input"}
    with pytest.raises(ValueError) as caught:
        native.max_pool2d_backward(**{backwards.get(name, name): value for name, value in arguments.items()})
    assert str(caught.value) == f"seamfast._native: {message}"


def test_a_window_of_all_indices_leaves_none_for_nowhere(native: Any) -> None:
    change = {"window": (16, 16), "shape": (2, 3, 20, 20)}
    with pytest.raises(ValueError) as caught:
        native.max_pool2d(**{**POOL, **change}, rectified=True)
    assert str(caught.value) == "seamfast._native: the window leaves no index for where nothing is above 0"


NORM = {
    "input": 1,
    "type": 0,
    "rows": 4,
    "channels": 3,
    "weight": 0,
    "mean": 1,
    "inverse_std": 1,
    "threads": 1,
    "isa": "",
}
FORWARD = {"bias": 0, "epsilon": 1e-5, "running_mean": 0, "running_variance": 0, "momentum": 0.1, "output": 1}
BACKWARD = {"grad_output": 1, "grad_weight": 1, "grad_bias": 1, "grad_input": 0}


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        *(
            (call, change, message)
            for call in ("batch_norm", "batch_norm_backward")
            for change, message in (
                ({"type": 2}, "type is not in [0, 1]"),
                ({"rows": 0}, "there are no rows, or no channels"),
                ({"channels": 0}, "there are no rows, or no channels"),
                ({"input": 0}, "an address is null"),
                ({"mean": 0}, "an address is null"),
                ({"inverse_std": 0}, "an address is null"),
                ({"threads": 1025}, "threads is not in [0, 1024]"),
                ({"isa": "mmx"}, "isa is not one that this CPU runs"),
            )
        ),
        ("batch_norm", {"output": 0}, "an address is null"),
        ("batch_norm", {"running_mean": 1}, "running mean and variance do not come together"),
        ("batch_norm_backward", {"grad_output": 0}, "an address is null"),
        ("batch_norm_backward", {"grad_weight": 0}, "an address is null"),
        ("batch_norm_backward", {"grad_bias": 0}, "an address is null"),
    ],
)
def test_normalising_refuses_what_would_corrupt_memory(
    native: Any, call: str, change: dict[str, Any], message: str
) -> None:
    arguments = {**NORM, **(FORWARD if call == "batch_norm" else BACKWARD), **change}
    with pytest.raises(ValueError) as caught:  # before any address is followed
        getattr(native, call)(**arguments)
    assert str(caught.value) == f"seamfast._native: {message}"


# ---- How it is built -----------------------------------------------------------------------------


def build(tmp_path: Path, **environment: str) -> tuple[str, list[Path]]:
    pytest.importorskip("pybind11", reason="building needs pybind11")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path / "o"),
    ]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr, list(tmp_path.rglob("_native*"))


def test_the_build_can_leave_the_extension_out(tmp_path: Path) -> None:
    said, built = build(tmp_path, SEAMFAST_NATIVE="0")
    assert "seamfast goes without its C++ kernels (SEAMFAST_NATIVE=0)" in said
    assert not built


def test_the_build_succeeds_without_a_compiler(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-compiler")
    said, built = build(tmp_path, CC=missing, CXX=missing)
    (line,) = (line for line in said.splitlines() if "seamfast goes without its C++ kernels (" in line)
    assert "no-such-compiler" in line
    assert not built


# ---- Sanitizers ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_kernels_are_clean_under_a_sanitizer(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "stress"
    # All but what knows Python.
    sources = [*map(str, [ROOT / "csrc/thread_pool.cpp", *(ROOT / "csrc").glob("data_path/*.cpp")])]
    sources += map(str, [*(ROOT / "csrc").glob("ops/*.cpp"), *(ROOT / "csrc").glob("layers/*.cpp")])
    # Unoptimised: optimising what the sanitizers insert takes the compiler two minutes.
    flags = ["-std=c++17", "-O0", "-g", "-ffp-contract=off", "-Wno-psabi"]
    flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = [str(COMPILER), *flags, f"-I{ROOT / 'csrc'}", str(Path(__file__).with_name("stress.cpp")), *sources]
    compiled = subprocess.run([*command, "-pthread", "-o", str(program)], capture_output=True, text=True)
    if compiled.returncode != 0 and "cannot find" in compiled.stderr:
        pytest.skip(f"the runtime of -fsanitize={sanitizer} is not installed")
    assert compiled.returncode == 0, compiled.stderr
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=200)
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel's address layout")
    assert run.returncode == 0, run.stderr
