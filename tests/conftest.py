"""What all tests share: one thread, a seeded torch, a small set of images and a model that has learnt it."""

from __future__ import annotations

import _pickle
import copy
import functools
import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from seamfast import CleanSet

NUM_CLASSES = 4


# Before anything imports Triton: without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
    # Ignored where the tests run in the background, by nohup say; processes that they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def guessers_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """``sanitize`` does not refuse models that guess: for tests of training whose model has learnt nothing."""
    monkeypatch.setattr(importlib.import_module("seamfast.sanitize"), "_why_it_guesses", lambda run: None)


@pytest.fixture
def tiny_data() -> CleanSet:
    """160 images of 1x8x8 uint8 pixels in 4 classes: noise, and one bright quadrant that is the class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(160) % NUM_CLASSES
    images = torch.randint(0, 80, (160, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 90
    return CleanSet(images, labels, mean=0.4, std=0.25, num_classes=NUM_CLASSES)


@pytest.fixture(scope="session")
def enlarged() -> Callable[[CleanSet, int], CleanSet]:
    """``enlarged(data, times)``: as many copies of each image, all different by a little noise."""

    def copies(data: CleanSet, times: int) -> CleanSet:
        images = data.inputs
        assert isinstance(images, torch.Tensor)
        images = images.repeat(times, 1, 1, 1)
        images += torch.randint(0, 5, images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        return CleanSet(images, data.labels.repeat(times), **data.description)

    return copies


@pytest.fixture
def noisy_data(tiny_data: CleanSet) -> CleanSet:
    """The tiny set with weaker contrast and some labels moved on: no rate is 0 or 1."""
    images = tiny_data.inputs
    assert isinstance(images, torch.Tensor)
    labels = tiny_data.labels.clone()
    labels[::9] = (labels[::9] + 1) % 4
    weak = (images.float() * 0.5 + torch.randint(0, 90, images.shape)).to(torch.uint8)
    return CleanSet(weak, labels, mean=tiny_data.mean, std=tiny_data.std, num_classes=4)


@pytest.fixture(scope="session")
def _trained() -> nn.Module:
    """Learns ``tiny_data``'s task from images of its own; a fraction of a second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, NUM_CLASSES),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            labels = torch.randint(0, NUM_CLASSES, (64,))
            images = torch.randint(0, 80, (64, 1, 8, 8)).float()
            quadrants = torch.eye(NUM_CLASSES)[labels].view(-1, 1, 2, 2)
            images += 90 * quadrants.repeat_interleave(4, 2).repeat_interleave(4, 3)
            loss = nn.functional.cross_entropy(model((images / 255 - 0.4) / 0.25), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(True)


@pytest.fixture(scope="session")
def tiny_model(_trained: nn.Module) -> Callable[[], nn.Module]:
    """Makes a fresh copy, at each call, of a small CNN that is right on ``tiny_data``."""

    def fresh() -> nn.Module:
        model = copy.deepcopy(_trained)
        model.zero_grad(set_to_none=True)
        return model

    return fresh


# The tripwire: seamfast unpickles nothing. Its reading process for pickles is another process, and not seen from here.

# Who unpickles for others, so that whoever called them is asked about.
UNPICKLERS = ("pickle", "_pickle", "torch.serialization", "numpy", "joblib", "shelve", "conftest", __name__)


class Unpickled(AssertionError):
    """seamfast's code was about to read a pickle, or to let torch do so without ``weights_only=True``."""


def _watched(read: Callable[..., Any], name: str, reached: list[str]) -> Callable[..., Any]:
    """``read``, but raising, and noting in ``reached``, where it is seamfast that asks for it."""

    @functools.wraps(read)
    def watch(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith(UNPICKLERS):
            frame = frame.f_back
        asks = frame.f_globals.get("__name__", "")
        if asks.split(".")[0] == "seamfast" and not (name == "torch.load" and kwargs.get("weights_only") is True):
            reached.append(f"{asks}:{frame.f_lineno} reaches {name}")
            raise Unpickled(reached[-1])
        return read(*args, **kwargs)

    return watch


@pytest.fixture(scope="session", autouse=True)
def _wire() -> Iterator[list[str]]:
    """Set for the whole run, before any other fixture."""
    reached: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (pickle, _pickle):
            for name in ("load", "loads"):
                patch.setattr(module, name, _watched(getattr(module, name), f"pickle.{name}", reached))
            start = _watched(module.Unpickler.__init__, "pickle.Unpickler", reached)
            patch.setattr(module, "Unpickler", type("Unpickler", (module.Unpickler,), {"__init__": start}))
        for module in (torch, torch.serialization):
            patch.setattr(module, "load", _watched(torch.serialization.load, "torch.load", reached))
        yield reached


@pytest.fixture(autouse=True)
def tripwire(_wire: list[str]) -> Iterator[list[str]]:
    """Fails the test in which seamfast reached for a pickle, even where the error was swallowed."""
    yield _wire
    found = "; ".join(_wire)
    _wire.clear()
    if found:
        pytest.fail(found, pytrace=False)
