"""From options to a recipe, for the commands that train or import."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecnn.recipe import Recipe

FLAG_KEYS = {
    "data": "data.source",
    "region": "data.region",
    "network": "network.name",
    "init": "init.source",
    "epochs": "train.epochs",
    "qat_epochs": "qat.epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "seed": "seed",
    "robust": "train.robust",
    "width": "network.width",
    "height": "network.height",
    "input_range": "network.input_range",
    "input_scale": "network.input_scale",
    "input_zero_point": "network.input_zero_point",
}


def resolve(recipe: Path | None, settings: list[str] | None, **flags: Any) -> "Recipe":
    """Lay flags (FLAG_KEYS, None if not given) and --set over the recipe file over the defaults, with absolute paths; RecipeError."""
    from edgecnn.recipe import build_recipe, load_recipe, merge, nest, parse_overrides, with_source_defaults
    from edgecnn.recipe.former import refuse_former
    from edgecnn.runs import start_from

    if recipe:
        refuse_images(recipe)
    tables = merge(load_recipe(recipe) if recipe else {}, parse_overrides(settings or []))
    given = nest((FLAG_KEYS[name], value) for name, value in flags.items() if value is not None)
    tables, where = merge(tables, given), str(recipe) if recipe else "the command line"
    refuse_former(tables, where)
    return absolute(build_recipe(start_from(with_source_defaults(tables)), where), recipe)


def refuse_images(path: Path) -> None:
    """Raise RecipeError for images or a run given as a recipe, with what to type instead."""
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
    """Return a recipe whose paths are absolute; a network's file may be named relative to the recipe's own folder."""
    from edgecnn.data import DATASETS
    from edgecnn.recipe import source_kind

    network, teacher, data = recipe.network, recipe.teacher, recipe.data
    file, colon, function = (network.name or "").rpartition(":")
    if file:
        own = Path(file).expanduser()
        if path and not own.exists() and (path.parent / own).exists():
            own = path.parent / own
        network = dataclasses.replace(network, name=f"{own.resolve()}{colon}{function}")
    if teacher:
        teacher = dataclasses.replace(teacher, run=str(Path(teacher.run).expanduser().resolve()))
    kind, where = source_kind(data.source)
    source = Path(where).expanduser()
    if data.source not in DATASETS and where and source.exists():
        data = dataclasses.replace(data, source=f"{kind}:{source.resolve()}" if kind else str(source.resolve()))
    return dataclasses.replace(recipe, network=network, teacher=teacher, data=data)


def training_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of `resolve` of the parameters that `train` and `run` share."""
    names = ("data", "network", "epochs", "qat_epochs", "batch_size", "learning_rate", "seed")
    init, robust = given["init"] and str(given["init"]), given["robust"] or None
    flags = {"region": seen_region(given["region"]), **input_size(given["size"]), "init": init, "robust": robust}
    return flags | {name: given[name] for name in names}


def seen_region(text: str | None) -> list[float] | None:
    """Read --region as the flag of `resolve`; None without it. Raises typer.BadParameter for what is not a region within the image."""
    if text is None:
        return None
    from edgecnn.cli.options import checked
    from edgecnn.region import read_region

    return list(checked("--region", read_region, text))


def input_size(text: str | None) -> dict[str, int | None]:
    """Read --size, WIDTHxHEIGHT or the side of a square, as the flags of `resolve`, None without it; else raise typer.BadParameter."""
    if text is None:
        return {"width": None, "height": None}
    import typer

    from edgecnn.device.stream.settings import read_size

    try:
        width, height = read_size(text if "x" in text.lower() else f"{text}x{text}")
    except ValueError:
        expected = "WIDTHxHEIGHT or one number, such as 160x120 or 128"
        raise typer.BadParameter(f"received {text!r}, expected {expected}.", param_hint="--size") from None
    return {"width": width, "height": height}
