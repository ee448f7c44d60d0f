"""Build a checked recipe from TOML and the command line, and write a recipe as TOML."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgecnn.errors import RecipeError
from edgecnn.recipe.nested import merge, nest
from edgecnn.recipe.recipe import SOURCE_KINDS, Recipe
from edgecnn.region import WHOLE, region_text
from edgecnn.tables import build, to_json

TOO_DEEP = "its values are nested too deeply: a recipe holds numbers, texts and lists of numbers."


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as nested tables, unchecked. Raises RecipeError if the file cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            f'{path} is not a TOML file: {error}. Expected tables and keys, such as [data] with source = "photos/" below it; JSON and YAML '
            "are not read. For the list of keys: edgecnn train --keys"
        ) from None
    except RecursionError:
        raise RecipeError(f"{path}: {TOO_DEEP}") from None


def build_recipe(tables: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Build a checked Recipe from nested tables; RecipeError, which names `where`, for an unknown key or a wrong value."""
    recipe = build(Recipe, with_source_defaults(tables), RecipeError, where)
    if source_kind(recipe.data.source)[0] == "frigate" and recipe.data.region != WHOLE:
        raise RecipeError(
            f"{where}: data.region is {region_text(recipe.data.region)}, but Frigate has already cut its images, and cuts those that "
            "it classifies. Leave it out."
        )
    return recipe


def with_source_defaults(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's tables merged over the SOURCE_KINDS defaults of their source."""
    data = tables.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    kind, _ = source_kind(source) if isinstance(source, str) else ("", "")
    return merge(SOURCE_KINDS.get(kind, {}), tables)


def source_kind(source: str) -> tuple[str, str]:
    """Return the kind that a data source names and its path: ("frigate", PATH) for "frigate:PATH", or "" and the whole source."""
    kind, colon, path = source.partition(":")
    return (kind, path) if colon and kind in SOURCE_KINDS else ("", source)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `train.epochs=20` settings into nested tables; a value that is not TOML is a string, an empty one None; or RecipeError."""
    items = []
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not all(part.strip() for part in name.split(".")):
            raise RecipeError(f"--set takes KEY=VALUE, such as train.epochs=20; received {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip() or None
        except RecursionError:
            raise RecipeError(f"--set {name}: {TOO_DEEP}") from None
        items.append((name.strip(), value))
    return nest(items)


def to_tables(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as nested plain tables, without the keys that it leaves open."""
    return dict(to_json(recipe))


def to_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML that `build_recipe` reads back to an equal recipe."""
    import tomli_w

    return tomli_w.dumps(_without_empty(to_tables(recipe)))


def _without_empty(tables: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: _without_empty(value) if isinstance(value, Mapping) else value for name, value in tables.items()}
    return {name: value for name, value in inner.items() if value != {}}
