"""The quality of models trained on few photos with edgecnn's defaults: each photo tested once in five folds, or a few photos per class.

With --per-class K, K photos per class are drawn, and all others form the test split. If an archive has the folders train and test, photos
are drawn from train, and all of test is tested. Figures are for the int8 TFLite file and the float model, over all tested photos together.
The network "simplest" is logistic regression on frozen features, fitted to all photos of train.

    python tools/bench/photos_by_fold.py --data <trash-photos.zip> --networks auto resnet_100kb --seeds 1 2 3
    … --per-class 50 20 --networks auto simplest --seeds 1 2 3
    … --data <cifar10-jpeg.zip> --every 2 --per-class 10 20 50 --networks auto resnet8 --out few_images.json
"""

import itertools
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Results, Row, about, finish, parser
from simplest import SIDE, fitted

FOLDS = 5
SIMPLEST = "simplest"
HEADINGS = (
    "network", "photos per class", "seed", "trained on", "tested", "float", "int8", "drop", "agreement", "bytes", "min"
)  # fmt: skip


class Photo(NamedTuple):
    """A photo in an archive: its name there, its class, and its split ("" if the archive has no splits)."""

    name: str
    label: str
    split: str


def main() -> None:
    """Train, print a table and write the figures."""
    made = parser(__doc__, "photos_by_fold")
    made.add_argument("--data", type=Path, required=True, help="a zip of photos, with one folder per class")
    made.add_argument("--networks", nargs="+", default=["auto"], help="default: %(default)s")
    made.add_argument("--per-class", type=int, nargs="+", default=[], help="photos per class, instead of folds")
    made.add_argument("--every", type=int, default=1, help="take every Nth class (default: all)")
    made.add_argument("--seeds", type=int, nargs="+", default=[1], help="default: 1")
    made.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE of the recipe")
    arguments = made.parse_args()
    archive, out = arguments.data.resolve(), arguments.out.resolve()
    photos = listed(archive, arguments.every)
    context = about("photos_by_fold", data=archive.name, every=arguments.every, settings=arguments.settings)
    results = Results(out, context)
    parts = {"per_class": arguments.per_class or [0], "fold": range(1 if arguments.per_class else FOLDS)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for case in results.missing(seed=arguments.seeds, network=arguments.networks, **parts):
            splits = divided(photos, case["per_class"], case["fold"], case["seed"])
            data = write_split(archive, Path(folder) / "photos.zip", photos, splits)
            if case["network"] == SIMPLEST:
                results.add(**case, **measure_simplest(data, case["seed"]))
            else:
                results.add(**case, **measure(data, case["network"], case["seed"], arguments.settings))
    finish(out, {**context, "results": results.rows}, HEADINGS, map(row, groups(results.rows)))


def listed(archive: Path, every: int = 1) -> list[Photo]:
    """Return the photos of every Nth class of a zip, sorted."""
    with zipfile.ZipFile(archive) as file:
        places = [["", *name.split("/")] for name in sorted(file.namelist()) if name.lower().endswith(".jpg")]
    photos = [
        Photo("/".join(place[1:]), place[-2], place[-3] if place[-3] in ("train", "test") else "") for place in places
    ]
    kept = sorted({photo.label for photo in photos})[::every]
    return [photo for photo in photos if photo.label in kept]


def divided(photos: Sequence[Photo], per_class: int, fold: int, seed: int) -> dict[str, str]:
    """Return the split of each photo in use. The test split is a stratified fold, or the rest after `per_class` photos of each class."""
    random = np.random.default_rng([seed, 7])
    splits: dict[str, str] = {}
    for label in sorted({photo.label for photo in photos}):
        own = [photo.name for photo in photos if (photo.label, photo.split) == (label, "test")]
        names = sorted(photo.name for photo in photos if photo.label == label and photo.split != "test")
        order = [names[index] for index in random.permutation(len(names))]
        test = own or (order[per_class:] if per_class else order[fold::FOLDS])
        splits |= dict.fromkeys(order[: per_class or None] if own else order, "train") | dict.fromkeys(test, "test")
    return splits


def write_split(archive: Path, path: Path, photos: Sequence[Photo], splits: Mapping[str, str]) -> Path:
    """Write a zip with the folders train/CLASS and test/CLASS, and return its path."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name, label, _ in photos:
            if name in splits:
                target.writestr(f"{splits[name]}/{label}/{Path(name).name}", source.read(name))
    return path


def measure(data: Path, network: str, seed: int, settings: Sequence[str]) -> Row:
    """Train with the defaults, export, and classify the test split. Returns counts of photos, bytes, and seconds."""
    from edgecnn.data import open_dataset
    from edgecnn.evaluate.answers import contract_of
    from edgecnn.export import export, export_path
    from edgecnn.networks.predict import model_from_bytes, predictor
    from edgecnn.recipe import build_recipe, merge, parse_overrides
    from edgecnn.runs import FLOAT_MODEL, create_run
    from edgecnn.runtime.engines import open_engine
    from edgecnn.runtime.model import Model
    from edgecnn.stages import Silent
    from edgecnn.stages.last_layer import Int8Files
    from edgecnn.stages.network_choice import choose_network, unkept
    from edgecnn.train.settle import settle
    from edgecnn.train.train import train

    tables = {"data": {"source": str(data)}, "network": {"name": None if network == "auto" else network}, "seed": seed}
    recipe = build_recipe(merge(tables, parse_overrides(settings)))
    dataset = open_dataset(recipe.data)
    started, cpu = time.monotonic(), time.process_time()
    with unkept() as place:
        recipe = settle(choose_network(recipe, dataset, place, Silent()), dataset)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(recipe, Path(folder) / "run")
        info = train(recipe, dataset, run, lambda progress: None, int8=Int8Files(recipe))
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        export(run, "tflite", "int8", dataset=dataset)
        file = export_path(run, "tflite", "int8").read_bytes()
        size = recipe.network.height, recipe.network.width, recipe.network.channels
        test = dataset.load(("test",), height=size[0], width=size[1], channels=size[2], stage="verify")["test"]
        float_model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
        reference = predictor(float_model, recipe.input_scale, recipe.input_zero_point, 50)(test.images)
        logits = Model(open_engine(None, file, "tflite", num_threads=1), contract_of(recipe, size)).logits(test.images)
    expected, answers = np.argmax(reference, axis=1), np.argmax(logits, axis=1)
    return {
        "trained": recipe.network.name,
        "side": recipe.network.height,
        "train": dataset.sizes["train"],
        "n": len(test.classes),
        "float_right": int(np.sum(expected == test.classes)),
        "int8_right": int(np.sum(answers == test.classes)),
        "agreed": int(np.sum(answers == expected)),
        "method": info.int8.method if info.int8 else "",
        "bytes": len(file),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def measure_simplest(data: Path, seed: int) -> Row:
    """Fit the simplest way to all photos of train, and classify the test split. Returns counts of photos, and seconds."""
    from edgecnn.data import open_dataset
    from edgecnn.inspect.look import open_body
    from edgecnn.recipe import build_recipe

    recipe = build_recipe({"data": {"source": str(data)}, "seed": seed})
    started, cpu = time.monotonic(), time.process_time()
    names = "train", "validation", "test"
    splits = open_dataset(recipe.data).load(names, height=SIDE, width=SIDE, channels=3, stage="verify")
    test = splits.pop("test")
    features_of = open_body(SIDE)
    features = features_of(np.concatenate([split.images for split in splits.values()]))
    way = fitted(features, np.concatenate([split.classes for split in splits.values()]))
    answers = way.predict(features_of(test.images))
    return {
        "trained": f"logistic regression, {SIDE}x{SIDE}",
        "side": SIDE,
        "train": len(features),
        "n": len(test.classes),
        "float_right": int(np.sum(answers == test.classes)),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def groups(results: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the trainings with the same network, number of photos and seed together."""

    def group(result: Row) -> tuple[str, int, int]:
        return result["network"], -result["per_class"], result["seed"]

    for _, members in itertools.groupby(sorted(results, key=group), group):
        yield list(members)


def row(results: Sequence[Row]) -> tuple[str, ...]:
    """Return the figures of trainings with disjoint test splits, as text."""
    first, count = results[0], sum(result["n"] for result in results)
    float_share = sum(result["float_right"] for result in results) / count
    int8 = ["", "", "", ""]
    if "bytes" in first:
        right, agreed = (sum(result[key] for result in results) / count for key in ("int8_right", "agreed"))
        int8 = [f"{right:.2%}", f"{100 * (float_share - right):+.2f}", f"{agreed:.2%}", f"{first['bytes']:,}"]
    photos = str(first["per_class"] or f"{len(results)} folds")
    minutes = np.median([result["seconds"] for result in results]) / 60
    counts = (f"{first['train']:,}", f"{count:,}")
    return first["trained"], photos, str(first["seed"]), *counts, f"{float_share:.2%}", *int8, f"{minutes:.1f}"


if __name__ == "__main__":
    main()
