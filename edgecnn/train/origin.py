"""What a run takes from elsewhere when it begins: a user's own network, and the trained weights that it starts from.

A network and a run's weights are copied into the run folder, so that it goes on when the originals are gone or have changed.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.errors import RunError
from edgecnn.files import sha256, write_atomic
from edgecnn.networks.own import own_network, read_source
from edgecnn.networks.predict import model_from_bytes
from edgecnn.networks.pretrained import load_weights, read_weights
from edgecnn.recipe import Recipe
from edgecnn.run_info import OwnFile, StartedFrom
from edgecnn.runs import FLOAT_MODEL, INFO, INIT_MODEL, NETWORK_FILE, Run, trained_run
from edgecnn.train.head import take_body
from edgecnn.train.settle import own_weights, starts_trained

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


def local_recipe(recipe: Recipe, run: Run | None) -> Recipe:
    """Return the recipe with its own network, if it has one, read from the run's copy of the file, made now if there is none yet."""
    own = own_network(recipe.network.name)
    if own is None or run is None:
        return recipe
    copy = run.file(NETWORK_FILE)
    if not copy.exists():
        write_atomic(copy, read_source(own))
    name = f"{copy.resolve()}:{own.function}"
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, name=name))


@dataclass(frozen=True)
class Start:
    """Trained weights to begin with: what a run records of them, and the function that gives them to a network, all but its head."""

    recorded: StartedFrom
    give: Callable[["keras.Model"], None]


def open_start(recipe: Recipe, run: Run | None) -> Start | None:
    """Return the trained weights that a settled recipe starts from: a run's, or the network's own of ImageNet; None for random ones.

    A run's are copied into this run. RunError if there are none or their images were read otherwise; ModuleNotFoundError or NetworkError
    as `pretrained.read_weights`.
    """
    if not starts_trained(recipe):
        return None
    source = own_weights(recipe)
    if source is None:
        weights = init_weights(recipe, run)
        recorded = StartedFrom(run=Path(recipe.init.source or "").name, sha256=sha256(weights))
        return Start(recorded, lambda model: take_body(model, model_from_bytes(weights)))
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
            f"init.source: {source.path} was trained on inputs of scale {received[0]:g} and zero point {received[1]}, this network reads "
            f"scale {expected[0]:g} and zero point {expected[1]}. Leave network.input_range and input_scale out to use the run's."
        )
    weights = source.read(FLOAT_MODEL, "train")
    if copy:
        write_atomic(copy, weights)
    return weights


def own_file(recipe: Recipe, run: Run | None) -> OwnFile | None:
    """Return what `run.json` records of a user's own network, the run's copy of it if there is one; None for one of edgecnn's."""
    own = own_network(recipe.network.name)
    if own is None:
        return None
    copy = run.file(NETWORK_FILE) if run else own.file
    return OwnFile(file=own.label, sha256=sha256(copy.read_bytes() if copy.exists() else read_source(own)))


def changed_origins(recipe: Recipe, run: Run) -> list[str]:
    """Return what has changed since a run began, where the originals are still there: for messages."""
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
