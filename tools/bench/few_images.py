"""Few images: 10, 20 and 50 a class of five CIFAR-10 classes, by edgecnn's defaults and from nothing.

For each number and seed, images are drawn of five classes, and a recipe is run twice on them: with no option at all, which starts from
ImageNet, and with --network resnet8, which starts from nothing. Accuracy is that of the int8 TFLite file on all test images of the five
classes, measured once a run, by `edgecnn run`'s verify stage. Minutes are those of all training phases; decoding and verification come
on top.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/few_images.py

The classes are those with even numbers: airplane, bird, deer, frog, ship.
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
WAYS: Mapping[str, Mapping[str, Any]] = {"imagenet": {}, "nothing": {"network.name": "resnet8"}}


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="cifar10-jpeg.zip", help="a zip of train/CLASS/* and test/CLASS/*, below $EDGECNN_DATA"
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[10, 20, 50], help="images a class (default: 10 20 50)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="draws and weights (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    print(f"{report['machine']}; {report['test_images']:,} test images")
    print(
        text_table(
            ("images a class", "from", "accuracy, median", "95 % interval", "all draws", "minutes, median"),
            rows(report),
        )
    )
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both ways with every number of images and seed, and return the figures."""
    archive = Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data
    members = listed(archive)
    classes = sorted({name for _, name in members})[::2]
    cases = []
    for images in arguments.images:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for seed in range(1, arguments.seeds + 1):
            data = write_zip(archive, folder / f"few-{images}-{seed}.zip", members, classes, images, seed)
            for way, settings in WAYS.items():
                runs[way].append(
                    {"seed": seed} | trained(data, folder / f"{way}-{images}-{seed}", {"seed": seed, **settings})
                )
                print(images, way, runs[way][-1], file=sys.stderr, flush=True)
        cases.append({"images": images, "runs": runs, "medians": {way: medians(items) for way, items in runs.items()}})
    return {
        "bench": "few_images",
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "versions": library_versions(),
        "data": arguments.data,
        "classes": classes,
        "test_images": cases[0]["runs"]["imagenet"][0]["n"],
        "cases": cases,
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
    """Return the figures as text."""
    names = {"nothing": "nothing, resnet8", "imagenet": "ImageNet, no option"}
    return [
        (
            str(case["images"]),
            names[way],
            f"{found['accuracy']:.2%}",
            " to ".join(f"{end:.2%}" for end in found["accuracy_interval"]),
            ", ".join(f"{run['accuracy']:.2%}" for run in case["runs"][way]),
            f"{found['seconds'] / 60:.2f}",
        )
        for case in report["cases"]
        for way, found in case["medians"].items()
    ]


if __name__ == "__main__":
    main()
