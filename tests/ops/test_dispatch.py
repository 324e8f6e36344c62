"""Which backend runs, and the warnings and errors where one cannot."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seamfast.errors import BackendUnavailableError, InputError
from seamfast.ops import backends, cpp, dispatch, gather_augment

CPU = torch.device("cpu")
IMAGES = torch.arange(3 * 4 * 4, dtype=torch.uint8).view(1, 3, 4, 4)


def gather(**arguments: Any) -> torch.Tensor:
    return gather_augment(IMAGES, torch.tensor([0]), mean=0.0, std=1.0, **arguments)


def test_auto_takes_cpp_on_the_cpu_and_triton_elsewhere(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEAMFAST_BACKEND", raising=False)
    assert dispatch.resolve("gather_augment", "auto", CPU) == "cpp"
    triton = pytest.importorskip("seamfast.ops.triton")
    monkeypatch.setattr(triton, "why_unavailable", lambda: None)
    assert dispatch.resolve("gather_augment", "auto", torch.device("cuda:0")) == "triton"
    monkeypatch.setattr(triton, "why_unavailable", lambda: "no such library")
    with pytest.warns(RuntimeWarning, match=r": backend 'triton' cannot run: no such library$"):
        assert dispatch.resolve("gather_augment", "auto", torch.device("cuda:0")) == "reference"


def test_auto_never_takes_the_interpreter_of_triton(without_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEAMFAST_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning, match="slower PyTorch reference"):
        assert dispatch.resolve("gather_augment", "auto", CPU) == "reference"


def test_auto_falls_back_with_one_warning(without_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEAMFAST_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning) as caught:
        gather()
    assert [str(w.message) for w in caught] == [
        "seamfast runs on its slower PyTorch reference: backend 'cpp' cannot run: the compiled extension "
        "seamfast._native did not import (import of seamfast._native halted; None in sys.modules); reinstall seamfast "
        "where a C++17 compiler is found"
    ]
    assert caught[0].filename == __file__  # the line of the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gather()


def test_a_named_backend_that_cannot_run_raises(without_native: None) -> None:
    with pytest.raises(BackendUnavailableError, match=r"^backend 'cpp' cannot run: the compiled extension .* did not"):
        gather(backend="cpp")
    gather(backend="reference")


def test_a_build_of_another_interface_is_rejected(without_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seamfast._native", SimpleNamespace(INTERFACE=0))  # type: ignore[arg-type]
    assert cpp.why_unavailable() == (
        "seamfast._native is of another build (interface 0; expected 6); reinstall seamfast"
    )


def test_the_environment_variable_names_the_backend_for_auto(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAMFAST_BACKEND", "reference")
    assert dispatch.resolve("gather_augment", "auto", CPU) == "reference"
    assert dispatch.resolve("gather_augment", "cpp", CPU) == "cpp"  # an argument precedes the environment
    monkeypatch.setenv("SEAMFAST_BACKEND", "")
    assert dispatch.resolve("gather_augment", "auto", CPU) == "cpp"
    monkeypatch.setenv("SEAMFAST_BACKEND", "fast")
    message = r"^environment variable SEAMFAST_BACKEND is 'fast'; expected one of auto, reference, cpp, triton, cuda$"
    with pytest.raises(InputError, match=message):
        dispatch.resolve("gather_augment", "auto", CPU)
    monkeypatch.setenv("SEAMFAST_BACKEND", "cpp")
    with pytest.raises(BackendUnavailableError, match=r"^backend 'cpp' runs on cpu tensors; these are on cuda:1$"):
        dispatch.resolve("gather_augment", "auto", torch.device("cuda:1"))
    monkeypatch.setenv("SEAMFAST_BACKEND", "cuda")
    message = r"^gather_augment has no backend 'cuda'; it has cpp, triton, reference$"
    with pytest.raises(BackendUnavailableError, match=message):
        dispatch.resolve("gather_augment", "auto", torch.device("cuda:1"))


def test_backends_lists_what_runs(native: Any) -> None:
    rows = {(row["op"], row["backend"]): row for row in backends()}
    compiled = rows["gather_augment", "cpp"]
    assert compiled["available"]
    assert compiled["reason"] is None
    assert compiled["isa"] == native.isas()[-1]
    assert compiled["devices"] == ("cpu",)
    assert compiled["threads"] == torch.get_num_threads()
    assert rows["gather_augment", "reference"] == {
        "op": "gather_augment",
        "backend": "reference",
        "available": True,
        "reason": None,
        "devices": None,
        "isa": None,
        "threads": None,
    }


def test_backends_gives_the_reason_where_one_cannot_run(without_native: None) -> None:
    compiled = [row for row in backends() if row["backend"] == "cpp"]
    assert len(compiled) == 5
    for row in compiled:
        assert not row["available"]
        assert "did not import" in str(row["reason"])
        assert row["isa"] is None


def test_importing_the_ops_loads_nothing_compiled() -> None:
    code = "import sys, seamfast.ops; print('seamfast._native' in sys.modules, 'triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
