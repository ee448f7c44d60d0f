"""Recipes: everything that decides a model, as TOML whose tables are the dataclasses of `recipe.py`."""

from edgecnn.recipe.nested import merge, nest
from edgecnn.recipe.read import (
    build_recipe,
    load_recipe,
    parse_overrides,
    source_kind,
    to_tables,
    to_toml,
    with_source_defaults,
)
from edgecnn.recipe.recipe import (
    ALWAYS,
    IF_BETTER,
    INPUT_RANGES,
    RANDOM,
    DataRecipe,
    NetworkRecipe,
    QatRecipe,
    Recipe,
    TrainRecipe,
)

__all__ = [
    "ALWAYS",
    "IF_BETTER",
    "INPUT_RANGES",
    "RANDOM",
    "DataRecipe",
    "NetworkRecipe",
    "QatRecipe",
    "Recipe",
    "TrainRecipe",
    "build_recipe",
    "load_recipe",
    "merge",
    "nest",
    "parse_overrides",
    "source_kind",
    "to_tables",
    "to_toml",
    "with_source_defaults",
]
