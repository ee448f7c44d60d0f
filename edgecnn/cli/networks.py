"""edgecnn networks, datasets and targets: what a recipe can name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Json, emit_json, option, with_flags
from edgecnn.cli.recipes import chosen_by

if TYPE_CHECKING:
    from edgecnn.networks.blocks import NetworkCost
    from edgecnn.run_info import NetworkChoice


@with_flags
def networks(
    name: str | None = typer.Argument(None, metavar="NAME", help="One network.", show_default="all of them"),
    *,
    budget: shared.Budget,
    data: str | None = option(
        None,
        "Images to train on, as for edgecnn train. Shows each network's input for them, their classes, and the network that photos "
        "choose.",
        "none",
        metavar="DATA",
    ),
    height: int | None = option(None, "Rows of the input.", "32", min=1, max=1024),
    width: int | None = option(None, "Columns of the input.", "32", min=1, max=1024),
    channels: int | None = option(None, "Channels of the input, 1 or 3.", "3", min=1, max=3),
    classes: int | None = option(None, "Number of classes.", "10", min=2),
    layers: bool = option(False, "Print each layer's shape, parameters and MACs.", "off", None, "--layers"),
    json: Json = False,
) -> None:
    """List the networks and what each costs.

    Prints parameters, MACs and expected int8 bytes for an input size, or for the images that --data names.

    \b
    Examples:
      edgecnn networks
      edgecnn networks --data photos/
      edgecnn networks article --layers --height 28 --width 28 --channels 1
    """
    from edgecnn.networks import NETWORKS, build_network, network_module

    if channels == 2:
        raise typer.BadParameter("an image has 1 or 3 channels.", param_hint="--channels")
    if data is None and any(vars(budget).values()):
        raise typer.BadParameter("--max-kb, --max-macs and --max-ms limit the choice of the network: give --data too.")
    if data is not None and classes is not None:
        raise typer.BadParameter("--data sets the classes: leave --classes out.", param_hint="--classes")
    names = [name] if name else list(NETWORKS)
    for item in names:
        network_module(item)
    from edgecnn.networks.blocks import describe
    from edgecnn.tables import to_json

    chosen, choice, count = None, None, classes or 10
    sizes = dict.fromkeys(names, (height or 32, width or 32, channels or 3))
    if data is not None:
        size = {"height": height, "width": width, "channels": channels}
        chosen, choice, count, sizes = inputs_for(data, names, size | vars(budget))
    costs = {item: describe(build_network(item, *sizes[item], count)) for item in names}
    if json:
        emit_json(
            {
                item: {
                    "input": sizes[item],
                    "starts_from": starts_from(item),
                    "chosen": item == chosen,
                    "choice": to_json(choice) if item == chosen else None,
                    "parameters": cost.parameters,
                    "macs": cost.macs,
                    "int8_bytes": cost.int8_bytes,
                    "layers": [vars(layer) for layer in cost.layers],
                }
                for item, cost in costs.items()
            }
        )
        return
    if choice:
        from edgecnn.report.table import choice_section

        shared.print_section(choice_section(choice))
    print(f"{count} classes" + (f"; edgecnn train chooses {chosen}" if chosen else ""))
    print_costs(costs, sizes, layers)


def inputs_for(
    data: str, names: Sequence[str], stated: Mapping[str, float | None]
) -> "tuple[str, NetworkChoice | None, int, dict[str, tuple[int, int, int]]]":
    """Return the network that training would use, how it was chosen, their number of classes, and each network's input.

    `stated` has the recipe's network keys, None for those that are left open; an input is (height, width, channels).
    """
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_dataset
    from edgecnn.recipe import build_recipe
    from edgecnn.train.settle import settled_network

    given = {name: value for name, value in stated.items() if value}
    asked = build_recipe({"data": {"source": data}, "network": given})
    with ProgressReporter() as reporter:
        dataset = open_dataset(asked.data, progress=reporter.working)
        dataset.check()
        recipe, choice = chosen_by(asked, dataset, reporter)
    networks = {
        item: settled_network(replace(asked, network=replace(asked.network, name=item)), dataset) for item in names
    }
    if choice and choice.network in networks:
        networks[choice.network] = recipe.network
    inputs = {item: (network.height, network.width, network.channels) for item, network in networks.items()}
    return recipe.network.name, choice, len(dataset.labels), inputs


def starts_from(network: str) -> str | None:
    from edgecnn.networks.pretrained import source_of

    source = source_of(network)
    return source.title if source else None


def print_costs(costs: Mapping[str, "NetworkCost"], sizes: Mapping[str, tuple[int, int, int]], layers: bool) -> None:
    from edgecnn.labels import text_table

    rows = [
        ("x".join(map(str, sizes[item])), *(f"{figure:,}" for figure in (cost.parameters, cost.macs, cost.int8_bytes)))
        for item, cost in costs.items()
    ]
    headings = ("network", "input", "parameters", "MACs", "int8 bytes (expected)", "starts from")
    starts = [starts_from(item) or "random weights" for item in costs]
    print(text_table(headings, [(item, *row, start) for item, row, start in zip(costs, rows, starts, strict=True)]))
    for item, cost in costs.items() if layers else ():
        print(f"\n{item}")
        layer_rows = [
            (layer.name, str(layer.shape), f"{layer.parameters:,}", f"{layer.macs:,}", layer.kind)
            for layer in cost.layers
        ]
        print(text_table(("layer", "output", "parameters", "MACs", "kind"), layer_rows))


def datasets(json: Json = False) -> None:
    """List the datasets that --data accepts by name.

    --data also accepts a folder or a zip of images.

    \b
    Example:
      edgecnn datasets
    """
    from edgecnn.data import DATASETS, PREFIXES
    from edgecnn.images import FORMATS

    described = {name: (source.__doc__ or "").strip().splitlines()[0] for name, source in DATASETS.items()}
    if json:
        emit_json(described)
        return
    for name, text in described.items():
        print(f"{name:15} {text}")
    for kind, source in PREFIXES.items():
        print(f"{f'{kind}:PATH':15} {(source.__doc__ or '').strip().splitlines()[0]}")
    print(f"{'DIR or ZIP':15} Images in DIR/<class>/* or DIR/{{train,val,test}}/<class>/*: {', '.join(FORMATS)}.")


def targets(json: Json = False) -> None:
    """List the boards that edgecnn knows.

    \b
    Example:
      edgecnn targets --json
    """
    from edgecnn.boards import list_targets

    known = list_targets()
    if json:
        emit_json({target.name: target for target in known})
        return
    for target in known:
        memory = f"{target.memory_mib:,} MiB" if target.memory_mib else "-"
        print(f"{target.name:18} {target.title:32} {target.arch:8} {target.cpu_model:14} {target.engine:12} {memory}")
