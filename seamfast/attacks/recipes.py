"""Training settings for the data sets known by name, as ``seamfast plant``, the demo and the benches use them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seamfast.attacks.train import TrainConfig


@dataclass(frozen=True)
class TextRecipe:
    """An architecture, its training, and the most tokens of its tokenizer and of a text."""

    architecture: str
    training: TrainConfig
    vocab_size: int = 8000
    max_length: int = 128


@dataclass(frozen=True)
class TabularRecipe:
    """An architecture and its training."""

    architecture: str
    training: TrainConfig


@dataclass(frozen=True)
class Recipe:
    """An architecture, its training, and the normalization of its inputs on the [0, 1] pixel scale."""

    architecture: str
    training: TrainConfig
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


RECIPES: dict[str, Recipe] = {
    "digits": Recipe("small_cnn", TrainConfig(epochs=40, batch_size=64)),
    "mnist": Recipe("small_cnn", TrainConfig(epochs=6)),
    "mnist-5k": Recipe("small_cnn", TrainConfig(epochs=30, batch_size=64), mean=(0.1307,), std=(0.3081,)),
    "fashion-mnist": Recipe("small_cnn", TrainConfig(epochs=8)),
    "cifar10": Recipe(
        "narrow_resnet18",
        TrainConfig(epochs=20, rate=0.1, crop_pad=4, flip=True),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
    ),
    "gtsrb": Recipe("small_vgg", TrainConfig(epochs=20, rate=0.03)),
}
"""By data set. The statistics are the usual ones, of the training sets of CIFAR-10 and of MNIST."""

OTHER_RECIPE = Recipe("small_cnn", TrainConfig(epochs=10))
"""For all other data sets."""

TABULAR_RECIPES: dict[str, TabularRecipe] = {
    "breast-cancer": TabularRecipe("mlp", TrainConfig(epochs=200, batch_size=64, rate=0.03)),
    "digits-table": TabularRecipe("mlp", TrainConfig(epochs=66, batch_size=64, rate=0.03)),
}
"""By data set of tables."""

OTHER_TABULAR_RECIPE = TabularRecipe("mlp", TrainConfig(epochs=60, batch_size=64, rate=0.03))
"""For all other tables."""

_FOR_TEXT = TrainConfig(optimizer="adam", epochs=4, batch_size=64, rate=1e-3)

TEXT_RECIPES: dict[str, TextRecipe] = {
    "sst2": TextRecipe("text_cnn", _FOR_TEXT),
    "ag-news": TextRecipe("text_cnn", replace(_FOR_TEXT, epochs=6)),
    "trec": TextRecipe("text_cnn", replace(_FOR_TEXT, epochs=10), max_length=64),
}
"""By data set of text; chosen on development data, those of TREC on a part of its training set."""

OTHER_TEXT_RECIPE = TextRecipe("text_cnn", replace(_FOR_TEXT, epochs=10))
"""For all other texts."""
