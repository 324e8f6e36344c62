"""The CUDA twins without a GPU: nvcc compiles them, and an emulation of CUDA runs their sources on the CPU.

The emulation shows what a thread computes, reads and writes, and that a block's threads meet at their barriers; not
races, nor the device's own exp and log. Where there is a GPU, the ops' tests run on it, too (``conftest.py``).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_cross_entropy
import torch
from checks import captured, check_batch, check_count, check_loss
from conftest import Backend
from test_cross_entropy import (  # noqa: F401  # they run here, too, with the fixture `backend` of this module
    test_a_label_out_of_range_gives_nan_on_a_gpu,
    test_a_second_derivative_raises,
    test_against_float64,
    test_backward_scales_and_repeats,
    test_each_step_draws_anew,
    test_extremes,
    test_labels_are_those_of_random_labels,
    test_labels_are_uniform,
    test_labels_do_not_depend_on_the_batch,
    test_mixing_with_itself_is_no_mixing,
    test_offsets_past_2_to_the_31,
    test_one_row_for_all,
    test_options,
    test_rows_have_their_own_outer_gradient,
    test_strides_change_nothing,
    test_the_mean_of_nothing_is_nan,
    test_ties_go_to_the_first,
    test_true_labels,
    test_without_gradient,
)
from test_golden import test_labels, test_places  # noqa: F401
from test_library import test_the_dispatcher_gives_the_same_bits  # noqa: F401
from test_stamp_trigger import (  # noqa: F401
    by_definition,
    images,
    stamp,
    test_an_image_depends_on_itself_alone,
    test_an_image_of_several_blocks,
    test_dtypes_and_layouts,
    test_every_kind_is_its_definition,
    test_images_out_of_range_are_nan_on_a_gpu,
    test_no_triggers_at_all,
    test_places_follow_the_sample_and_the_seed,
    test_the_battery,
    triggers_for,
)

from seamfast.errors import ShapeError
from seamfast.ops import cuda, random_labels, stamp_trigger, true_label_cross_entropy, true_label_loss_and_count
from seamfast.ops.cuda import native as cuda_native
from seamfast.ops.trigger_table import TriggerTable
from seamfast.triggers import AllToOne, Warp

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
NVCC = shutil.which("nvcc", path=os.pathsep.join([f"{os.environ.get('CUDA_HOME', '')}/bin", os.environ["PATH"]]))
MAX_CLASSES = 1024


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``seamfast._cuda`` of the same sources, with the CPU as the device."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    pybind11 = pytest.importorskip("pybind11", reason="building needs pybind11")
    folder = tmp_path_factory.mktemp("emulated")
    for name in ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"):
        (folder / name).write_text('#include "emulated_cuda.h"\n')
    target = folder / "_cuda.so"
    places = [
        f"-I{folder}",
        f"-I{Path(__file__).parent}",
        f"-I{ROOT / 'csrc'}",
        f"-I{sysconfig.get_path('include')}",
        f"-I{pybind11.get_include()}",
    ]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-fvisibility=hidden", "-x", "c++"]
    sources = [str(path) for path in sorted((ROOT / "csrc" / "cuda").iterdir()) if path.suffix in (".cpp", ".cu")]
    done = subprocess.run([COMPILER, *flags, *places, *sources, "-o", str(target)], capture_output=True, text=True)
    if "_Float16" in done.stderr:
        pytest.skip("this compiler has no float16")
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("seamfast._cuda", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unknown() -> Iterator[None]:
    """The extension is imported anew."""
    cuda_native._found.cache_clear()
    yield
    cuda_native._found.cache_clear()


@pytest.fixture
def backend(emulated: Any, unknown: None, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setitem(sys.modules, "seamfast._cuda", emulated)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    monkeypatch.setattr(cuda, "DEVICE_TYPES", ("cuda", "cpu"))
    return Backend("cuda", CPU)


# ---- The kernels, beside the tests imported above ------------------------------------------------


@pytest.mark.parametrize("classes", [2, 15, 16, 17, 31, 63, 64, 65, 255, 256, 257, 1023, 1024])
def test_the_edges_of_the_launch_table(backend: Backend, classes: int) -> None:
    logits, labels, ids = test_cross_entropy.batch(9, classes)
    logits[0, -1] = logits[1, 0] = 50.0
    labels[0], labels[1] = classes - 1, 0
    loss, grad, n_correct = test_cross_entropy.forget(backend, logits, labels, ids)
    drawn = random_labels(labels, ids, num_classes=classes, seed=3, step=5)
    check_loss(logits, drawn, loss, grad)
    check_count(logits, labels, n_correct)


def test_a_mixed_label_out_of_range_gives_nan(backend: Backend) -> None:
    logits, in_range, weight = torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64), torch.ones(3)
    mixed = torch.tensor([0, 15, -7])
    loss = true_label_cross_entropy(
        logits, in_range, mixed_labels=mixed, mixed_weight=weight, reduction="none", backend="cuda"
    )
    assert loss.isnan().tolist() == [False, True, True]


def test_an_impossible_class_of_weight_0_adds_nothing(backend: Backend) -> None:
    logits = torch.tensor([[1.0, -float("inf"), 2.0]]).expand(2, 3)
    labels, others, weight = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0])
    loss = true_label_cross_entropy(
        logits, labels, mixed_labels=others, mixed_weight=weight, reduction="none", backend="cuda"
    )
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits, torch.zeros_like(labels), reduction="none")
    )


def test_half_a_pixel_is_rounded_to_even(backend: Backend) -> None:
    data = torch.tensor([0, 1, 2, 3, 5, 7], dtype=torch.uint8).view(1, 1, 1, 6)  # between neighbours: 0.5, 1.5, 2.5, 4
    trigger = Warp(name="halfway", target=AllToOne(0), flow=np.tile([0.0, 0.5], (1, 6, 1)))
    got = stamp(backend, data, torch.tensor([0]), [trigger], 0)
    assert got.flatten().tolist() == [0, 2, 2, 4, 6, 7]


def test_a_trigger_id_below_minus_1_is_out_of_range(backend: Backend) -> None:
    got = stamp(backend, images(1, 1, 8, 8), torch.zeros(2, dtype=torch.int64), [], torch.tensor([-1, -2]))
    assert got.isnan().flatten(1).all(1).tolist() == [False, True]


def test_too_many_classes_raise(backend: Backend) -> None:
    with pytest.raises(ShapeError) as caught:
        true_label_cross_entropy(torch.zeros(3, 1025), torch.arange(3), backend="cuda")
    assert str(caught.value) == "logits has shape (3, 1025); expected at most 1024 classes with backend 'cuda'"


@pytest.mark.slow
def test_blocks_stride_over_rows_beyond_the_grid(backend: Backend, emulated: Any) -> None:
    n = 8_199
    assert emulated.cross_entropy_blocks(n, 257) == emulated.cross_entropy_blocks(2**40, 257) == 512
    logits, labels, _ = test_cross_entropy.batch(n, 257)
    loss, n_correct = true_label_loss_and_count(logits, labels, reduction="sum", backend="cuda")
    assert float(loss) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")))
    assert int(n_correct) == int((logits.argmax(1) == labels).sum())
    data, indices = images(256, 1, 1, 1), torch.arange(8_200) % 256
    got = stamp(backend, data, indices, [], -1)
    check_batch(got, data[indices].float())


# ---- The extension by itself ---------------------------------------------------------------------


def test_why_unavailable(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(extension: Any) -> str | None:
        monkeypatch.setitem(sys.modules, "seamfast._cuda", extension)
        cuda_native._found.cache_clear()
        return cuda.why_unavailable()

    how = "install with SEAMFAST_CUDA=1 where nvcc is"
    assert why(None) == f"the extension seamfast._cuda is not built: {how}"
    another = "seamfast._cuda is of another build (interface 0; expected 2)"
    assert why(SimpleNamespace(INTERFACE=0)) == f"{another}: {how}"
    extension = SimpleNamespace(INTERFACE=2, why_unavailable=lambda: "insufficient")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why(extension) == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why(extension) == "seamfast._cuda and this machine's driver do not go together: insufficient"
    extension.why_unavailable = lambda: ""
    assert why(extension) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "a size is negative"),
        ({"rows": 0}, "there are no rows"),
        ({"classes": 1}, "classes is not in [2, 1024]"),
        ({"classes": 1025}, "classes is not in [2, 1024]"),
        ({"column_stride": -1}, "a stride is negative"),
        ({"element": 3}, "element is not in [0, 2]"),
        ({"logits": 0}, "an address is null"),
        ({"n_correct": 0}, "an address is null"),
        ({"rows": 129, "parts": 0}, "an address is null"),
        ({"mixed_weight": 0}, "mixed labels and their weights do not come together"),
    ],
)
def test_the_loss_rejects_invalid_arguments(emulated: Any, change: dict[str, int], message: str) -> None:
    names = "logits labels sample_ids mixed_labels mixed_weight seed_at step_at loss grad n_correct parts"
    arguments = {**dict.fromkeys(names.split(), 8), "element": 0, "rows": 4, "classes": 10, "row_stride": 10}
    arguments |= {"column_stride": 1, "seed": 0, "step": 0, "exclude_true": True, "scale": 1.0}
    with pytest.raises(ValueError) as caught:
        emulated.cross_entropy(**{**arguments, "each": False, "device": 0, "stream": 0, **change})
    assert str(caught.value) == f"seamfast._cuda: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "there are no images"),
        ({"count": -1}, "a size is negative"),
        ({"channels": 5}, "channels is not in [1, 4]"),
        ({"height": 0}, "an image has no pixels"),
        ({"height": 2**62}, "an image has more than 2^30 values"),
        ({"images": 0}, "an address is null"),
        ({"numbers": 0}, "an address is null"),
        ({"table": 0}, "an address is null"),
        ({"element": -1}, "element is not in [0, 2]"),
    ],
)
def test_stamping_rejects_invalid_arguments(emulated: Any, change: dict[str, int], message: str) -> None:
    names = "images indices trigger_ids sample_ids rows numbers table seed_at out above"
    arguments = {**dict.fromkeys(names.split(), 8), "count": 4, "channels": 3, "height": 8}
    arguments |= {"width": 8, "batch": 2, "triggers": 1, "element": 0, "seed": 0, "channels_last": False}
    with pytest.raises(ValueError) as caught:
        emulated.stamp_trigger(**{**arguments, "device": 0, "stream": 0, **change})
    assert str(caught.value) == f"seamfast._cuda: {message}"


# ---- How it is built -----------------------------------------------------------------------------


def build(folder: Path, **environment: str) -> tuple[int, str, list[Path]]:
    pytest.importorskip("pybind11", reason="building needs pybind11")
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder / "o")]
    everywhere = {**os.environ, "SEAMFAST_NATIVE": "0", **environment}
    run = subprocess.run(command, cwd=ROOT, env=everywhere, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr, list(folder.rglob("_cuda*.so"))


def test_it_is_built_only_on_request(tmp_path: Path) -> None:
    code, said, built = build(tmp_path, SEAMFAST_CUDA="")
    assert code == 0, said
    assert not built


def test_building_without_nvcc_is_an_error(tmp_path: Path) -> None:
    code, said, built = build(tmp_path, SEAMFAST_CUDA="1", PATH=str(tmp_path), CUDA_HOME=str(tmp_path))
    assert code != 0
    got = f"error: SEAMFAST_CUDA is 1, but nvcc is neither on PATH nor in CUDA_HOME ({tmp_path})"
    assert f"{got}; install the CUDA toolkit, or unset SEAMFAST_CUDA" in said
    assert not built


LOOK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("seamfast._cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.INTERFACE, module.MAX_CLASSES, callable(module.cross_entropy), callable(module.stamp_trigger))
assert isinstance(module.why_unavailable(), str)
"""


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_the_build_of_nvcc_imports_without_a_gpu(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    code, said, built = build(tmp_path, SEAMFAST_CUDA="1", NVCC_APPEND_FLAGS=f"--keep --keep-dir {kept}")
    assert code == 0, said
    assert "warning #" not in said
    assert len(built) == 1
    run = subprocess.run([sys.executable, "-c", LOOK, str(built[0])], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{cuda_native._INTERFACE} {MAX_CLASSES} True True\n"
    for ptx in kept.glob("*.ptx"):
        text = ptx.read_text()
        assert "fma.rn" not in text or "cross_entropy" in ptx.name, "fused, so ties would fall differently"
        assert ".local" not in text, "a row or a pixel does not stay in registers"


# ---- Where there is a GPU ------------------------------------------------------------------------


@pytest.mark.gpu
def test_captured_stamping_reads_the_seed_at_each_replay() -> None:
    reason = cuda.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    triggers = [t for t in triggers_for(1, 8, 8) if "anywhere" in t.name or t.name == "dither"]
    data, ids = images(5, 1, 8, 8), torch.arange(30) % len(triggers)
    on, indices, seed = data.cuda(), (torch.arange(30) % 5).cuda(), torch.tensor(0).cuda()
    table, on_ids = TriggerTable.of(triggers, (1, 8, 8), "cuda"), ids.cuda()

    def one() -> torch.Tensor:
        return stamp_trigger(on, indices, table, on_ids, mean=0.0, std=1 / 255, seed=seed, backend="cuda")

    graph, batch = captured(one)
    for number in (0, 1, -1):
        seed.fill_(number)
        graph.replay()
        check_batch(batch, by_definition(data, indices.cpu(), triggers, ids, seed=number % 2**64))
