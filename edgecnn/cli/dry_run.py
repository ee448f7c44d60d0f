"""What training would do, shown without training: the network that suits the images, what training costs (`--dry-run`), and a recipe's keys
(`--keys`).
"""

import dataclasses
import json
import time
from typing import TYPE_CHECKING

from edgecnn.cli.options import emit_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgecnn.data import Dataset
    from edgecnn.recipe import Recipe
    from edgecnn.run_info import NetworkChoice
    from edgecnn.stages import Reporter
    from edgecnn.train.train import PhaseCost


def chosen_by(recipe: "Recipe", dataset: "Dataset", reporter: "Reporter") -> "tuple[Recipe, NetworkChoice | None]":
    """Choose the network for the images if the recipe leaves it open; return the recipe and the choice. Nothing is saved."""
    from edgecnn.run_info import NetworkChoice
    from edgecnn.runs import CHOICE
    from edgecnn.stages.network_choice import choose_network, unkept

    with unkept() as run:
        return choose_network(recipe, dataset, run, reporter), run.stored(CHOICE, NetworkChoice)


def print_choice(choice: "NetworkChoice") -> None:
    from edgecnn.cli.options import terminal_width
    from edgecnn.report.table import CHOICE_HEADINGS, choice_rows, judged_line, text_table

    print(text_table(CHOICE_HEADINGS, choice_rows(choice), terminal_width()))
    print(judged_line(choice))


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


def show_dry_run(recipe: "Recipe", dataset: "Dataset", reporter: "Reporter", as_json: bool) -> None:
    """Choose an open network for the images, time a few training steps, and print the costs and the estimated time."""
    from edgecnn.cli.progress import clock
    from edgecnn.stages.train import network_name, settled
    from edgecnn.tables import to_json
    from edgecnn.train.train import dry_run, input_shape, load_splits

    for line in dataset.summary():
        reporter.note(line)
    recipe, choice = chosen_by(recipe, dataset, reporter)
    recipe = settled(recipe, dataset, reporter)
    network = network_name(recipe)
    started = time.perf_counter()
    images = {name: len(split.classes) for name, split in load_splits(recipe, dataset, reporter.working).items()}
    decoding_s = time.perf_counter() - started
    shape = input_shape(recipe, dataset)
    estimate = dry_run(recipe, shape, tuple(dataset.labels), images["train"])
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
                "seconds": estimate.total_s,
            }
        )
        return
    if choice:
        print_choice(choice)
    print(f"{network} on {dataset.title}: input {shape}, {len(dataset.labels)} classes, {images['train']:,} images")
    print(
        f"{estimate.cost.parameters:,} parameters  {estimate.cost.macs:,} MACs  {estimate.cost.int8_bytes:,} bytes as int8 (expected)  "
        f"{estimate.checkpoint_bytes:,} bytes per checkpoint"
    )
    print(phase_table(estimate.phases))
    print(
        f"about {clock(estimate.total_s)} in total, after {decoding_s:.1f} s to decode the images. Validation takes extra time. "
        "Nothing was written."
    )


def phase_table(phases: "Sequence[PhaseCost]") -> str:
    from edgecnn.cli.progress import clock
    from edgecnn.report.table import text_table

    rows = []
    for one in phases:
        steps, speed = (f"{one.steps:,}", f"{1000 * one.step_s:.1f}"), f"{one.images_per_s:,.0f}"
        rows.append((one.phase, str(one.epochs), *steps, speed, clock(one.epoch_s), clock(one.total_s)))
    return text_table(("phase", "epochs", "steps", "ms per step", "images/s", "per epoch", "phase"), rows)
