"""What a run takes from elsewhere when it begins: the user's own network, and the trained weights it starts from.

Both are copied into the run folder, so the run can continue after the originals are changed or deleted.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.errors import RunError
from edgecnn.files import sha256, write_atomic
from edgecnn.networks.backbone import is_backbone, read_backbone
from edgecnn.networks.own import own_network, read_source
from edgecnn.networks.predict import model_from_bytes
from edgecnn.networks.pretrained import load_weights, read_weights
from edgecnn.recipe import Recipe
from edgecnn.run_info import OwnFile, StartedFrom
from edgecnn.runs import BACKBONE, FLOAT_MODEL, INFO, INIT_MODEL, NETWORK_FILE, Run, trained_run
from edgecnn.train.head import take_body
from edgecnn.train.settle import own_weights, starts_trained

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


def local_recipe(recipe: Recipe, run: Run | None) -> Recipe:
    """Return the recipe with the user's own network, if any, read from the run's copy of its file. Makes that copy if it is missing."""
    network = recipe.network
    if run is None or not network.file:
        return recipe
    own = own_network(network.name)
    copy = run.file(NETWORK_FILE if own else BACKBONE)
    if not copy.exists():
        data = read_source(own) if own else read_backbone(Path(network.name), network.options.get("sha256")).data
        write_atomic(copy, data)
    name = f"{copy.resolve()}:{own.function}" if own else str(copy.resolve())
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, name=name))


@dataclass(frozen=True)
class Start:
    """Trained weights to start from: what the run records about them, and a function that loads them into all of a network but its head."""

    recorded: StartedFrom
    give: Callable[["keras.Model"], None]


def open_start(recipe: Recipe, run: Run | None) -> Start | None:
    """Return the trained weights that a settled recipe starts from: a run's, or the network's ImageNet weights. None means random weights.

    A run's weights are copied into this run. Raises RunError if it has none or read its images differently, and ModuleNotFoundError or
    NetworkError like `pretrained.read_weights`.
    """
    if not starts_trained(recipe):
        return None
    source = own_weights(recipe)
    if source is None:
        weights = init_weights(recipe, run)
        recorded = StartedFrom(run=Path(recipe.init.source or "").name, sha256=sha256(weights))
        return Start(recorded, lambda model: take_body(model, model_from_bytes(weights)))
    if is_backbone(recipe.network.name):
        recorded = StartedFrom(run=source.title, sha256=recipe.network.options["sha256"])
        return Start(recorded, lambda model: None)  # the network comes with its weights
    state = read_weights(source)
    recorded = StartedFrom(run=f"{source.title} ({source.distribution})", sha256=source.sha256, licence=source.licence)
    return Start(recorded, lambda model: load_weights(model, state))


def init_weights(recipe: Recipe, run: Run | None) -> bytes:
    copy = run.file(INIT_MODEL) if run else None
    if copy and copy.exists():
        return copy.read_bytes()
    source = trained_run(Path(recipe.init.source or ""))
    expected, received = ((item.input_scale, item.input_zero_point) for item in (recipe, source.recipe))
    if expected != received:
        raise RunError(
            f"init.source: {source.path} was trained on inputs of scale {received[0]:g} and zero point {received[1]}, but this network "
            f"reads scale {expected[0]:g} and zero point {expected[1]}. Leave out network.input_range and input_scale to use the run's."
        )
    weights = source.read(FLOAT_MODEL, "train")
    if copy:
        write_atomic(copy, weights)
    return weights


def own_file(recipe: Recipe, run: Run | None) -> OwnFile | None:
    """Return what `run.json` records about a user's own network, from the run's copy if it exists. None for a built-in network."""
    own = own_network(recipe.network.name)
    if own is None:
        return None
    copy = run.file(NETWORK_FILE) if run else own.file
    return OwnFile(file=own.label, sha256=sha256(copy.read_bytes() if copy.exists() else read_source(own)))


def changed_origins(recipe: Recipe, run: Run) -> list[str]:
    """List for messages the originals that still exist but have changed since the run began."""
    if not run.file(INFO).exists():
        return []
    info, changed = run.info, []
    own = own_network(recipe.network.name)
    if own and own.file.exists() and not (info.network and sha256(read_source(own)) == info.network.sha256):
        changed.append(f"the network {own.label}")
    weights = Path(recipe.init.source or "") / FLOAT_MODEL
    if recipe.init.source and weights.exists() and not (info.init and sha256(weights.read_bytes()) == info.init.sha256):
        changed.append(f"the weights of {recipe.init.source}")
    return changed
