"""What all tests share: one thread, a seeded torch, a small set of images and a model that has learnt it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
