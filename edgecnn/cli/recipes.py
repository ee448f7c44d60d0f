"""Build a recipe from options, for the commands that train or import, and show what training would do, without training."""

import dataclasses
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import emit_json
from edgecnn.cli.workstation_options import print_section
from edgecnn.tables import fields_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgecnn.bundle.file import Bundle
    from edgecnn.data import Dataset
    from edgecnn.recipe import Recipe, Settled
    from edgecnn.run_info import NetworkChoice
    from edgecnn.stages import Reporter
    from edgecnn.tables import Group
    from edgecnn.train.train import PhaseCost


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
        raise RecipeError(f"{path} is a run, not a recipe. To continue it: edgecnn train --resume --out {name}")
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


def stated_values(*groups: "Group") -> dict[str, Any]:
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
        raise typer.BadParameter("--max-kb, --max-macs and --max-ms are for a choice of network: leave --network out.")
    return values


def chosen_by(recipe: "Recipe", dataset: "Dataset", reporter: "Reporter") -> "tuple[Settled, NetworkChoice | None]":
    """Close the keys that a recipe leaves open, the network first; return the recipe and the choice. Nothing is saved."""
    from edgecnn.run_info import NetworkChoice
    from edgecnn.runs import CHOICE
    from edgecnn.stages.network_choice import settled, unkept

    with unkept() as run:
        return settled(recipe, dataset, run, reporter), run.stored(CHOICE, NetworkChoice)


def show_keys(as_json: bool) -> None:
    from edgecnn.recipe import keys

    items = keys()
    if as_json:
        emit_json([dataclasses.asdict(key) for key in items])
        return
    width = max(len(key.name) for key in items)
    for key in items:
        limits = f"; {key.limits}" if key.limits else ""
        default = "" if key.default is None else f", default {json.dumps(key.default)}"
        print(f"{key.name:{width}}  {key.type}{default}{limits}")
        print(f"    {key.meaning}")
    print(
        "\nIn a recipe file the part before the dot is a table: [train] with epochs = 20. On the command line: --set train.epochs=20."
    )


def show_dry_run(asked: "Recipe", dataset: "Dataset", reporter: "Reporter", as_json: bool) -> None:
    """Choose an open network for the images, time a few training steps, and print the costs and the estimated time."""
    from edgecnn.cli.progress import clock
    from edgecnn.stages.folds import fitting_seconds
    from edgecnn.stages.train import network_name
    from edgecnn.tables import to_json
    from edgecnn.train.train import dry_run, input_shape, load_splits

    for line in dataset.summary():
        reporter.note(line)
    recipe, choice = chosen_by(asked, dataset, reporter)
    network = network_name(recipe)
    started = time.perf_counter()
    images = {name: len(split.classes) for name, split in load_splits(recipe, dataset, reporter.working).items()}
    decoding_s = time.perf_counter() - started
    shape = input_shape(recipe, dataset)
    estimate = dry_run(recipe, shape, tuple(dataset.labels), images["train"])
    seconds = estimate.total_s if estimate.phases else fitting_seconds(sum(dataset.sizes.values()))
    if as_json:
        emit_json(
            {
                "network": network,
                "choice": to_json(choice),
                "data": dataset.title,
                "input": dict(zip(("height", "width", "channels"), shape, strict=True)),
                "classes": len(dataset.labels),
                "images": dict(dataset.sizes) | images,
                "parameters": estimate.cost.parameters,
                "macs": estimate.cost.macs,
                "int8_bytes": estimate.cost.int8_bytes,
                "checkpoint_bytes": estimate.checkpoint_bytes,
                "precision": recipe.train.precision,
                "phases": [dataclasses.asdict(phase) for phase in estimate.phases],
                "decoding_s": decoding_s,
                "seconds": seconds,
            }
        )
        return
    if choice:
        from edgecnn.report.table import choice_section

        print_section(choice_section(choice))
    print(f"{network} on {dataset.title}: input {shape}, {len(dataset.labels)} classes, {images['train']:,} images")
    print(
        f"{estimate.cost.parameters:,} parameters  {estimate.cost.macs:,} MACs  {estimate.cost.int8_bytes:,} bytes as int8 (expected)  "
        f"{estimate.checkpoint_bytes:,} bytes per checkpoint"
    )
    if estimate.phases:
        print(phase_table(estimate.phases))
    print(
        f"about {clock(seconds)} in total, after {decoding_s:.1f} s to decode the images. Validation takes extra time. "
        "Nothing was written."
    )


def phase_table(phases: "Sequence[PhaseCost]") -> str:
    from edgecnn.cli.progress import clock
    from edgecnn.labels import text_table

    rows = []
    for one in phases:
        steps, speed = (f"{one.steps:,}", f"{1000 * one.step_s:.1f}"), f"{one.images_per_s:,.0f}"
        rows.append((one.phase, str(one.epochs), *steps, speed, clock(one.epoch_s), clock(one.total_s)))
    return text_table(("phase", "epochs", "steps", "ms per step", "images/s", "per epoch", "phase"), rows)
