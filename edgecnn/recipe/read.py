"""From TOML and the command line to a checked recipe, and a recipe as TOML again."""

import dataclasses
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgecnn.errors import RecipeError
from edgecnn.recipe.recipe import SOURCE_KINDS, Recipe
from edgecnn.region import WHOLE, region_text
from edgecnn.tables import build, fields_of, to_json

TOO_DEEP = "its values are nested too deeply: a recipe's are numbers, texts and lists of numbers."


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as nested tables, unchecked; `build_recipe` checks.

    Raises:
        RecipeError: if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from None
    except RecursionError:
        raise RecipeError(f"{path}: {TOO_DEEP}") from None


def build_recipe(tables: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Make a checked Recipe from nested tables.

    Args:
        tables: as read from TOML; missing keys take their defaults, those of SOURCE_KINDS first.
        where: the origin's name in messages, such as the file's path.

    Raises:
        RecipeError: for an unknown key (naming the nearest), a wrong type or a value out of range.
    """
    recipe = build(Recipe, with_source_defaults(tables), RecipeError, where)
    if source_kind(recipe.data.source)[0] == "frigate" and recipe.data.region != WHOLE:
        raise RecipeError(
            f"{where}: data.region is {region_text(recipe.data.region)}, but Frigate has cut its images already, and cuts what it "
            "classifies. Leave it out."
        )
    return recipe


def with_source_defaults(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's tables laid over the defaults that SOURCE_KINDS has for their source."""
    data = tables.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    kind, _ = source_kind(source) if isinstance(source, str) else ("", "")
    return merge(SOURCE_KINDS.get(kind, {}), tables)


def source_kind(source: str) -> tuple[str, str]:
    """Return the kind that a data source names and its path: ("frigate", PATH) for "frigate:PATH", or "" and the whole source."""
    kind, colon, path = source.partition(":")
    return (kind, path) if colon and kind in SOURCE_KINDS else ("", source)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `train.epochs=20` settings into nested tables; a value that is not TOML is taken as a string.

    Raises:
        RecipeError: for a setting without `=`, with an empty key, or of values nested too deeply.
    """
    items = []
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not all(part.strip() for part in name.split(".")):
            raise RecipeError(f"--set takes KEY=VALUE, such as train.epochs=20; received {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        except RecursionError:
            raise RecipeError(f"--set {name}: {TOO_DEEP}") from None
        items.append((name.strip(), value))
    return nest(items)


def nest(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn (dotted key, value) pairs into nested tables; a later pair wins.

    Raises:
        RecipeError: if a key is both a value and a table.
    """
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


def known(tables: Mapping[str, Any], kind: type = Recipe) -> dict[str, Any]:
    """Return those of a recipe's tables that recipes have today: a bundle holds the recipe of the version that made it."""
    fields = fields_of(kind)
    return {
        name: known(value, typing.cast(type, fields[name].type))
        if dataclasses.is_dataclass(fields[name].type) and isinstance(value, Mapping)
        else value
        for name, value in tables.items()
        if name in fields
    }


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` laid over it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def to_tables(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as nested plain tables, every key present."""
    tables: dict[str, Any] = to_json(recipe)
    return tables


def to_toml(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML that `build_recipe` reads back to an equal recipe."""
    return _toml(to_tables(recipe), "")


def _toml(tables: Mapping[str, Any], prefix: str) -> str:
    lines = [f"{name} = {_toml_value(value)}" for name, value in tables.items() if not isinstance(value, Mapping)]
    text = "".join(f"{line}\n" for line in lines)
    for name, value in tables.items():
        if isinstance(value, Mapping) and value:
            text += f"\n[{prefix}{name}]\n" + _toml(value, f"{prefix}{name}.")
    return text


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        escaped = "".join(
            {"\\": "\\\\", '"': '\\"'}.get(char, char if char >= " " and char != "\x7f" else f"\\u{ord(char):04x}")
            for char in value
        )
        return f'"{escaped}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)
