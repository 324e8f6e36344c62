"""Building without memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from seamfast.models.architectures import build
from seamfast.models.meta import without_memory

NAMES = ("small_cnn", "resnet18", "small_vit", "small_convnext", "wrn_16_1")


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_dtypes_are_those_of_the_module(name: str) -> None:
    with without_memory():
        empty = build(name, num_classes=10, in_channels=3, image_size=32)
    wanted = build(name, num_classes=10, in_channels=3, image_size=32).state_dict()
    assert {key: (t.shape, t.dtype) for key, t in empty.state_dict().items()} == {
        key: (t.shape, t.dtype) for key, t in wanted.items()
    }
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}


def test_normal_numbers_are_left_out_within_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    with without_memory():
        layer = nn.Embedding(3, 2)
        assert nn.init.normal_(tensor=layer.weight, std=2.0) is layer.weight
        assert torch.randn(2, 3, dtype=torch.float64, generator=generator).shape == (2, 3)
    assert torch.randn(100).std() > 0.5
    assert nn.init.normal_(torch.zeros(100)).std() > 0.5


def test_the_compiler_is_not_imported() -> None:
    code = (
        "import sys; from seamfast.models.folder import ModelDescription, TextDescription\n"
        "from seamfast.models.meta import without_memory\n"
        "with without_memory():\n"
        "    for name in ('small_vit', 'small_convnext', 'resnet18'): ModelDescription(name, 10, 3, 32).build()\n"
        "    for name in ('text_cnn', 'bilstm', 'text_transformer'):\n"
        "        TextDescription(name, 2, 50, max_length=8).build()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
