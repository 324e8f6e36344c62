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
from torch import Tensor

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


def test_forks_of_forks_and_of_a_busy_pool(native: Any) -> None:
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
def test_usual_normalizations_are_computed_not_looked_up(native: Any, name: str) -> None:
    """The kernel computes what it can and looks up the rest. The bits are the same, so no other test shows it."""
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


# ---- What could corrupt memory is rejected, and nothing is written -------------------------------

# The layers' bindings reject these before they follow an address, so 1 does for one.
POOL: dict[str, Any] = {
    "input": 1,
    "shape": (2, 3, 8, 8),
    "window": (2, 2),
    "output": 1,
    "index": 1,
    "rectified": False,
}
NORM: dict[str, Any] = {"input": 1, "rows": 4, "channels": 3, "weight": 0, "mean": 1, "inverse_std": 1}
BATCH_NORM = {"bias": 0, "epsilon": 1e-5, "running_mean": 0, "running_variance": 0, "momentum": 0.1, "output": 1}
LAYERS: dict[str, dict[str, Any]] = {
    "max_pool2d": POOL,
    "max_pool2d_backward": {
        {"input": "grad_output", "output": "grad_input"}.get(name, name): value
        for name, value in POOL.items()
        if name != "rectified"
    },
    "batch_norm": NORM | BATCH_NORM,
    "batch_norm_backward": NORM | {"grad_output": 1, "grad_weight": 1, "grad_bias": 1, "grad_input": 0},
}


def arguments_of(call: str, row: dict[str, int]) -> tuple[dict[str, Any], list[Tensor]]:
    """Valid arguments of a binding, and the tensors whose addresses they hold. ``row`` changes the trigger table."""
    if call in LAYERS:
        return LAYERS[call] | {"threads": 1, "isa": "", "type": 0}, []
    table = TriggerTable.of([Patch.square(size=2)], (3, 8, 8))
    rows = table.rows.clone()
    for name, value in row.items():
        rows[0, Row[name.upper()]] = value
    batch, pair, logits = torch.full((2, 3, 8, 8), 7.0), torch.arange(2), torch.zeros(4, 10)
    images, ids = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
    pixels = {"images": images, "shape": (4, 3, 8, 8), "indices": pair, "batch": 2, "out": batch, "element": 0}
    pixels |= {"channels_last": False, "table": torch.zeros(3, 256), "scale": (1.0,) * 3, "bias": (0.0,) * 3, "seed": 0}
    rows_of_logits = {"logits": logits, "type": 0, "rows": 4, "classes": 10, "row_stride": 10, "column_stride": 1}
    loss = {"labels": ids, "sample_ids": ids, "mixed_labels": ids, "mixed_weight": torch.ones(4), "seed": 0, "step": 0}
    loss |= {"exclude_true": True, "reduction": 2, "loss": torch.full((), 7.0), "grad": torch.full((4, 10), 7.0)}
    counting = {"labels": ids, "trigger_ids": 0, "targets": torch.zeros(1, 10, dtype=torch.int64), "triggers": 1}
    stamping = {"trigger_ids": pair * 0, "sample_ids": pair, "rows": rows, "triggers": 1, "numbers": table.numbers}
    occluding = {"images": logits.new_zeros(2, 3, 8, 8), "shape": (2, 3, 8, 8), "channels_last": False, "step": 0}
    occluding |= {"mean": torch.zeros(3, 8, 8), "lowest": [0.0] * 3, "reach": [1.0] * 3, "heights": [1] * 3}
    occluding |= {"widths": [1] * 3, "sample_ids": pair, "n_rectangles": 1, "seed": 0, "occluded": batch}
    arguments: dict[str, Any] = {
        "gather_augment": pixels | {"pad": 0, "flip": False, "epoch": 0},
        "cross_entropy": rows_of_logits | loss | {"n_correct": torch.full((), 7)},
        "count_outcomes": rows_of_logits | counting | {"counters": torch.full((2, 6), 7), "class_correct": 0},
        "stamp_trigger": pixels | stamping | {"size": table.numbers.numel()},
        "occlude": occluding | {"neutral": torch.full((2, 3, 8, 8), 7.0)},
    }[call]
    arguments |= {"threads": 1} if call == "occlude" else {"threads": 1, "isa": ""}
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    return {name: v.data_ptr() if isinstance(v, Tensor) else v for name, v in arguments.items()}, tensors


