"""Planting backdoors, to test the defense and a gate.

``plant`` applies one of the published ``ATTACKS`` to a model; ``known_attack`` poisons a training set with one of them,
``poison`` with any trigger. ``TABULAR_ATTACKS`` and ``tabular_attack`` are the same for rows of columns. ``train``
trains from scratch, on poisoned data or as the baseline on clean data; ``RECIPES`` are the settings for known data
sets, and ``build`` makes the small architectures that they name.
"""

from seamfast.attacks.image.input_aware import InputAware
from seamfast.attacks.image.known import ATTACKS, Attack, Poisoning, known_attack
from seamfast.attacks.plant import Backdoor, plant
from seamfast.attacks.poison import PoisonedSet, poison
from seamfast.attacks.recipes import OTHER_RECIPE, RECIPES, Recipe
from seamfast.attacks.tabular.known import TABULAR_ATTACKS, TabularAttack, tabular_attack
from seamfast.attacks.train import TrainConfig, train
from seamfast.models.architectures import ARCHITECTURES, build

__all__ = [
    "ARCHITECTURES",
    "ATTACKS",
    "OTHER_RECIPE",
    "RECIPES",
    "TABULAR_ATTACKS",
    "Attack",
    "Backdoor",
    "InputAware",
    "PoisonedSet",
    "Poisoning",
    "Recipe",
    "TabularAttack",
    "TrainConfig",
    "build",
    "known_attack",
    "plant",
    "poison",
    "tabular_attack",
    "train",
]
