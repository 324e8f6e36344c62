"""Other people's attacked models: how to rebuild each, what it was fed, what to stamp, and the data to do it with.

Weights that others trained, poisoned and published, converted to safetensors, lie in ``models/`` below the data's root
(``SEAMFAST_DATA``, or ``../shared/data`` beside the repository), the data sets beside them. Nothing of it is part of
the project, so whoever asks must be ready not to find it: ``OtherModel.missing`` says what is not there. The tests and
``benches/others.py`` use these loaders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import seamfast
from seamfast import CleanSet
from seamfast.errors import DataFileError, InputError
from seamfast.triggers import Patch, SourceSpecific, Trigger

ROOT = Path(os.environ.get("SEAMFAST_DATA") or Path(__file__).parents[2] / "shared" / "data")


class SmallVGG16(nn.Module):
    """Three pairs of 3x3 convolutions with BatchNorm and ELU, each with max-pooling and dropout, and a linear layer.

    Source: the widths and the dropout rates are those of ``models.py`` in YiZeng623/I-BAU.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, dropout in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for n_in in (channels, width):
                layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class BadNet(nn.Module):
    """Two 5x5 convolutions with ReLU and average pooling, two linear layers; without the original's last softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.fc1 = nn.Sequential(nn.Linear(32 * 4 * 4, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.fc1(self.conv2(self.conv1(images)).flatten(1)))
        return logits


@dataclass(frozen=True)
class DataSet:
    """A data set that one of the models was trained on.

    Attributes:
        place: its file or folder below the root.
        num_classes: of it.
        n_train: images in the whole training set, of which less may be there.
    """

    place: str
    num_classes: int
    n_train: int


CIFAR10 = DataSet("cifar10-half.npz", 10, 50_000)
GTSRB = DataSet("gtsrb-32x32-subset.npz", 43, 39_209)
MNIST = DataSet("mnist", 10, 60_000)


@dataclass(frozen=True)
class OtherModel:
    """One of the models.

    Attributes:
        name: of its file, less ``.safetensors``.
        architecture: makes it, untrained.
        data: what it was trained on.
        mean, std: of its normalization, on the [0, 1] pixel scale.
        trigger: what the attacker stamps, and the label that it should get.
        clean_accuracy, attack_success_rate: as received, on test images, as the data's description has them.
    """

    name: str
    architecture: Callable[[], nn.Module]
    data: DataSet
    mean: float
    std: float
    trigger: Trigger
    clean_accuracy: float
    attack_success_rate: float

    def missing(self, root: Path = ROOT) -> Path | None:
        """The first of its files that is not below ``root``; ``None`` where all are."""
        return next((path for path in (self._weights(root), root / self.data.place) if not path.exists()), None)

    def load(self, root: Path = ROOT) -> nn.Module:
        """The model as received, in eval mode.

        Raises:
            DataFileError: ``badnets-mnist-target1.safetensors differs from its architecture in fc2.0.bias``
        """
        model = self.architecture()
        found, expected = load_file(self._weights(root)), model.state_dict()
        differing = [
            name
            for name in sorted({*found, *expected})
            if name not in found or name not in expected or _kind(found[name]) != _kind(expected[name])
        ]
        if differing:
            raise DataFileError(f"{self._weights(root).name} differs from its architecture in {', '.join(differing)}")
        model.load_state_dict(found)
        return model.eval()

    def read(self, split: str, root: Path = ROOT) -> CleanSet:
        """The ``"train"`` or ``"test"`` images of its data set that are there, normalized as the model takes them."""
        options: dict[str, Any] = {"split": split, "mean": self.mean, "std": self.std}
        if self.data is MNIST:
            return seamfast.load("mnist", root=root / self.data.place, **options)
        return seamfast.load(root / self.data.place, num_classes=self.data.num_classes, **options)

    def clean_part(self, train_set: CleanSet, budget: float, seed: int) -> CleanSet:
        """A clean budget out of ``train_set``, drawn by class.

        Args:
            train_set: what ``read("train")`` returns.
            budget: below 1, a share of the whole training set, also where only some of it is there; from 1 on, images a
                class.
            seed: of the draw.

        Raises:
            InputError: ``a budget of 0.5 is 25000 images; 20000 are there``.
        """
        labels = train_set.labels
        if budget < 1:
            wanted, there = round(budget * self.data.n_train), len(train_set)
            if wanted > there:
                raise InputError(f"a budget of {budget:g} is {wanted} images; {there} are there")
            return train_set.draw(wanted / there, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(train_set), generator=generator)
        chosen = [shuffled[labels[shuffled] == label][: int(budget)] for label in range(self.data.num_classes)]
        if min(map(len, chosen)) < budget:
            raise InputError(f"a budget of {budget:g} images a class; {min(map(len, chosen))} of one class are there")
        return train_set.subset(torch.cat(chosen).sort().values)

    def _weights(self, root: Path) -> Path:
        return root / "models" / f"{self.name}.safetensors"


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


_SQUARE_4 = Patch.square(4, target=8, margin=1, name="white-4x4")  # rows and columns 27 to 30 of 32
_TO_1 = Patch.square(5, target=1, margin=0, name="white-5x5")
_4_TO_7 = Patch.square(5, target=SourceSpecific(4, 7), margin=0, name="white-5x5")  # type: ignore[arg-type]

OTHER_MODELS = {
    model.name: model
    for model in (
        OtherModel("badnets-mnist-target1", BadNet, MNIST, 0.5, 0.5, _TO_1, 0.981, 0.999),
        OtherModel("badnets-mnist-source4-target7", BadNet, MNIST, 0.5, 0.5, _4_TO_7, 0.986, 0.996),
        OtherModel("ibau-cifar10-badnets-target8", lambda: SmallVGG16(10), CIFAR10, 0.0, 1.0, _SQUARE_4, 0.842, 0.978),
        OtherModel("ibau-gtsrb-badnets-target8", lambda: SmallVGG16(43), GTSRB, 0.0, 1.0, _SQUARE_4, 0.978, 0.991),
    )
}
"""By name, the quick ones first."""
