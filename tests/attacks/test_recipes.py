"""The recipes by data set."""

from __future__ import annotations

import pytest

from seamfast.attacks import (
    OTHER_RECIPE,
    OTHER_TABULAR_RECIPE,
    OTHER_TEXT_RECIPE,
    RECIPES,
    TABULAR_RECIPES,
    TEXT_RECIPES,
    TabularRecipe,
    TextRecipe,
)
from seamfast.models.architectures import IMAGE_ARCHITECTURES
from seamfast.models.folder import ModelDescription, TabularDescription, TextDescription


def test_the_data_sets_that_have_one() -> None:
    assert list(RECIPES) == ["digits", "mnist", "mnist-5k", "fashion-mnist", "cifar10", "gtsrb"]
    assert {recipe.architecture for recipe in (*RECIPES.values(), OTHER_RECIPE)} <= set(IMAGE_ARCHITECTURES)
    assert list(TEXT_RECIPES) == ["sst2", "ag-news", "trec"]
    assert list(TABULAR_RECIPES) == ["breast-cancer", "digits-table"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_they_describe_a_model(name: str) -> None:
    recipe, channels = RECIPES[name], 3 if name in ("cifar10", "gtsrb") else 1
    ModelDescription(recipe.architecture, 10, channels, 32, recipe.mean, recipe.std).build()


@pytest.mark.parametrize("recipe", [*TEXT_RECIPES.values(), OTHER_TEXT_RECIPE])
def test_they_describe_a_model_of_text(recipe: TextRecipe) -> None:
    TextDescription(recipe.architecture, 6, recipe.vocab_size, recipe.max_length).build()


@pytest.mark.parametrize("recipe", [*TABULAR_RECIPES.values(), OTHER_TABULAR_RECIPE])
def test_they_describe_a_model_of_tables(recipe: TabularRecipe) -> None:
    TabularDescription(recipe.architecture, 6, 30).build()
