"""Recipes of earlier versions: runs and bundles may hold them; in a user's recipe, the error shows the new form."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgecnn.errors import RecipeError
from edgecnn.recipe.nested import nest
from edgecnn.recipe.recipe import RANDOM, Recipe
from edgecnn.tables import leaves, shown

KEYS = dict(leaves(Recipe))

MOVED = {
    "train.teacher": "teacher.run",
    "train.teacher_temperature": "teacher.temperature",
    "train.teacher_weight": "teacher.weight",
    "train.teacher_views": "teacher.views",
}
GONE = ("train.warm_up", "qat.calibration_batches", "qat.distillation_temperature", "qat.granularity", "qat.patience")
"""Keys that have become constants."""

RENAMED: Mapping[tuple[str, Any], Any] = {
    ("init.source", "none"): RANDOM,
    ("stranger.decide", "yes"): True,
    ("stranger.decide", "no"): False,
}
"""Values that are written differently now."""


def known(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a recipe's tables, of any version, to today's form; keys that no longer exist are left out."""
    kept = []
    for former, value in _items(tables):
        name = MOVED.get(former, former)
        if name in KEYS and not _was_open(name, value):
            kept.append((name, RENAMED.get((name, value), value) if isinstance(value, str) else value))
    found = nest(kept)
    if "run" not in found.get("teacher", {"run"}):
        del found["teacher"]
    return found


def refuse_former(tables: Mapping[str, Any], where: str) -> None:
    """Raise RecipeError for a key or a value of an earlier version; the message shows the new form."""
    for name, value in _items(tables):
        if name in MOVED:
            raise RecipeError(f"{where}: {name} is called {MOVED[name]} now, in the table [teacher].")
        if name in GONE:
            raise RecipeError(f"{where}: {name} is no longer a key. Leave it out.")
        if isinstance(value, str) and (name, value) in RENAMED:
            now = json.dumps(RENAMED[name, value])
            raise RecipeError(f"{where}: {name} = {json.dumps(value)} is now written {now}.")
        if _was_open(name, value):
            raise RecipeError(
                f"{where}: {name} = {shown(value)} is how earlier versions left this key open. Leave it out."
            )


def _was_open(name: str, value: Any) -> bool:
    metadata = KEYS[name].metadata if name in KEYS else {}
    return "formerly" in metadata and type(value) is not bool and value == metadata["formerly"]


def _items(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, Mapping) and prefix + name not in KEYS:
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
