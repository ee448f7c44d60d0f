"""`edgecnn train --keys`: the keys of a recipe."""

import dataclasses
import json

from edgecnn.cli.console import emit_json


def show_keys(as_json: bool) -> None:
    from edgecnn.recipe.keys import keys

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
