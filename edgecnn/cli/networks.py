"""`edgecnn networks`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json
from edgecnn.cli.options import Json

if TYPE_CHECKING:
    from edgecnn.networks.describe import NetworkCost


def networks(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One network.", show_default="all of them")] = None,
    height: Annotated[int, typer.Option(min=1, max=1024, help="Rows of the input.")] = 32,
    width: Annotated[int, typer.Option(min=1, max=1024, help="Columns of the input.")] = 32,
    channels: Annotated[int, typer.Option(min=1, max=3, help="Channels of the input, 1 or 3.")] = 3,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print each layer's shape, parameters and MACs.", show_default="off")
    ] = False,
    json: Json = False,
) -> None:
    """List the networks and what each costs.

    Prints parameters, MACs and expected int8 bytes for an input size.

    \b
    Examples:
      edgecnn networks
      edgecnn networks article --layers --height 28 --width 28 --channels 1
    """
    from edgecnn.networks import NETWORKS, network_module

    if channels == 2:
        raise typer.BadParameter("an image has 1 channel or 3.", param_hint="--channels")
    names = [name] if name else list(NETWORKS)
    for item in names:
        network_module(item)
    from edgecnn.networks import build_network
    from edgecnn.networks.describe import describe

    costs = {item: describe(build_network(item, height, width, channels, classes)) for item in names}
    if json:
        emit_json(
            {
                item: {
                    "parameters": cost.parameters,
                    "macs": cost.macs,
                    "int8_bytes": cost.int8_bytes,
                    "layers": [vars(layer) for layer in cost.layers],
                }
                for item, cost in costs.items()
            }
        )
        return
    print(f"input ({height}, {width}, {channels}), {classes} classes")
    print_costs(costs, layers)


def print_costs(costs: Mapping[str, "NetworkCost"], layers: bool) -> None:
    """Print what each network costs; with `layers` each layer too."""
    from edgecnn.report.table import text_table

    rows = [
        (item, f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.int8_bytes:,}", "") for item, cost in costs.items()
    ]
    print(text_table(("network", "parameters", "MACs", "int8 bytes (expected)", ""), rows))
    for item, cost in costs.items() if layers else ():
        print(f"\n{item}")
        layer_rows = [
            (layer.name, str(layer.shape), f"{layer.parameters:,}", f"{layer.macs:,}", layer.kind)
            for layer in cost.layers
        ]
        print(text_table(("layer", "output", "parameters", "MACs", "kind"), layer_rows))
