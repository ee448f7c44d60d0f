"""Build a recipe from options, for the commands that train or import."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.tables import fields_of

if TYPE_CHECKING:
    from edgecnn.bundle.file import Bundle
    from edgecnn.device.stream.settings import Group
    from edgecnn.recipe import Recipe
    from edgecnn.stages import Reporter


def resolve(recipe: Path | None, settings: list[str] | None, given: Mapping[str, Any]) -> "Recipe":
    """Merge options (by dotted key) and --set over the recipe file and the defaults, with absolute paths; RecipeError if not valid."""
    from edgecnn.recipe import build_recipe, load_recipe, merge, nest, parse_overrides, with_source_defaults
    from edgecnn.runs import start_from

    if recipe:
        refuse_images(recipe)
    tables = merge(load_recipe(recipe) if recipe else {}, parse_overrides(settings or []))
    tables, where = merge(tables, nest(given.items())), str(recipe) if recipe else "the command line"
    return absolute(build_recipe(start_from(with_source_defaults(tables)), where), recipe)


def former_recipe(
    old: "Bundle", settings: list[str] | None, given: Mapping[str, Any], reporter: "Reporter"
) -> "Recipe":
    """Do the same over the recipe of a bundle, and note what the new images change; DatasetError, UnknownNameError without images."""
    from edgecnn.data import open_dataset
    from edgecnn.labels import printable
    from edgecnn.recipe import build_recipe, merge, nest, parse_overrides, to_tables
    from edgecnn.stages.against import by_these_images, former_tables

    over = merge(parse_overrides(settings or []), nest(given.items()))
    former = build_recipe(merge(former_tables(old), {"data": over.get("data", {})}), str(old.path))
    dataset = open_dataset(absolute(former, None).data, progress=reporter.working, note=reporter.note)
    opened, lines = by_these_images(former, old, dataset)
    for line in (f"settings as for {printable(old.manifest.name)}, unless you say otherwise", *lines):
        reporter.note(line)
    return absolute(build_recipe(merge(to_tables(opened), over), "the command line"), None)


def refuse_images(path: Path) -> None:
    """Raise RecipeError, with the right command, if images or a run are given as a recipe."""
    from edgecnn.data import DATASETS
    from edgecnn.errors import RecipeError
    from edgecnn.recipe import source_kind
    from edgecnn.runs import RECIPE

    name = shlex.quote(str(path))
    if (path / RECIPE).is_file():
        raise RecipeError(
            f"{path} is a run folder, not a recipe file. To continue it: edgecnn train --resume --out {name}"
        )
    images = path.is_dir() or path.suffix.lower() == ".zip" or source_kind(str(path))[0]
    if images or (str(path) in DATASETS and not path.exists()):
        raise RecipeError(f"{path} is not a recipe file. To train on its images: edgecnn train --data {name}")


def absolute(recipe: "Recipe", path: Path | None) -> "Recipe":
    """Return a recipe with absolute paths; a network's file may be relative to the recipe's own folder."""
    from edgecnn.data import DATASETS
    from edgecnn.recipe import source_kind

    network, teacher, data = recipe.network, recipe.teacher, recipe.data
    if network.file:
        own, function = Path(network.file).expanduser(), network.name.removeprefix(network.file)
        if path and not own.exists() and (path.parent / own).exists():
            own = path.parent / own
        network = dataclasses.replace(network, name=f"{own.resolve()}{function}")
    if teacher:
        teacher = dataclasses.replace(teacher, run=str(Path(teacher.run).expanduser().resolve()))
    kind, where = source_kind(data.source)
    source = Path(where).expanduser()
    if data.source not in DATASETS and where and source.exists():
        data = dataclasses.replace(data, source=f"{kind}:{source.resolve()}" if kind else str(source.resolve()))
    if data.unseen and data.unseen not in DATASETS and (unseen := Path(data.unseen).expanduser()).exists():
        data = dataclasses.replace(data, unseen=str(unseen.resolve()))
    return dataclasses.replace(recipe, network=network, teacher=teacher, data=data)


def said(*groups: "Group") -> dict[str, Any]:
    """Return the recipe values of groups of settings, by recipe key."""
    values: dict[str, Any] = {}
    for group in groups:
        kind: type = type(group)
        for name, entry in fields_of(kind).items():
            if (value := getattr(group, name)) != entry.default:
                parts = value if isinstance(value, tuple) else (value,)
                values |= dict(zip(entry.metadata.get("keys", ()), parts, strict=False))
    if sum(bool(getattr(group, name, None)) for group in groups for name in ("network", "backbone")) > 1:
        raise typer.BadParameter("--network and --backbone are mutually exclusive: give one.")
    if "network.name" in values and any(key.startswith("network.max_") for key in values):
        raise typer.BadParameter(
            "--max-kb, --max-macs and --max-ms limit the choice of the network: leave --network out."
        )
    return values
