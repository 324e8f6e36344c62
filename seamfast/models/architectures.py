"""Small architectures, known by name: for planting backdoors, for the command line and for benches."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seamfast.errors import InputError
from seamfast.models.tabular_architectures import TABULAR_ARCHITECTURES
from seamfast.models.text_architectures import TEXT_ARCHITECTURES, VECTOR_ARCHITECTURES


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


def small_vgg(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Three pairs of 3x3 convolutions, each with max-pooling, and two linear layers: VGG-like, without BatchNorm; from
    8 px.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", arXiv:1409.1556; initial weights, He et al.,
    arXiv:1502.01852.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for width in (16, 32, 64):
        for n_in in (channels, width):
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    side = image_size // 8
    layers += [nn.Flatten(), nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Linear(128, num_classes)]
    for layer in layers:  # PyTorch's own initial weights shrink the signal at every layer
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class ResNet20Encoder(nn.Module):
    """ResNet-20 without its head: a 3x3 stem without pooling, three stages of three basic blocks, the mean over places.

    The embeddings have 64 numbers, none below 0.

    Args:
        in_channels: of the images.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Where the shape changes,
    the shortcut is a 1x1 convolution with BatchNorm (option B), not a padding with zeros (option A).
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            for _ in range(3):
                blocks.append(_BasicBlock(channels, width, stride=1 if width == channels else 2))
                channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.blocks(F.relu(self.norm(self.stem(images)))).mean((2, 3))
        return embeddings


class ResNet20(nn.Module):
    """``head(encoder(images))`` with a ``ResNet20Encoder``: the layout of a ``seamfast.models.LinearProbe``."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.encoder = ResNet20Encoder(in_channels)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


def resnet20(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-20: three stages of three blocks, 16, 32 and 64 channels; images of any size from 8 px."""
    return ResNet20(num_classes, in_channels)