THREADS, ISA = "threads is not in [0, 1024]", "isa is not one that this CPU runs"
NULL, NEGATIVE, NO_PIXELS = "an address is null", "a size is negative", "an image has no pixels"
NO_FIT = "the trigger table does not fit the images"
ALONE = "mixed labels and their weights do not come together"

REJECTED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "gather_augment": [
        ({"shape": (-1, 3, 8, 8)}, NEGATIVE),
        ({"batch": -1}, NEGATIVE),
        ({"shape": (4, 5, 8, 8)}, "channels is not in [1, 4]"),
        ({"shape": (4, 3, 0, 8)}, NO_PIXELS),
        ({"pad": 8}, "pad is not in [0, min(height, width))"),
        ({"pad": -1}, "pad is not in [0, min(height, width))"),
        ({"element": 3}, "element is not in [0, 2]"),
        ({"scale": (1.0,)}, "scale is not one number a channel"),
        ({"bias": ()}, "bias is not one number a channel"),
        ({"threads": -1}, THREADS),
        ({"table": 0}, "the address of the table is null"),
        *(({name: 0}, NULL) for name in ("out", "images", "indices")),
        ({"isa": "mmx"}, ISA),
    ],
    "cross_entropy": [
        ({"rows": -1}, NEGATIVE),
        ({"classes": 1}, "classes is below 2"),
        ({"row_stride": -10}, "a stride is negative"),
        ({"type": 3}, "type is not in [0, 2]"),
        ({"reduction": 3}, "reduction is not in [0, 2]"),
        *(({name: 0}, NULL) for name in ("logits", "labels", "loss", "n_correct")),
        *(({name: 0}, ALONE) for name in ("mixed_labels", "mixed_weight")),
        ({"threads": 1025}, THREADS),
        ({"isa": "mmx"}, ISA),
    ],
    "count_outcomes": [
        ({"rows": -1}, NEGATIVE),
        ({"classes": 0}, "classes is below 1"),
        ({"triggers": -1}, NEGATIVE),
        ({"column_stride": -1}, "a stride is negative"),
        ({"type": -1}, "type is not in [0, 2]"),
        *(({name: 0}, NULL) for name in ("logits", "labels", "targets", "counters")),
        ({"threads": -1}, THREADS),
        ({"isa": "mmx"}, ISA),
    ],
    "stamp_trigger": [
        ({"shape": (4, 5, 8, 8)}, "channels is not in [1, 4]"),
        ({"shape": (-4, 3, 8, 8)}, NEGATIVE),
        ({"batch": -1}, NEGATIVE),
        *(({name: 0}, NULL) for name in ("rows", "numbers", "images", "indices", "trigger_ids", "sample_ids", "out")),
        ({"table": 0}, "the address of the table is null"),
        ({"element": -1}, "element is not in [0, 2]"),
        ({"size": 3}, NO_FIT),  # fewer numbers than the row takes
        *(
            ({"row": row}, NO_FIT)
            for row in (
                *({"kind": 6}, {"kind": -1}, {"start": -1}, {"start": 2**62}, {"channels": 2}, {"height": 9}),
                *({"width": 2**62}, {"top": 7}, {"left": -1}),
            )
        ),
    ],
    "occlude": [
        ({"shape": (-1, 3, 8, 8)}, NEGATIVE),
        ({"shape": (2, 0, 8, 8)}, "channels is not in [1, 4088]"),
        ({"shape": (2, 3, 0, 8)}, NO_PIXELS),
        ({"n_rectangles": 65}, "n_rectangles is not in [0, 64]"),
        ({"lowest": [0.0]}, "lowest is not one number a channel"),
        ({"reach": []}, "reach is not one number a channel"),
        ({"heights": [1] * 8}, "a rectangle is higher than the image"),
        ({"widths": [1] * 8}, "a rectangle is wider than the image"),
        *(({name: 0}, NULL) for name in ("images", "mean", "sample_ids", "occluded", "neutral")),
        ({"threads": -1}, THREADS),
    ],
    "max_pool2d": [
        ({"type": 2}, "type is not in [0, 1]"),
        ({"type": -1}, "type is not in [0, 1]"),
        ({"shape": (-1, 3, 8, 8)}, NEGATIVE),
        ({"shape": (2, 0, 8, 8)}, NO_PIXELS),
        ({"shape": (2, 3, 8, 0)}, NO_PIXELS),
        ({"window": (9, 2)}, "the window does not fit the image"),
        ({"window": (2, 0)}, "the window does not fit the image"),
        ({"window": (17, 16), "shape": (2, 3, 20, 20)}, "the window has more than 256 pixels"),
        ({"window": (2**40, 2**40), "shape": (2, 3, 2**40, 2**40)}, "the window has more than 256 pixels"),
        ({"threads": -1}, THREADS),
        ({"isa": "mmx"}, ISA),
    ],
    "batch_norm": [
        ({"type": 2}, "type is not in [0, 1]"),
        ({"rows": 0}, "there are no rows, or no channels"),
        ({"channels": 0}, "there are no rows, or no channels"),
        *(({name: 0}, NULL) for name in ("input", "mean", "inverse_std")),
        ({"threads": 1025}, THREADS),
        ({"isa": "mmx"}, ISA),
    ],
}
REJECTED |= {f"{layer}_backward": list(REJECTED[layer]) for layer in ("max_pool2d", "batch_norm")}
REJECTED["max_pool2d"] += [({"input": 0}, NULL), ({"output": 0}, NULL)]
REJECTED["max_pool2d"] += [
    (
        {"window": (16, 16), "shape": (2, 3, 20, 20), "rectified": True},
        "the window leaves no index for where nothing is above 0",
    )
]
REJECTED["max_pool2d_backward"] += [({"grad_output": 0}, NULL), ({"grad_input": 0}, NULL)]
REJECTED["batch_norm"] += [
    ({"output": 0}, NULL),
    ({"running_mean": 1}, "running mean and variance do not come together"),
]
REJECTED["batch_norm_backward"] += [({name: 0}, NULL) for name in ("grad_output", "grad_weight", "grad_bias")]


