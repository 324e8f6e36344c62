"""Planting backdoors, so that users can test the defence and their own gate.

``poison`` puts a trigger into training data; ``train`` trains on it (and is the from-scratch baseline on clean data);
``models`` holds small architectures that are known by name; ``RECIPES`` says how to train them on known data sets.
"""

from seamfast.attacks.models import ARCHITECTURES, build
from seamfast.attacks.poison import PoisonedSet, poison
from seamfast.attacks.recipes import OTHER_RECIPE, RECIPES, Recipe
from seamfast.attacks.train import TrainConfig, train

__all__ = [
    "ARCHITECTURES",
    "OTHER_RECIPE",
    "RECIPES",
    "PoisonedSet",
    "Recipe",
    "TrainConfig",
    "build",
    "poison",
    "train",
]
