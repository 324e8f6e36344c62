"""``warmup``: what a first run pays is paid by it, and nothing of the caller's is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet, FineTuneConfig, SeamConfig, SuperFineTuneConfig
from seamfast.engine import step
from seamfast.engine.model import digest
from seamfast.errors import ConfigError, InputError, ModelError
from seamfast.warmup import _N_STEPS_ON_CUDA


def test_returns_seconds_by_part_and_can_be_repeated() -> None:
    for _ in range(2):
        seconds = seamfast.warmup(image_shape=(1, 8, 8), num_classes=3, device="cpu")
        assert set(seconds) == {"ops", "device", "run"}
        assert all(value >= 0 for value in seconds.values())
        assert seconds["run"] > 0


class Watched(nn.Module):
    """Counts its training batches, over all copies."""

    n_trained = 0

    def __init__(self, layers: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = layers or nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, images: Tensor) -> Tensor:
        Watched.n_trained += self.training
        logits: Tensor = self.layers(images)
        return logits


def n_trained(call: Callable[[], object]) -> int:
    before = Watched.n_trained
    call()
    return Watched.n_trained - before


@pytest.mark.usefixtures("guessers_are_trained")
def test_run_of_the_same_model_and_data_finds_its_precision_chosen(tiny_data: CleanSet) -> None:
    model = Watched()
    config = FineTuneConfig(max_steps=5)

    def run() -> object:
        return seamfast.sanitize(model, tiny_data, method="fine_tune", config=config, device="cpu")

    tried = n_trained(lambda: seamfast.warmup(model, tiny_data, method="fine_tune", config=config, device="cpu"))
    assert tried > 1  # a step, and what was tried
    assert n_trained(run) == 5  # nothing is tried any more


@pytest.mark.usefixtures("guessers_are_trained")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "fine_tune"},
        {"method": "super_fine_tune", "config": SuperFineTuneConfig(n_cycles=3)},
        {"time_budget_s": 1e-9},
    ],
)
def test_is_short_whatever_the_method(options: dict[str, Any], tiny_data: CleanSet) -> None:
    taken = n_trained(lambda: seamfast.warmup(Watched(), tiny_data, device="cpu", precision="fp32", **options))
    assert 1 <= taken <= 2  # a step of each phase; at "fp32" nothing is tried


def test_is_short_though_accuracy_does_not_come_back(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    model, ruinous = Watched(tiny_model()), SeamConfig(forget_rate=1e3, strengths=(1.0, 0.9, 0.8))
    taken = n_trained(lambda: seamfast.warmup(model, tiny_data, device="cpu", precision="fp32", config=ruinous))
    assert taken == 2


def test_long_enough_on_cuda_for_a_step_to_be_captured() -> None:
    assert step._FEWEST_STEPS <= _N_STEPS_ON_CUDA


class Untold:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def test_touches_nothing_of_the_callers(tiny_model: Callable[[], nn.Module], tiny_data: CleanSet) -> None:
    model = tiny_model()
    model.train()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = digest(model), torch.get_rng_state(), torch.get_num_threads(), tiny_data.inputs.clone()
    seamfast.warmup(model, tiny_data, device="cpu", callbacks=[Untold()])
    seamfast.warmup(image_shape=(3, 9, 7), device="cpu")
    assert digest(model) == before[0]
    assert model.training
    assert torch.equal(first.grad, torch.ones_like(first))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]
    assert torch.equal(tiny_data.inputs, before[3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": nn.Linear(4, 2)}, InputError, "model is given without clean_loader; expected both or neither"),
        (
            {"clean_loader": (torch.zeros(4, 4), [0, 1, 0, 1])},
            InputError,
            "clean_loader is given without model; expected both or neither",
        ),
        ({"num_classes": 1}, InputError, "num_classes is 1; expected an integer of at least 2"),
        ({"num_classes": 2.5}, InputError, "num_classes is 2.5; expected an integer of at least 2"),
        ({"image_shape": 32}, InputError, "image_shape is 32; expected (C, H, W)"),
        ({"image_shape": (3, 0, 8)}, InputError, "image shape is (3, 0, 8); expected (C, H, W), each at least 1"),
        ({"config": {"batch_size": 3}}, ConfigError, "config is a dict; expected SeamConfig for method 'seam'"),
        (
            {"config": FineTuneConfig()},
            ConfigError,
            "config is a FineTuneConfig; expected SeamConfig for method 'seam'",
        ),
        ({"precision": "fp64"}, InputError, "precision is 'fp64'; expected one of auto, fp32, bf16"),
        ({"device": "nowhere"}, InputError, "device is 'nowhere'; expected 'auto' or a torch device such as"),
        (
            {"model": nn.Flatten(), "clean_loader": (torch.zeros(4, 4), [0, 1, 0, 1])},
            ModelError,
            "the model has no parameters; expected a trained nn.Module",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        seamfast.warmup(**{"device": "cpu", **arguments})
    assert str(raised.value).startswith(message)


FIRST_RUN = """
import sys
import torch, seamfast

torch.set_num_threads(1)
seamfast.warmup(image_shape=(1, 8, 8), num_classes=2, device="cpu", config=seamfast.SeamConfig(batch_size=8))
before = set(sys.modules)
data = seamfast.CleanSet(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 2)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
config = seamfast.SeamConfig(forget_max_steps=2, recover_max_steps=2, strengths=(1.0,), batch_size=8)
seamfast.sanitize(model, data, config=config, device="cpu")
assert set(sys.modules) == before, sorted(set(sys.modules) - before)
print(*(name for name in before if name.startswith("seamfast.ops.")))
"""


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_first_run_after_it_imports_nothing(backend: str) -> None:
    environment = os.environ | {"SEAMFAST_BACKEND": backend}
    if backend == "triton":
        pytest.importorskip("triton")
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", FIRST_RUN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    if backend == "triton":
        assert {"seamfast.ops.triton.gather_augment", "seamfast.ops.triton.cross_entropy"} <= set(loaded)
    else:
        assert not any(name.startswith("seamfast.ops.triton.") for name in loaded)
