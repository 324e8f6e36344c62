"""What attackers start from: a clean model with its data, by name and seed; and what they hand over.

Models are those of ``seamfast.attacks.build`` and the nets of this file, trained in float32 on one thread, so that a
seed gives the same model again on one machine. A trained model is kept as ``<cache>/<name>.safetensors``, where the
name holds a digest of all that the training depends on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benches import zoo
from seamfast import CleanSet, attacks
from seamfast.attacks import TrainConfig
from seamfast.engine.model import digest

CACHE = zoo.ROOT / "benches" / ".cache" / "adaptive"

Stamp = Callable[[Tensor], Tensor]
"""Stored samples, such as uint8 pixels, to the same with the trigger on them."""


@dataclass(frozen=True)
class Host:
    """A clean model and its data.

    Attributes:
        name: of the data and of the architecture.
        model: in eval mode; attackers copy it.
        train_set, test_set: attackers use the first only.
        cache: folder of trained models.
        seed: of the model.
    """

    name: str
    model: nn.Module
    train_set: CleanSet
    test_set: CleanSet
    cache: Path
    seed: int

    def some(self, n: int, seed: int = 0) -> CleanSet:
        """``n`` training samples, or all if there are fewer."""
        order = torch.randperm(len(self.train_set), generator=torch.Generator().manual_seed(seed))
        return self.train_set.subset(order[:n])

    def trained(self, what: str, settings: dict[str, Any], model: nn.Module, train: Callable[[], None]) -> nn.Module:
        """``model`` after ``train()``, which trains it in place; from the cache if it was trained before.

        Args:
            what: the attack.
            settings: all that the result depends on, besides this host and ``model`` as it is.
        """
        settings = settings | {"n": len(self.train_set), "from": digest(model), "clean_model": digest(self.model)}
        return cached(self.cache, f"{self.name}-{self.seed}-{what}", settings, model, train)


@dataclass(frozen=True)
class Attacked:
    """A model with a backdoor.

    Attributes:
        model: in eval mode.
        stamp: puts the trigger on stored samples.
        target: the class that the attacker wants.
        description: what was done, in one line.
    """

    model: nn.Module
    stamp: Stamp
    target: int
    description: str


Attack = Callable[[Host, int], Attacked]
"""``(host, seed)``: the seed is of the pattern, of its place and of all else that is drawn."""


def samples(data: CleanSet) -> Tensor:
    """All stored samples: uint8 pixels of images, else the inputs."""
    if data.is_pixels:
        return data.pixels(torch.arange(len(data)))
    assert isinstance(data.inputs, Tensor)
    return data.inputs


def model_inputs(data: CleanSet, stored: Tensor) -> Tensor:
    """Stored samples, as stamped or not, in the form that the model takes."""
    return data.normalize(stored) if data.is_pixels else stored


def cached(folder: Path, name: str, settings: dict[str, Any], model: nn.Module, train: Callable[[], None]) -> nn.Module:
    """``model`` with the weights of a file, or after ``train()``, in eval mode."""
    settings_digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
    path = folder / f"{name}-{settings_digest}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train()
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, temporary)
        os.replace(temporary, path)
    return model.eval()


@functools.cache
def host(data: str, architecture: str, seed: int, root: Path = zoo.DATA_ROOT, cache: Path = CACHE) -> Host:
    """The clean model of this architecture; trained if it is not in the cache."""
    train_set, test_set = (zoo.read(data, root, split) for split in ("train", "test"))
    return host_of(f"{data}-{architecture}", architecture, train_set, test_set, TRAINING[data], seed, cache)


def host_of(
    name: str, architecture: str, train_set: CleanSet, test_set: CleanSet, config: TrainConfig, seed: int, cache: Path
) -> Host:
    """As ``host``, of any data."""
    channels, side, _ = train_set.image_shape
    build = NETS.get(architecture) or functools.partial(attacks.build, architecture)
    torch.manual_seed(seed)
    model = build(num_classes=train_set.num_classes or 10, in_channels=channels, image_size=side)
    config = replace(config, rate=_SLOWER.get(architecture, 1.0) * config.rate)

    def train() -> None:
        attacks.train(model, train_set, config, seed=seed, progress=False)

    settings = {"training": asdict(config), "n": len(train_set)}
    return Host(name, cached(cache, f"{name}-{seed}", settings, model, train), train_set, test_set, cache, seed)


TRAINING = {
    "digits": TrainConfig(epochs=20, batch_size=64, rate=0.1),
    "mnist": TrainConfig(epochs=2),
    "gtsrb": TrainConfig(epochs=12, rate=0.03),
    "cifar10": TrainConfig(epochs=8, rate=0.03, crop_pad=2, flip=True),
}


class Root(nn.Module):
    """``sqrt(relu(x) + 0.01) - 0.1``: 0 up to 0, and steep behind."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x) + 0.01).sqrt() - 0.1


class Residual(nn.Module):
    """``x + conv2(relu(conv1(x)))``, so that a channel may pass by both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(torch.relu(self.conv1(x)))
        return out


class Gated(nn.Module):
    """``value(x) * relu(gate(x))``: the unit of ReGLU.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.value(x) * torch.relu(self.gate(x))
        return out


def _cnn(activation: Callable[[], nn.Module], *, norm: bool = False) -> Callable[..., nn.Sequential]:
    """``small_cnn`` with another activation, and with BatchNorm after its convolutions."""

    def build(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for n_in, n_out in ((in_channels, 16), (16, 32)):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), *([nn.BatchNorm2d(n_out)] if norm else [])]
            layers += [activation(), nn.MaxPool2d(2)]
        hidden = [nn.Linear(32 * (image_size // 4) ** 2, 64), activation()]
        return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(64, num_classes))

    return build


def _residual_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    n_features = 16 * (image_size // 4) ** 2
    stem = [nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    rest = [Residual(16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(n_features, 64), nn.ReLU()]
    return nn.Sequential(*stem, *rest, nn.Linear(64, num_classes))


def _gated_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in ((in_channels, 16), (16, 32)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), Gated(32 * (image_size // 4) ** 2, 32), nn.Linear(32, num_classes))


def _relu6_mlp(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * image_size**2, 64), nn.ReLU6(), nn.Linear(64, num_classes)
    )


NETS: dict[str, Callable[..., nn.Module]] = {
    "gelu_cnn": _cnn(nn.GELU),
    "silu_cnn": _cnn(nn.SiLU),
    "sqrt_cnn": _cnn(Root),
    "relu6_cnn": _cnn(nn.ReLU6),
    "relu6_mlp": _relu6_mlp,
    "bn_cnn": _cnn(nn.ReLU, norm=True),
    "residual_cnn": _residual_cnn,
    "gated_cnn": _gated_cnn,
}
"""Architectures of this file, built like those of ``seamfast.attacks.build``."""
_SLOWER = {"sqrt_cnn": 0.5, "gated_cnn": 0.2}
"""Factors on the learning rate, above which these do not train."""
