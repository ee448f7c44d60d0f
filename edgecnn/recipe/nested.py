"""Nested tables, as in TOML: built from dotted keys, and merged."""

from collections.abc import Iterable, Mapping
from typing import Any

from edgecnn.errors import RecipeError


def nest(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn (dotted key, value) pairs into nested tables; a later pair wins. Raises RecipeError if a key is both a value and a table."""
    tables: dict[str, Any] = {}
    for name, value in items:
        *parents, last = name.split(".")
        table = tables
        for part in parents:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{name}: {part} was already set to a value")
        table[last] = value
    return tables


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` merged into it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = merge(merged[name], value)
        else:
            merged[name] = value
    return merged
