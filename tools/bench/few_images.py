"""Few images: 10, 20 and 50 a class of five CIFAR-10 classes, by edgecnn's defaults and from nothing.

For each number and seed, images are drawn of five classes, and a recipe is run twice on them: with no option at all, which starts from
ImageNet, and with --network resnet8, which starts from nothing. Accuracy is that of the int8 TFLite file on all test images of the five
classes, measured once a run, by `edgecnn run`'s verify stage. Minutes are those of all training phases; decoding and verification come
on top.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/few_images.py

The classes are those with even numbers: airplane, bird, deer, frog, ship. A bench that was interrupted goes on where it ended.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from resume import about, measured

from edgecnn.files import canonical_json, write_atomic
from edgecnn.report.table import text_table

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
    archive = (Path(os.environ.get("EDGECNN_DATA", ".")) / arguments.data).resolve()
    members = listed(archive)
    classes = sorted({name for _, name in members})[::2]
    context = about("few_images", data=archive.name, classes=classes)
    results = measured(arguments.out, context)
    done = {(result["images"], result["way"], result["seed"]) for result in results}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, images, way in itertools.product(range(1, arguments.seeds + 1), arguments.images, WAYS):
            if (images, way, seed) in done:
                continue
            data = folder / f"few-{images}-{seed}.zip"
            if not data.exists():
                write_zip(archive, data, members, classes, images, seed)
            result = trained(data, folder / f"{way}-{images}-{seed}", {"seed": seed, **WAYS[way]})
            results.append({"images": images, "way": way, "seed": seed} | result)
            print(results[-1], file=sys.stderr, flush=True)
            write_atomic(arguments.out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {results[0]['n']:,} test images")
    print(text_table(HEADINGS, list(rows(results))))
    print(arguments.out)


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


HEADINGS = ("images a class", "from", "int8, median", "95 % interval", "all draws", "float, median", "minutes, median")


def rows(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield the figures of each number of images and way as text; the interval is the median draw's."""
    names = {"nothing": "nothing, resnet8", "imagenet": "ImageNet, no option"}
    for images, way in itertools.product(sorted({result["images"] for result in results}), WAYS):
        draws = [result for result in results if (result["images"], result["way"]) == (images, way)]
        if draws:
            middle = sorted(draws, key=lambda run: run["accuracy"])[(len(draws) - 1) // 2]
            interval = " to ".join(f"{end:.2%}" for end in middle["accuracy_interval"])
            each = ", ".join(f"{run['accuracy']:.2%}" for run in draws)
            float_ = statistics.median(run["accuracy_float"] for run in draws)
            minutes = statistics.median(run["seconds"] for run in draws) / 60
            yield (
                str(images),
                names[way],
                f"{middle['accuracy']:.2%}",
                interval,
                each,
                f"{float_:.2%}",
                f"{minutes:.2f}",
            )


if __name__ == "__main__":
    main()
