"""Few images: 50 a class of five CIFAR-10 classes, trained from nothing and from a network that was trained on the other five.

The network to start from is trained once, on all images of the other five classes. Then, for each seed, 50 images a class are drawn
of the first five classes, and a recipe is run twice on them, by turns: from nothing, and with init.source. Both have the same epochs and
ingredients: see COMMON. Accuracy is that of the int8 TFLite file on all test images of the five classes, measured once a run, by
`edgecnn run`'s verify stage. Minutes are those of all training phases; decoding and verification come on top.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/few_images.py --network resnet8 --epochs 30
    … --source runs/five-others        # one that is trained already

The classes to learn are those with even numbers (airplane, bird, deer, frog, ship), the others those that the body knows.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from edgecnn.files import canonical_json, write_atomic
from edgecnn.report.table import text_table
from edgecnn.versions import library_versions, processor

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "few_images.json"
WAYS = ("nothing", "trained")
COMMON = {
    "train.batch_size": 25,
    "train.optimizer": "sgd",
    "train.weight_decay": 0.0005,
    "train.label_smoothing": 0.1,
    "train.shift": 4,
    "data.validation_fraction": 0.1,
    "qat.batch_size": 25,
    "qat.epochs": 4,
}
FROM_NOTHING = {"train.learning_rate": 0.1}
FROM_TRAINED = {"train.learning_rate": 0.1, "init.body_rate": 0.2}
"""The peak rates: from nothing, and of the head alone, then of all by body_rate."""


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="cifar10-jpeg.zip", help="a zip of train/CLASS/* and test/CLASS/*, below $EDGECNN_DATA"
    )
    parser.add_argument("--network", default="resnet8", help="a network of the ladder (default: resnet8)")
    parser.add_argument("--epochs", type=int, default=30, help="of the network to start from (default: 30)")
    parser.add_argument("--few-epochs", type=int, default=100, help="on the few images, from nothing (default: 100)")
    parser.add_argument(
        "--frozen-epochs", type=int, default=20, help="of these, with --init, the head alone (default: 20)"
    )
    parser.add_argument("--images", type=int, default=50, help="images a class (default: 50)")
    parser.add_argument("--seeds", type=int, default=3, help="draws and weights (default: 3)")
    parser.add_argument("--source", type=Path, help="a run on the other five classes (default: train one)")
    parser.add_argument("--limit", type=int, help="images a class of the other five; for a trial (default: all)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    print(
        f"{report['machine']}; {arguments.network}, {arguments.images} images a class, {report['test_images']:,} test images"
    )
    print(text_table(("from", "accuracy, median", "95 % interval", "all seeds", "minutes, median"), rows(report)))
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both ways with every seed and return the figures."""
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    members = listed(archive)
    classes = sorted({name for _, name in members})
    few, others = classes[::2], classes[1::2]
    source, source_run = arguments.source, None
    if source is None:
        data = write_zip(archive, folder / "others.zip", members, others, arguments.limit, seed=0)
        source = folder / "source"
        recipe = COMMON | {"train.batch_size": 128, "qat.batch_size": 128, "qat.epochs": 0, "train.learning_rate": 0.2}
        settings = recipe | {"network.name": arguments.network, "train.epochs": arguments.epochs}
        source_run = trained(data, source, settings)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in range(1, arguments.seeds + 1):
        data = write_zip(archive, folder / f"few-{seed}.zip", members, few, arguments.images, seed)
        for way in WAYS if seed % 2 else WAYS[::-1]:
            settings = COMMON | {"seed": seed, "network.name": arguments.network}
            if way == "nothing":
                settings |= FROM_NOTHING | {"train.epochs": arguments.few_epochs}
            else:
                settings |= FROM_TRAINED | {
                    "init.source": str(source),
                    "init.frozen_epochs": arguments.frozen_epochs,
                    "train.epochs": arguments.few_epochs - arguments.frozen_epochs,
                }
            runs[way].append({"seed": seed} | trained(data, folder / f"{way}-{seed}", settings))
    return {
        "bench": "few_images",
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "versions": library_versions(),
        "data": arguments.data,
        "network": arguments.network,
        "classes": few,
        "source": {"classes": others, "epochs": arguments.epochs, "run": source_run},
        "images_a_class": arguments.images,
        "epochs": {"all": arguments.few_epochs, "frozen": arguments.frozen_epochs},
        "test_images": runs["nothing"][0]["n"],
        "runs": runs,
        "medians": {way: medians(items) for way, items in runs.items()},
    }


def listed(archive: Path) -> dict[tuple[str, str], list[str]]:
    """Return the archive's images by split and class."""
    found: dict[tuple[str, str], list[str]] = {}
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            parts = name.split("/")
            if len(parts) >= 3 and parts[-3] in ("train", "test") and parts[-1]:
                found.setdefault((parts[-3], parts[-2]), []).append(name)
    return found


def write_zip(
    archive: Path,
    path: Path,
    members: Mapping[tuple[str, str], Sequence[str]],
    classes: Sequence[str],
    most: int | None,
    seed: int,
) -> Path:
    """Write a zip of some classes: all of their test images, and `most` training images a class, drawn by the seed."""
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for (split, name), images in sorted(members.items()):
            if name in classes:
                chosen = sorted(images)
                if split == "train" and most is not None:
                    chosen = [chosen[index] for index in random.permutation(len(chosen))[:most]]
                for image in chosen:
                    target.writestr(f"{split}/{name}/{Path(image).name}", source.read(image))
    return path


def trained(data: Path, run: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Take a recipe through `edgecnn run` in a process of its own and return what it says of its int8 TFLite file."""
    recipe = run.with_suffix(".toml")
    recipe.write_text("")
    command = [sys.executable, "-m", "edgecnn", "run", str(recipe), "--data", str(data), "--out", str(run)]
    command += ["--max-drop", "100", "--json"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=run.parent, env=environment)
    parity = json.load(io.BytesIO(done.stdout))["parity"]
    figures = {model["name"]: model for model in parity["models"]}
    return {
        "n": parity["data"]["test_images"],
        "accuracy": figures["tflite-int8"]["accuracy"],
        "accuracy_interval": figures["tflite-int8"]["accuracy_interval"],
        "accuracy_float": figures["float"]["accuracy"],
        "seconds": json.loads((run / "run.json").read_text())["seconds"],
    }


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the run of median accuracy with its interval, and the median of the seconds."""
    middle = sorted(runs, key=lambda run: run["accuracy"])[(len(runs) - 1) // 2]
    return {
        "accuracy": middle["accuracy"],
        "accuracy_interval": middle["accuracy_interval"],
        "seconds": statistics.median(run["seconds"] for run in runs),
    }


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return both ways' figures as text."""
    names = {"nothing": "nothing", "trained": "the other five classes"}
    return [
        (
            names[way],
            f"{found['accuracy']:.2%}",
            " to ".join(f"{end:.2%}" for end in found["accuracy_interval"]),
            ", ".join(f"{run['accuracy']:.2%}" for run in report["runs"][way]),
            f"{found['seconds'] / 60:.2f}",
        )
        for way, found in report["medians"].items()
    ]


if __name__ == "__main__":
    main()
