"""Small architectures, known by name: for planting backdoors, for the command line and for benches."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.errors import InputError


def small_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Two 3x3 convolutions with max-pooling and two linear layers, LeNet-like, without BatchNorm; from 8 px."""
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of two basic blocks.

    Args:
        num_classes: logits.
        in_channels: of the images.
        width: channels of the first stage; 64 is the usual one, 16 the narrow one.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the CIFAR stem.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage in range(4):
            blocks.append(_BasicBlock(widths[stage], widths[stage + 1], stride=1 if stage == 0 else 2))
            blocks.append(_BasicBlock(widths[stage + 1], widths[stage + 1], stride=1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def resnet18(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-18 with 64 channels in the first stage; images of any size from 8 px."""
    return ResNet18(num_classes, in_channels, width=64)


def narrow_resnet18(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-18 with 16 channels in the first stage: a sixteenth of the parameters and of the work."""
    return ResNet18(num_classes, in_channels, width=16)


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "small_cnn": small_cnn,
    "narrow_resnet18": narrow_resnet18,
    "resnet18": resnet18,
}


def build(name: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """``ARCHITECTURES[name](...)`` with untrained weights.

    Raises:
        InputError: e.g. ``architecture is 'vgg'; expected one of small_cnn, narrow_resnet18, resnet18``.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    for what, value, least in (
        ("num_classes", num_classes, 2),
        ("in_channels", in_channels, 1),
        ("image_size", image_size, 8),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            raise InputError(f"{what} is {value!r}; expected an integer from {least}")
    return ARCHITECTURES[name](num_classes, in_channels, image_size)
