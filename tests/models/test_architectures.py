"""The architectures that are known by name."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seamfast.attacks import build
from seamfast.errors import InputError
from seamfast.models.architectures import IMAGE_ARCHITECTURES


@pytest.mark.parametrize("name", sorted(set(IMAGE_ARCHITECTURES) - {"resnet18"}))
@pytest.mark.parametrize("size", [8, 9, 28, 31, 32, 64])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 10)])
def test_images_in_logits_out(name: str, size: int, channels: int, classes: int) -> None:
    model = build(name, num_classes=classes, in_channels=channels, image_size=size)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())  # no layer is left out


def count(name: str) -> int:
    return sum(p.numel() for p in build(name, num_classes=10, in_channels=3, image_size=32).parameters())


def test_the_number_of_parameters() -> None:
    assert count("resnet18") == 11_173_962  # the published CIFAR ResNet-18
    assert count("narrow_resnet18") == pytest.approx(count("resnet18") / 16, rel=0.01)
    by_hand = (3 * 9 + 1) * 16 + (16 * 9 + 1) * 32 + (32 * 64 + 1) * 64 + 65 * 10
    assert count("small_cnn") == by_hand
    convolutions = sum((n_in * 9 + 1) * n_out for n_in, n_out in pairwise((3, 16, 16, 32, 32, 64, 64)))
    assert count("small_vgg") == convolutions + (64 * 4 * 4 + 1) * 128 + 129 * 10
    w = 64
    block = 4 * w + (w + 1) * 3 * w + (w + 1) * w + (w + 1) * 2 * w + (2 * w + 1) * w
    assert count("small_vit") == (3 * 4 * 4 + 1) * w + w + (8 * 8 + 1) * w + 4 * block + 2 * w + (w + 1) * 10
    batch_norms = 2 * sum((16, 16, 32, 32, 64, 64))
    convolutions = sum((n_in * 9 + 1) * n_out for n_in, n_out in pairwise((3, 16, 16, 32, 32, 64, 64)))
    assert count("small_vgg_bn") == convolutions + batch_norms + (64 * 4 * 4 + 1) * 10
    convolutions = sum(9 * n_in * n_out for n_in, n_out in pairwise((3, *5 * [16], *4 * [32], *4 * [64])))
    batch_norms = 2 * (4 * 16 + 16 + 3 * 32 + 32 + 3 * 64 + 64)
    assert count("wrn_16_1") == convolutions + 16 * 32 + 32 * 64 + batch_norms + 65 * 10
    convolutions = sum(9 * n_in * n_out for n_in, n_out in pairwise((3, *7 * [16], *6 * [32], *6 * [64])))
    batch_norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)  # with those of the two shortcuts
    assert count("resnet20") == convolutions + 16 * 32 + 32 * 64 + batch_norms + 65 * 10
    stages = sum(2 * (26 * w + 2 * w + (w + 1) * 4 * w + (4 * w + 1) * w) for w in (48, 96))
    joints = (3 * 4 * 4 + 1) * 48 + 2 * 48 + 2 * 48 + (48 * 4 + 1) * 96 + 2 * 96
    assert count("small_convnext") == stages + joints + 97 * 10


def test_the_whole_resnet18_runs() -> None:
    model = build("resnet18", num_classes=7, in_channels=1, image_size=8).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 8, 8)).shape == (1, 7)


def test_which_have_batch_norm() -> None:
    for name in IMAGE_ARCHITECTURES:
        model = build(name, num_classes=2, in_channels=1, image_size=8)
        has = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert has is (name in ("narrow_resnet18", "resnet18", "resnet20", "wrn_16_1", "small_vgg_bn"))


@pytest.mark.parametrize(("size", "n_patches"), [(8, 64), (28, 49), (32, 64), (31, 49)])
def test_the_patches_of_the_vit(size: int, n_patches: int) -> None:
    model = build("small_vit", num_classes=2, in_channels=1, image_size=size)
    assert model.get_parameter("place").shape == (1, n_patches + 1, 64)


def test_the_vit_attends_to_all_patches() -> None:
    model = build("small_vit", num_classes=2, in_channels=1, image_size=28)
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    model(image).square().sum().backward()
    assert image.grad is not None
    assert bool((F.max_pool2d(image.grad.abs(), 4) > 0).all())


def test_attention_is_that_of_pytorch() -> None:
    """Against PyTorch's own encoder layer with the same weights."""
    block = build("small_vit", num_classes=2, in_channels=1, image_size=8).get_submodule("blocks.0")
    wanted = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    ours = block.state_dict()
    theirs = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight",
        "self_attn.out_proj.bias": "out.bias",
        **{f"linear{n}.{what}": f"feed_forward.{2 * n - 2}.{what}" for n in (1, 2) for what in ("weight", "bias")},
        **{f"norm{n}.{what}": f"norm{n}.{what}" for n in (1, 2) for what in ("weight", "bias")},
    }
    wanted.load_state_dict({name: ours[own] for name, own in theirs.items()})
    x = torch.randn(3, 5, 64)
    torch.testing.assert_close(block(x), wanted(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1", "small_convnext"])
def test_all_of_the_image_counts(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=2, in_channels=1, image_size=32).eval()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    model(image).square().sum().backward()
    assert image.grad is not None
    assert bool((F.max_pool2d(image.grad.abs(), 4) > 0).all())


@pytest.mark.parametrize(("name", "blocks", "each"), [("wrn_16_1", "blocks", 2), ("resnet20", "encoder.blocks", 3)])
def test_the_image_is_halved_at_the_second_and_third_stage(name: str, blocks: str, each: int) -> None:
    model = build(name, num_classes=2, in_channels=1, image_size=32)
    shapes = []
    for block in model.get_submodule(blocks).children():
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model(torch.rand(1, 1, 32, 32))
    assert shapes == [(16, 32, 32)] * each + [(32, 16, 16)] * each + [(64, 8, 8)] * each


def test_dropout_of_the_vgg_with_batch_norm() -> None:
    model = build("small_vgg_bn", num_classes=2, in_channels=1, image_size=32)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.3, 0.4]


def test_the_vgg_neither_shrinks_nor_blows_up_its_signal() -> None:
    """With PyTorch's own initial weights the logits of different images differ by hundredths."""
    model = build("small_vgg", num_classes=10, in_channels=3, image_size=32)
    with torch.no_grad():
        spread = float(model(torch.randn(64, 3, 32, 32)).std(0).mean())
    assert 0.1 < spread < 10


@pytest.mark.parametrize("name", sorted(set(IMAGE_ARCHITECTURES) - {"resnet18", "narrow_resnet18"}))
def test_weights_follow_the_seed_of_torch(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build(name, num_classes=3, in_channels=1, image_size=8)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("wrong", ["vgg", "", None, ["small_cnn"]])
def test_other_names_are_refused(wrong: Any) -> None:
    names = "small_cnn, narrow_resnet18, resnet18, resnet20, small_vgg, small_vit, wrn_16_1, small_vgg_bn"
    names += ", small_convnext"
    message = f"architecture is {wrong!r}; expected one of {names}, text_transformer, bilstm, text_cnn, vector_gru, mlp"
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
