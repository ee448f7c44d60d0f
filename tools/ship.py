"""Put a finished run's bundle and card into models/NAME, if the run was made from models/NAME/recipe.toml and its bundle is intact.

With --only, the bundle contains only the models of those precisions.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_dataset
from edgecnn.files import write_atomic
from edgecnn.recipe import build_recipe, load_recipe, to_tables
from edgecnn.runs import CARD, open_run, without_folders
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.train.settle import settle

MODELS = Path(__file__).parent.parent / "models"


def ship(run_path: Path, name: str, only: Sequence[str] = ()) -> list[Path]:
    """Copy a run's bundle and card to models/NAME and return their paths.

    Raises:
        DatasetError: if the recipe's data, on which its automatic settings depend, are not available.
        SystemExit: if the run was made from another recipe.
    """
    run = open_run(run_path)
    recipe = build_recipe(load_recipe(MODELS / name / "recipe.toml"))
    recipe = settle(recipe, open_dataset(recipe.data))
    bundle = read_bundle(bundle_path(run))
    if bundle.manifest.provenance["recipe"] != to_tables(without_folders(recipe)):
        sys.exit(f"{run.path} was not made by models/{name}/recipe.toml")
    shipped, card = MODELS / name / f"{name}.edgecnn", MODELS / name / CARD
    if only:
        bundle_stage(run, shipped, only=only, force=True)
    else:
        write_atomic(shipped, bundle_path(run).read_bytes())
    write_atomic(card, run.read(CARD, "bundle"))
    return [shipped, card]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("name", help="the folder in models/")
    parser.add_argument("--only", action="append", default=[], help="a precision to include (default: all)")
    arguments = parser.parse_args()
    for path in ship(arguments.run, arguments.name, arguments.only):
        print(path)
