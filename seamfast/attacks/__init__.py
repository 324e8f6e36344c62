"""Planting backdoors, to test the defense and a gate.

``plant`` applies one of the published ``ATTACKS`` on images, ``TEXT_ATTACKS`` on text or ``TABULAR_ATTACKS`` on rows of
columns to a model; ``known_attack`` poisons a training set with one of them, ``poison`` with any trigger. ``train``
trains from scratch, on poisoned data or as the baseline on clean data; ``RECIPES``, ``TEXT_RECIPES`` and
``TABULAR_RECIPES`` are the settings for known data sets, and ``build`` makes the small architectures that they name.
"""

from seamfast.attacks.attack import Attack, Poisoning
from seamfast.attacks.image.input_aware import InputAware
from seamfast.attacks.image.known import ATTACKS
from seamfast.attacks.known import known_attack
from seamfast.attacks.plant import Backdoor, plant
from seamfast.attacks.poison import PoisonedSet, poison
from seamfast.attacks.recipes import (
    OTHER_RECIPE,
    OTHER_TABULAR_RECIPE,
    OTHER_TEXT_RECIPE,
    RECIPES,
    TABULAR_RECIPES,
    TEXT_RECIPES,
    Recipe,
    TabularRecipe,
    TextRecipe,
)
from seamfast.attacks.tabular.known import TABULAR_ATTACKS
from seamfast.attacks.text.known import TEXT_ATTACKS
from seamfast.attacks.train import TrainConfig, train
from seamfast.models.architectures import ARCHITECTURES, build
from seamfast.models.text_architectures import train_tokenizer

__all__ = [
    "ARCHITECTURES",
    "ATTACKS",
    "OTHER_RECIPE",
    "OTHER_TABULAR_RECIPE",
    "OTHER_TEXT_RECIPE",
    "RECIPES",
    "TABULAR_ATTACKS",
    "TABULAR_RECIPES",
    "TEXT_ATTACKS",
    "TEXT_RECIPES",
    "Attack",
    "Backdoor",
    "InputAware",
    "PoisonedSet",
    "Poisoning",
    "Recipe",
    "TabularRecipe",
    "TextRecipe",
    "TrainConfig",
    "build",
    "known_attack",
    "plant",
    "poison",
    "train",
    "train_tokenizer",
]
