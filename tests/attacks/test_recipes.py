"""The recipes by data set."""

from __future__ import annotations

import pytest

from seamfast.attacks import ARCHITECTURES, OTHER_RECIPE, RECIPES
from seamfast.models.folder import ModelDescription


def test_the_data_sets_that_have_one() -> None:
    assert list(RECIPES) == ["digits", "mnist", "mnist-5k", "fashion-mnist", "cifar10", "gtsrb"]
    assert {recipe.architecture for recipe in RECIPES.values()} | {OTHER_RECIPE.architecture} <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_they_describe_a_model(name: str) -> None:
    recipe, channels = RECIPES[name], 3 if name in ("cifar10", "gtsrb") else 1
    ModelDescription(recipe.architecture, 10, channels, 32, recipe.mean, recipe.std).build()
