"""How good a model a few photos give: accuracy by stratified folds, each photo tested once, and of a few photos a class.

For each network and seed the photos are divided into five stratified folds; each fold is the test split once, and everything else is
left to edgecnn's defaults, the network too where it is "auto". With --per-class K, K photos a class are drawn, and all others are the test
split. Figures are of the int8 TFLite file and of the float model, over all tested photos together: accuracy, agreement, and the drop in
percentage points.

    python tools/bench/photos_by_fold.py --data <trash-photos.zip> --networks auto resnet_100kb
    … --per-class 50 20 --seeds 1 2 3

A bench that was interrupted goes on where it ended.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from resume import about, measured

from edgecnn.data import open_dataset
from edgecnn.export import export, export_path
from edgecnn.files import canonical_json, write_atomic
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import build_recipe, merge, parse_overrides
from edgecnn.report.table import text_table
from edgecnn.runs import FLOAT_MODEL, create_run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.train import train
from edgecnn.train.settle import settle
from edgecnn.verify.answers import contract_of
from edgecnn.verify.int8 import Int8Files

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "photos_by_fold.json"
FOLDS = 5


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a zip of photos, one folder for each class")
    parser.add_argument("--networks", nargs="+", default=["auto"], help="default: %(default)s")
    parser.add_argument("--per-class", type=int, nargs="+", default=[], help="photos a class, in place of folds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), help="default: all five")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE of the recipe")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    out, archive = arguments.out.resolve(), arguments.data.resolve()
    context = about("photos_by_fold", data=archive.name, settings=arguments.settings)
    results = measured(out, context)
    done = {case_of(result) for result in results}
    members = listed(archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        parts = [(0, fold) for fold in arguments.folds] if not arguments.per_class else []
        parts += [(count, 0) for count in arguments.per_class]
        for seed, network, (per_class, fold) in itertools.product(arguments.seeds, arguments.networks, parts):
            if (network, per_class, fold, seed) in done:
                continue
            data = Path(folder) / f"photos-{per_class}-{fold}-{seed}.zip"
            if not data.exists():
                write_split(archive, data, members, tested(members, per_class, fold, seed))
            result = measure(data, network, seed, arguments.settings)
            results.append({"network": network, "per_class": per_class, "fold": fold, "seed": seed} | result)
            print(*row([results[-1]]), sep="  ", file=sys.stderr, flush=True)
            write_atomic(out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {archive.name}, {len(members):,} photos")
    print(text_table(HEADINGS, [row(group) for group in groups(results)]))
    print(out)


def listed(archive: Path) -> list[tuple[str, str]]:
    """Return the zip's photos and their classes, sorted."""
    with zipfile.ZipFile(archive) as file:
        return sorted((name, name.split("/")[-2]) for name in file.namelist() if name.lower().endswith(".jpg"))


def case_of(result: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """Return what distinguishes a training."""
    return result["network"], result["per_class"], result["fold"], result["seed"]


def tested(members: Sequence[tuple[str, str]], per_class: int, fold: int, seed: int) -> set[str]:
    """Return the members that are the test split: a stratified fold, or all but so many of each class."""
    random = np.random.default_rng([seed, 7])
    chosen: set[str] = set()
    for label in sorted({label for _, label in members}):
        names = sorted(name for name, of in members if of == label)
        order = [names[index] for index in random.permutation(len(names))]
        chosen.update(order[per_class:] if per_class else order[fold::FOLDS])
    return chosen


def write_split(archive: Path, path: Path, members: Sequence[tuple[str, str]], test: set[str]) -> None:
    """Write a zip with the folders train/CLASS and test/CLASS."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name, label in members:
            split = "test" if name in test else "train"
            target.writestr(f"{split}/{label}/{Path(name).name}", source.read(name))


def measure(data: Path, network: str, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Train by the defaults, export, and answer the test split; counts of photos, bytes, seconds."""
    tables = merge(
        {"data": {"source": str(data)}, "network": {"name": network}, "seed": seed}, parse_overrides(settings)
    )
    recipe = build_recipe(tables)
    dataset = open_dataset(recipe.data)
    recipe = settle(recipe, dataset)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(recipe, Path(folder) / "run")
        info = train(recipe, dataset, run, lambda progress: None, int8=Int8Files(recipe))
        seconds = time.monotonic() - started
        export(run, "tflite", "int8", dataset=dataset)
        file = export_path(run, "tflite", "int8").read_bytes()
        size = recipe.network.height, recipe.network.width, recipe.network.channels
        test = dataset.load(("test",), height=size[0], width=size[1], channels=size[2], stage="verify")["test"]
        float_model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
        reference = predictor(float_model, recipe.input_scale, recipe.input_zero_point, 50)(test.images)
        logits = Model(open_engine(None, file, "tflite", num_threads=1), contract_of(recipe, size)).logits(test.images)
    wanted, answers = np.argmax(reference, axis=1), np.argmax(logits, axis=1)
    return {
        "trained": recipe.network.name,
        "train": dataset.sizes["train"],
        "n": len(test.classes),
        "float_right": int(np.sum(wanted == test.classes)),
        "int8_right": int(np.sum(answers == test.classes)),
        "agreed": int(np.sum(answers == wanted)),
        "method": info.int8.method if info.int8 else "",
        "bytes": len(file),
        "seconds": round(seconds, 1),
    }


HEADINGS = (
    "network",
    "photos a class",
    "seed",
    "trained on",
    "tested",
    "float",
    "int8",
    "drop",
    "agreement",
    "bytes",
    "min",
)


def groups(results: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the trainings of one network, count of photos and seed together."""

    def group(result: Mapping[str, Any]) -> tuple[str, int, int]:
        return result["network"], -result["per_class"], result["seed"]

    for _, members in itertools.groupby(sorted(results, key=group), group):
        yield list(members)


def row(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the figures of trainings whose test splits have no photo in common, as text."""
    first = results[0]
    count = sum(result["n"] for result in results)
    float_, int8, agreed = (
        sum(result[key] for result in results) / count for key in ("float_right", "int8_right", "agreed")
    )
    photos = str(first["per_class"] or f"{len(results)} folds")
    minutes = np.median([result["seconds"] for result in results]) / 60
    return (first["trained"], photos, str(first["seed"]), f"{first['train']:,}", f"{count:,}", f"{float_:.2%}", f"{int8:.2%}",
            f"{100 * (float_ - int8):+.2f}", f"{agreed:.2%}", f"{first['bytes']:,}", f"{minutes:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
