"""The keys of a recipe, for display: type, default, limits and meaning."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecnn.recipe.recipe import Recipe
from edgecnn.region import Region
from edgecnn.tables import NAMES, end_text, leaves, to_json, value_type


@dataclass(frozen=True)
class Key:
    """A recipe key, for display: its dotted name, TOML type, default, limits as text ("" for none), and meaning."""

    name: str
    type: str
    default: Any
    limits: str
    meaning: str


def keys() -> list[Key]:
    """Return every key of a recipe, in the order of the dataclasses."""
    found = []
    for name, entry in leaves(Recipe):
        kind = NAMES.get(value_type(entry.type), "array of 4 numbers" if entry.type == Region else "table of strings")
        found.append(Key(name, kind, default(entry), _limits_text(entry), entry.metadata["meaning"]))
    return found


def default(entry: dataclasses.Field) -> Any:
    """Return a key's default as a JSON value; None if the key is left open or required."""
    if entry.default_factory is not dataclasses.MISSING:
        return to_json(entry.default_factory())
    return None if entry.default is dataclasses.MISSING else to_json(entry.default)


def _limits_text(entry: dataclasses.Field) -> str:
    if "choices" in entry.metadata:
        return ", ".join(map(str, entry.metadata["choices"]))
    if "expected" in entry.metadata:
        return str(entry.metadata["expected"])
    return range_text(entry.metadata) if "low" in entry.metadata else ""


def range_text(metadata: Mapping[str, Any]) -> str:
    """Return the range of a key as text, from its metadata `low` and `high`: see `edgecnn.tables.key`."""
    ends = metadata["low"], metadata["high"]
    return " to ".join(map(end_text, ends))
