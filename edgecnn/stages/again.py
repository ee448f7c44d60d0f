"""A run without a recipe: that of the model to replace, with the changes that more or other photos make."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from edgecnn.bundle.file import Bundle
from edgecnn.data import Dataset
from edgecnn.errors import BundleError
from edgecnn.recipe import Recipe, to_tables
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import ASKED, CHOICE, Run, without_folders
from edgecnn.train.settle import settle

ASKED_FOR = "asked"
"""Provenance key of a bundle: the recipe before the network was chosen, or folds voted."""

BY_NUMBER = (
    ("train", "batch_size"), ("train", "epochs"), ("train", "learning_rate"), ("train", "schedule"), ("train", "label_smoothing"),
    ("qat", "batch_size"), ("qat", "epochs"), ("stranger", "decide"),
)  # fmt: skip
"""Keys that the number of images settles if a recipe leaves them open."""


def asked_for(run: Run) -> dict[str, Any]:
    """Return the tables of the recipe that a run began with, for a bundle; empty if that is still the run's own recipe."""
    recipe = run.recipe
    if run.file(ASKED).exists():
        from edgecnn.stages.folds import asked_recipe

        recipe = asked_recipe(run)
    elif choice := run.stored(CHOICE, NetworkChoice):
        sizes = {(one.height, one.width) for one in choice.candidates}
        free = ("name",) if len(sizes) == 1 else ("name", "height", "width")  # one size was requested
        recipe = with_values(recipe, {("network", key): None for key in free})
    return to_tables(without_folders(recipe)) if recipe is not run.recipe else {}


def former_tables(bundle: Bundle, key: str = ASKED_FOR) -> dict[str, Any]:
    """Return a bundle's recipe tables, as requested if it records that, else as trained; BundleError if it records neither."""
    provenance = bundle.manifest.provenance
    try:
        return dict(provenance.get(key) or provenance["recipe"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BundleError(f"{bundle.path} does not record its recipe. Name a recipe file.") from None


def by_these_images(recipe: Recipe, bundle: Bundle, dataset: Dataset) -> tuple[Recipe, list[str]]:
    """Reopen the keys that were set for a bundle's number of images; return its recipe, and lines on what is set differently for these.

    A value counts as set this way if it is what the bundle's number of images gives.
    """
    before, tables = copy.copy(dataset), to_tables(recipe)
    sizes: Mapping[str, Any] = dict(bundle.manifest.provenance.get("data", {}).get("split_sizes", {}))
    before.labels, before.sizes = bundle.manifest.labels, {split: int(sizes.get(split, 0)) for split in dataset.sizes}
    given = {(table, key): tables.get(table, {}).get(key) for table, key in BY_NUMBER}
    opened = with_values(recipe, dict.fromkeys(BY_NUMBER))
    then, now = (to_tables(settle(opened, images)) for images in (before, dataset))
    kept = {
        place: value for place, value in given.items() if value is not None and value != then[place[0]].get(place[1])
    }
    lines = [
        f"{table}.{key}: {now[table][key]}, was {value}: {sum(dataset.sizes.values()):,} images, not {sum(before.sizes.values()):,}"
        for (table, key), value in given.items()
        if value is not None and (table, key) not in kept and value != now[table].get(key)
    ]
    return with_values(opened, kept), lines


def other_network(bundle: Bundle, run: Run) -> list[str]:
    """Return a line if photos have chosen a network or input for a run that differs from a bundle's, or an empty list."""
    old, new = bundle.manifest.input, run.info.input
    former = former_tables(bundle, "recipe").get("network", {}).get("name")
    was, now = f"{former} at {old.width}x{old.height}", f"{run.public_recipe.network.name} at {new.width}x{new.height}"
    return [] if was == now else [f"for these photos, {now} was chosen; {bundle.manifest.name} has {was}"]


def with_values(recipe: Recipe, values: Mapping[tuple[str, str], Any]) -> Recipe:
    for (table, key), value in values.items():
        recipe = dataclasses.replace(recipe, **{table: dataclasses.replace(getattr(recipe, table), **{key: value})})
    return recipe
