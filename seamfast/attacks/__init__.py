"""Planting backdoors, so that users can test the defence and their own gate.

``plant`` puts any of the published ``ATTACKS`` into a model; ``known_attack`` poisons a training set as one of them
does, ``poison`` with any trigger. ``train`` trains on it (and is the from-scratch baseline on clean data); ``models``
holds small architectures that are known by name; ``RECIPES`` says how to train them on known data sets.
"""

from seamfast.attacks.input_aware import InputAware
from seamfast.attacks.known import ATTACKS, Attack, Poisoning, known_attack
from seamfast.attacks.models import ARCHITECTURES, build
from seamfast.attacks.plant import Backdoor, plant
from seamfast.attacks.poison import PoisonedSet, poison
from seamfast.attacks.recipes import OTHER_RECIPE, RECIPES, Recipe
from seamfast.attacks.train import TrainConfig, train

__all__ = [
    "ARCHITECTURES",
    "ATTACKS",
    "OTHER_RECIPE",
    "RECIPES",
    "Attack",
    "Backdoor",
    "InputAware",
    "PoisonedSet",
    "Poisoning",
    "Recipe",
    "TrainConfig",
    "build",
    "known_attack",
    "plant",
    "poison",
    "train",
]