class VisionTransformer(nn.Module):
    """A ViT for small images: square patches, a class token, learned positions, norm first, no dropout.

    Patches have a seventh of the edge, rounded down: 7x7 patches on 28 pixels, 8x8 on 32 and on 8. What they leave over
    at the right and at the bottom is not seen.

    Args:
        num_classes: logits.
        in_channels, image_size: of the images.
        width, depth, heads: of the encoder; its feed-forward layers are twice as wide.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929.
    """

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, width: int = 64, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        patch = max(image_size // 7, 1)
        side = image_size // patch
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, side * side + 1, width).mul_(0.02))
        self.blocks = nn.Sequential(*(_EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(attended)
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


def small_vit(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A ViT of four blocks, 64 wide: 7x7 patches on 28 pixels, 8x8 on 32; without BatchNorm."""
    return VisionTransformer(num_classes, in_channels, image_size)


class WideResNet(nn.Module):
    """A Wide ResNet for small images: BatchNorm first, a 3x3 stem without pooling, three stages.

    Args:
        num_classes: logits.
        in_channels: of the images.
        depth: of the convolutions, ``6 * n + 4`` for ``n`` blocks a stage.
        widen: channels of the three stages, in multiples of 16, 32 and 64.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv:1605.07146.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, depth: int = 16, widen: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range((depth - 4) // 6):
                blocks.append(_PreActivationBlock(channels, width, stride=2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class _PreActivationBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.shortcut = None if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def wrn_16_1(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Wide ResNet 16-1: three stages of two blocks, 16, 32 and 64 channels; images of any size from 8 px."""
    return WideResNet(num_classes, in_channels)


def small_vgg_bn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Three pairs of 3x3 convolutions with BatchNorm and ELU, max-pooling and dropout after each pair, and one linear
    layer; from 8 px.

    Source: the layout of the models of https://github.com/YiZeng623/I-BAU, with 16, 32 and 64 channels instead of 32,
    64 and 128.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for width, dropout in ((16, 0.2), (32, 0.3), (64, 0.4)):
        for n_in in (channels, width):
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (image_size // 8) ** 2, num_classes))


class ConvNeXt(nn.Module):
    """A ConvNeXt for small images: square patches, two stages of two blocks, without BatchNorm and without layer scale.

    Args:
        num_classes: logits.
        in_channels: of the images.
        patch: edge of the patches, in pixels.
        width: channels of the first stage; the second has twice as many and half the edge.

    Source: Liu et al., "A ConvNet for the 2020s", arXiv:2201.03545. There are fewer stages here, and 5x5 depthwise
    convolutions instead of 7x7, since the images are small.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, patch: int = 4, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.norm = _ChannelNorm(width)
        self.blocks = nn.Sequential(
            _ConvNeXtBlock(width),
            _ConvNeXtBlock(width),
            _ChannelNorm(width),
            nn.Conv2d(width, 2 * width, 2, 2),
            _ConvNeXtBlock(2 * width),
            _ConvNeXtBlock(2 * width),
        )
        self.last_norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.norm(self.embed(images)))
        logits: Tensor = self.head(self.last_norm(features.mean((2, 3))))
        return logits


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        by_place = self.depthwise(x).permute(0, 2, 3, 1)
        out: Tensor = x + self.feed_forward(self.norm(by_place)).permute(0, 3, 1, 2)
        return out


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of ``(N, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def small_convnext(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A ConvNeXt of four blocks, 48 and 96 wide, on 4x4 patches; from 8 px; without BatchNorm."""
    return ConvNeXt(num_classes, in_channels)


IMAGE_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "narrow_resnet18": narrow_resnet18,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "small_vgg": small_vgg,
    "small_vit": small_vit,
    "wrn_16_1": wrn_16_1,
    "small_vgg_bn": small_vgg_bn,
    "small_convnext": small_convnext,
}
"""Of images, by name; all take ``(num_classes, in_channels, image_size)``."""

ARCHITECTURES = {**IMAGE_ARCHITECTURES, **TEXT_ARCHITECTURES, **VECTOR_ARCHITECTURES, **TABULAR_ARCHITECTURES}
"""All by name; ``sizes_of`` says what each takes."""

_LEAST = {
    "num_classes": 2,
    "in_channels": 1,
    "image_size": 8,
    "vocab_size": 8,
    "max_length": 4,
    "pad": 0,
    "n_features": 1,
    "n_columns": 1,
}


def sizes_of(name: str) -> dict[str, int]:
    """The arguments of ``ARCHITECTURES[name]``, each with its least value."""
    return {argument: _LEAST[argument] for argument in inspect.signature(ARCHITECTURES[name]).parameters}


def build(name: str, *, num_classes: int, **sizes: int) -> nn.Module:
    """``ARCHITECTURES[name](...)`` with untrained weights.

    Args:
        name: one of ``ARCHITECTURES``.
        num_classes: logits, at least 2.
        sizes: of an architecture for images, ``in_channels`` and ``image_size``, in pixels from 8; for text,
            ``vocab_size`` from 8, ``max_length``, in tokens from 4, and ``pad``, a token id, 0 by default; for vectors,
            ``n_features``; for tables, ``n_columns``.

    Raises:
        InputError: e.g. ``architecture is 'vgg'; expected one of small_cnn, narrow_resnet18, ...``, or
            ``sizes are vocab_size; expected in_channels, image_size for 'small_cnn'``.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"architecture is {name!r}; expected one of {', '.join(ARCHITECTURES)}")
    least = sizes_of(name)
    given = {"num_classes": num_classes, **({"pad": 0} if "pad" in least else {}), **sizes}
    if set(given) != set(least):
        wanted = ", ".join(size for size in least if size != "num_classes")
        raise InputError(f"sizes are {', '.join(sizes) or 'none'}; expected {wanted} for {name!r}")
    for what, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least[what] <= value <= 1_000_000:
            raise InputError(f"{what} is {value!r}; expected an integer from {least[what]}")
    if "pad" in given and given["pad"] >= given["vocab_size"]:
        raise InputError(f"pad is {given['pad']}; expected a token id in [0, {given['vocab_size']})")
    return ARCHITECTURES[name](**given)
