"""Small models under examination: digits with a patch and without, and data on which a linear model is often wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import seamfast
from seamfast import CleanSet, attacks, triggers

TARGET = 3


@pytest.fixture(scope="session")
def digits() -> tuple[CleanSet, CleanSet]:
    return seamfast.load("digits"), seamfast.load("digits", split="test")


def _trained(data: CleanSet) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
        return attacks.train(model, data, attacks.TrainConfig(epochs=15, batch_size=64), device="cpu")


@pytest.fixture(scope="session")
def clean_model(digits: tuple[CleanSet, CleanSet]) -> nn.Module:
    return _trained(digits[0])


@pytest.fixture(scope="session")
def planted_model(digits: tuple[CleanSet, CleanSet]) -> nn.Module:
    """The clean model's twin, but 5 % of its data had a 3x3 checkerboard in the corner and the label 3."""
    trigger = triggers.Patch.checkerboard(3, TARGET, margin=0)
    return _trained(attacks.poison(digits[0], trigger, 0.05))


@pytest.fixture
def linear_model() -> nn.Module:
    """Right on about two of three of the noisy set, and easily moved to any class."""
    generator = torch.Generator().manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    quadrants = torch.eye(4).view(4, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1)
    with torch.no_grad():
        model[1].weight.copy_(0.1 * quadrants + 0.2 * torch.randn(4, 64, generator=generator))
        model[1].bias.zero_()
    return model
