"""Put a finished run's bundle and card into models/NAME, if the run was made by models/NAME/recipe.toml and its bundle is whole."""

import argparse
import sys
from pathlib import Path

from edgecnn.bundle.read import read_bundle
from edgecnn.files import write_atomic
from edgecnn.pipeline import bundle_path
from edgecnn.recipe import build_recipe, load_recipe, to_tables
from edgecnn.runs import CARD, open_run

MODELS = Path(__file__).parent.parent / "models"


def ship(run_path: Path, name: str) -> list[Path]:
    """Copy a run's bundle and card to models/NAME and return their paths.

    Raises:
        SystemExit: if the run was made by another recipe.
    """
    run = open_run(run_path)
    recipe = build_recipe(load_recipe(MODELS / name / "recipe.toml"))
    bundle = read_bundle(bundle_path(run))
    if bundle.manifest.provenance["recipe"] != to_tables(recipe):
        sys.exit(f"{run.path} was not made by models/{name}/recipe.toml")
    files = {f"{name}.edgecnn": bundle_path(run).read_bytes(), CARD: run.read(CARD, "bundle")}
    for file, content in files.items():
        write_atomic(MODELS / name / file, content)
    return [MODELS / name / file for file in files]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("name", help="the folder in models/")
    arguments = parser.parse_args()
    for path in ship(arguments.run, arguments.name):
        print(path)
