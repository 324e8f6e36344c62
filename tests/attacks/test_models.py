"""The architectures that are known by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from seamfast.attacks import ARCHITECTURES, build
from seamfast.errors import InputError


@pytest.mark.parametrize("name", ["small_cnn", "narrow_resnet18"])
@pytest.mark.parametrize("size", [8, 9, 28, 31, 32, 64])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 10)])
def test_images_in_logits_out(name: str, size: int, channels: int, classes: int) -> None:
    model = build(name, num_classes=classes, in_channels=channels, image_size=size)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # no layer is left out


def count(name: str) -> int:
    return sum(p.numel() for p in build(name, num_classes=10, in_channels=3, image_size=32).parameters())


def test_the_number_of_parameters() -> None:
    assert count("resnet18") == 11_173_962  # the published CIFAR ResNet-18
    assert count("narrow_resnet18") == pytest.approx(count("resnet18") / 16, rel=0.01)
    by_hand = (3 * 9 + 1) * 16 + (16 * 9 + 1) * 32 + (32 * 64 + 1) * 64 + 65 * 10
    assert count("small_cnn") == by_hand


def test_the_whole_resnet18_runs() -> None:
    model = build("resnet18", num_classes=7, in_channels=1, image_size=8).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 8, 8)).shape == (1, 7)


def test_which_have_batch_norm() -> None:
    for name in ARCHITECTURES:
        model = build(name, num_classes=2, in_channels=1, image_size=8)
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) is (name != "small_cnn")


def test_weights_follow_the_seed_of_torch() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build("small_cnn", num_classes=3, in_channels=1, image_size=8)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("wrong", ["vgg", "", None, ["small_cnn"]])
def test_other_names_are_refused(wrong: Any) -> None:
    message = f"architecture is {wrong!r}; expected one of small_cnn, narrow_resnet18, resnet18"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        build(wrong, num_classes=10, in_channels=3, image_size=32)


@pytest.mark.parametrize(
    ("what", "wrong", "least"),
    [
        ("num_classes", 1, 2),
        ("num_classes", 10.0, 2),
        ("num_classes", True, 2),
        ("in_channels", 0, 1),
        ("in_channels", "3", 1),
        ("image_size", 7, 8),
        ("image_size", (32, 32), 8),
        ("image_size", 10**7, 8),
    ],
)
def test_sizes_out_of_range_are_refused(what: str, wrong: Any, least: int) -> None:
    sizes: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32, what: wrong}
    with pytest.raises(InputError, match=f"^{re.escape(f'{what} is {wrong!r}; expected an integer from {least}')}$"):
        build("small_cnn", **sizes)
