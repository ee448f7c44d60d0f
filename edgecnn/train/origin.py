"""What a run takes from elsewhere when it begins: a user's own network and the network it starts from.

Both are copied into the run folder, so that it goes on when the originals are gone or have changed.
"""

import dataclasses
from pathlib import Path

from edgecnn.errors import RunError
from edgecnn.files import sha256, write_atomic
from edgecnn.networks.own import own_network, read_source
from edgecnn.recipe import Recipe
from edgecnn.run_info import OwnFile, StartedFrom
from edgecnn.runs import FLOAT_MODEL, INFO, INIT_MODEL, NETWORK_FILE, Run, trained_run


def local_recipe(recipe: Recipe, run: Run | None) -> Recipe:
    """Return the recipe with its own network read from the run's copy of the file, made now if there is none yet.

    Args:
        recipe: the resolved recipe.
        run: the run folder; None leaves the recipe as it is.

    Raises:
        NetworkError: if there is no copy and the file cannot be read.
        OutputError: if the copy cannot be written.
    """
    own = own_network(recipe.network.name)
    if own is None or run is None:
        return recipe
    copy = run.file(NETWORK_FILE)
    if not copy.exists():
        write_atomic(copy, read_source(own))
    name = f"{copy.resolve()}:{own.function}"
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, name=name))


def init_weights(recipe: Recipe, run: Run | None) -> bytes | None:
    """Return the float model that a recipe starts from, as HDF5 bytes; None if it starts from nothing.

    It is read from the run's copy, made now if there is none yet; without a run, from where it is.

    Raises:
        RunError: if there is no copy and no such trained run, or its images are read in other ways than this network's.
        OutputError: if the copy cannot be written.
    """
    if not recipe.init.source:
        return None
    copy = run.file(INIT_MODEL) if run else None
    if copy and copy.exists():
        return copy.read_bytes()
    source = trained_run(Path(recipe.init.source))
    check_scale(recipe, source)
    weights = source.read(FLOAT_MODEL, "train")
    if copy:
        write_atomic(copy, weights)
    return weights


def check_scale(recipe: Recipe, source: Run) -> None:
    """Check that a network reads pixels by the scale and zero point of the one it starts from.

    Raises:
        RunError: if it does not.
    """
    expected, received = ((item.input_scale, item.input_zero_point) for item in (recipe, source.recipe))
    if expected != received:
        raise RunError(
            f"init.source: {source.path} was trained on inputs of scale {received[0]:g} and zero point {received[1]}, this network reads "
            f"scale {expected[0]:g} and zero point {expected[1]}. Leave network.input_range and input_scale out to use the run's."
        )


def origins(recipe: Recipe, run: Run | None, weights: bytes | None) -> tuple[OwnFile | None, StartedFrom | None]:
    """Return what `run.json` records of a user's own network and of the run started from; None where there is none.

    Args:
        recipe: the resolved recipe.
        run: the run folder, whose copy of the network counts where there is one; None for the original.
        weights: from `init_weights`.

    Raises:
        NetworkError: if there is no copy, and the original cannot be read.
    """
    network = init = None
    own = own_network(recipe.network.name)
    if own:
        copy = run.file(NETWORK_FILE) if run else own.file
        network = OwnFile(file=own.label, sha256=sha256(copy.read_bytes() if copy.exists() else read_source(own)))
    if weights is not None:
        init = StartedFrom(run=Path(recipe.init.source).name, sha256=sha256(weights))
    return network, init


def changed_origins(recipe: Recipe, run: Run) -> list[str]:
    """Return what has changed since a run began, where the originals are still there: for messages."""
    if not run.file(INFO).exists():
        return []
    info, changed = run.info, []
    own = own_network(recipe.network.name)
    if own and own.file.exists() and not (info.network and sha256(read_source(own)) == info.network.sha256):
        changed.append(f"the network {own.label}")
    weights = Path(recipe.init.source) / FLOAT_MODEL
    if recipe.init.source and weights.exists() and not (info.init and sha256(weights.read_bytes()) == info.init.sha256):
        changed.append(f"the weights of {recipe.init.source}")
    return changed