@pytest.mark.parametrize(
    ("call", "change", "message"), [(call, *case) for call, cases in REJECTED.items() for case in cases]
)
def test_invalid_arguments_are_rejected(native: Any, call: str, change: dict[str, Any], message: str) -> None:
    arguments, tensors = arguments_of(call, change.get("row", {}))
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(ValueError) as caught:
        getattr(native, call)(**arguments | {name: value for name, value in change.items() if name != "row"})
    assert str(caught.value) == f"seamfast._native: {message}"
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize(
    ("call", "name", "bad", "answer"),
    [
        ("gather_augment", "indices", 4, 1),
        ("stamp_trigger", "indices", -1, (0, 1)),
        ("stamp_trigger", "trigger_ids", 1, (1, 1)),
        ("cross_entropy", "labels", 10, (0, 1)),
        ("cross_entropy", "mixed_labels", -1, (1, 1)),
        ("count_outcomes", "labels", 10, (0, 1)),
        ("count_outcomes", "trigger_ids", -2, (1, 1)),
    ],
)
def test_an_element_out_of_range_is_reported_and_nothing_written(
    native: Any, call: str, name: str, bad: int, answer: Any
) -> None:
    arguments, tensors = arguments_of(call, {})
    values = torch.tensor([0, bad, 0, 0])
    before = [tensor.clone() for tensor in tensors]
    assert getattr(native, call)(**arguments | {name: values.data_ptr()}) == answer
    assert all(map(torch.equal, tensors, before))


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
    return run.stdout + run.stderr, [*tmp_path.rglob("_native*"), *tmp_path.rglob("_confine*")]


def test_the_build_can_leave_the_extension_out(tmp_path: Path) -> None:
    said, built = build(tmp_path, SEAMFAST_NATIVE="0")
    assert "seamfast goes without its C++ kernels (SEAMFAST_NATIVE=0)" in said
    if sys.platform == "linux":
        assert "seamfast goes without its confinement (SEAMFAST_NATIVE=0); the system will not confine" in said
    assert not built


def test_the_build_succeeds_without_a_compiler(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-compiler")
    said, built = build(tmp_path, CC=missing, CXX=missing)
    (line,) = (line for line in said.splitlines() if "seamfast goes without its C++ kernels (" in line)
    assert "no-such-compiler" in line
    assert not built


# ---- Sanitizers ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_kernels_are_clean_under_a_sanitizer(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "stress"
    # All but what knows Python.
    sources = [*map(str, [ROOT / "csrc/thread_pool.cpp", *(ROOT / "csrc").glob("data_path/*.cpp")])]
    sources += map(str, [*(ROOT / "csrc").glob("ops/*.cpp"), *(ROOT / "csrc").glob("layers/*.cpp")])
    # Unoptimized: optimizing what the sanitizers insert takes the compiler two minutes.
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
