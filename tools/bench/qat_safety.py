"""Quantization-aware training with no option: does any epoch answer worse than the calibrated model that it starts from?

Each network is trained on each data with each seed by the default recipe, but for the float phase's epochs, the input's size and
batches, and the share of validation images, which are many enough that a point of agreement is several images. Agreement is that of the
int8 TFLite file with the float model, on validation images: of the calibrated model (epoch 0), of the worst epoch and of the last. A
fall is what the worst epoch lacks, in percentage points. A point of a few hundred images is a few of them, so that the fall is measured
again with --copies changed copies of each, as training changes images: agreement needs no labels.

    EDGECNN_DATA=<folder of trash-photos.zip and cifar10-jpeg.zip> python tools/bench/qat_safety.py
    … --data photos --networks resnet_100kb --seeds 1 --full    # all images, photos at 96x96 and 80 epochs

A run that was interrupted goes on where it ended. Without --full: 5,000 of CIFAR-10's training images, photos at 64x64, and few epochs.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from few_images import listed, write_zip
from resume import about, measured

from edgecnn.data import Split, open_dataset
from edgecnn.data.augment import augment, augment_photos
from edgecnn.files import canonical_json, write_atomic
from edgecnn.networks import NETWORKS
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.networks.pretrained import source_of
from edgecnn.recipe import Recipe, build_recipe, merge
from edgecnn.report.table import text_table
from edgecnn.runs import FLOAT_MODEL, create_run
from edgecnn.train import train
from edgecnn.train.settle import settle
from edgecnn.verify.int8 import Int8Files

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "qat_safety.json"
ALLOWED = 1.0
"""Percentage points that an epoch may fall below the calibrated model."""

PHOTOS, CIFAR = "trash-photos.zip", "cifar10-jpeg.zip"
BRIEF: dict[str, dict[str, Any]] = {
    "digits": {"data": {"source": "digits", "validation_fraction": 0.3}, "train": {"epochs": 15, "batch_size": 32}},
    "photos": {
        "data": {"source": PHOTOS, "validation_fraction": 0.3},
        "network": {"height": 64, "width": 64},
        "train": {"epochs": 15, "batch_size": 32},
    },
    "cifar": {"data": {"source": CIFAR, "validation_fraction": 0.2}, "train": {"epochs": 4, "batch_size": 32}},
}
FULL: dict[str, dict[str, Any]] = {
    "digits": {"data": {"source": "digits", "validation_fraction": 0.3}, "train": {"epochs": 40}},
    "photos": {"data": {"source": PHOTOS, "validation_fraction": 0.3}, "train": {"epochs": 80}},
    "cifar": {"data": {"source": CIFAR}, "train": {"epochs": 10}},
}
FINE_TUNED: dict[str, Any] = {"network": {"height": 160, "width": 160}, "train": {"epochs": 4}}
"""What differs for networks that start from ImageNet, without --full."""

IMAGES = 500
"""Images a class of CIFAR-10, without --full."""


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=tuple(BRIEF), default=list(BRIEF), help="default: all")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--rate", type=float, help="a qat.learning_rate (default: the recipe's own)")
    parser.add_argument(
        "--copies", type=int, default=8, help="changed copies of each validation image (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="all images, their usual size, and more epochs")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    context = about("qat_safety", full=arguments.full, rate=arguments.rate, copies=arguments.copies, allowed=ALLOWED)
    results = measured(arguments.out, context)
    done = {(result["data"], result["network"], result["seed"]) for result in results}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for seed, name, network in itertools.product(arguments.seeds, arguments.data, arguments.networks):
            if (name, network, seed) in done:
                continue
            case = (FULL if arguments.full else BRIEF)[name]
            if name == "cifar" and not arguments.full:
                case = case | {"data": case["data"] | {"source": str(some_of_cifar(Path(folder)))}}
            if source_of(network) and not arguments.full:
                case = merge(case, FINE_TUNED)
            result = measure(case, network, seed, arguments.rate, arguments.copies)
            results.append({"data": name, "network": network, "seed": seed} | result)
            print(*row(results[-1]), sep="  ", file=sys.stderr, flush=True)
            write_atomic(arguments.out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {sorted({result['n'] for result in results})} validation images")
    print(text_table(HEADINGS, [row(result) for result in results]))
    for key, which in (("fall", "validation images"), ("fall_copies", f"{arguments.copies} copies of each as well")):
        falls = [result[key] for result in results]
        beyond = sum(fall > ALLOWED for fall in falls)
        print(
            f"{which}: {beyond} of {len(falls)} trainings fall by more than {ALLOWED:g} point, at most by {max(falls):.2f}"
        )
    print(arguments.out)


def some_of_cifar(folder: Path) -> Path:
    """Write a zip of IMAGES images a class of CIFAR-10, unless it is there, and return its path."""
    path = folder / CIFAR
    if not path.exists():
        archive = Path(os.environ.get("EDGECNN_DATA", ".")) / CIFAR
        members = listed(archive)
        write_zip(archive, path, members, sorted({name for _, name in members}), IMAGES, seed=0)
    return path


class Watched:
    """Answers as int8 files do, and notes what each file answers to the images and to changed copies of them.

    Attributes:
        images: uint8, those of validation first; None until the first answer.
        answers: the class that each file gave to each image, shape (n,), in the order of training: the calibrated model's first.
    """

    def __init__(self, recipe: Recipe, copies: int, mirror: bool) -> None:
        """Take the recipe, how many copies of each image there are to be, and whether a mirrored one keeps its class."""
        self._files, self._recipe, self._copies, self._mirror = Int8Files(recipe), recipe, copies, mirror
        self.images: np.ndarray | None = None
        self.answers: list[np.ndarray] = []

    def fake_quantized(self, model: Any, images: np.ndarray) -> np.ndarray:
        """Answer as `edgecnn.train.best.Int8` says."""
        if self.images is None:
            self.images = np.concatenate([images, *(self._changed(images, number) for number in range(self._copies))])
        logits = self._files.fake_quantized(model, self.images)
        self.answers.append(np.argmax(logits, axis=1))
        return logits[: len(images)]

    def post_training(self, model: Any, train: Split, images: np.ndarray) -> np.ndarray | None:
        """Answer as `edgecnn.train.best.Int8` says."""
        return self._files.post_training(model, train, images)

    def _changed(self, images: np.ndarray, number: int) -> np.ndarray:
        random = np.random.default_rng([self._recipe.seed, number])
        if self._recipe.train.augment == "photo":
            return augment_photos(images, images.shape[1:3], random, flip=self._mirror)
        return augment(images, random, flip=self._mirror, shift=self._recipe.train.shift)

    def agreements(self, reference: np.ndarray) -> list[float]:
        """Return the share of each file's answers that are those of the float model's logits, shape (n, num_classes)."""
        wanted = np.argmax(reference, axis=1)
        return [float(np.mean(answers == wanted)) for answers in self.answers]


def measure(case: Mapping[str, Any], network: str, seed: int, rate: float | None, copies: int) -> dict[str, Any]:
    """Train once and return the figures; agreement and accuracy in [0, 1], the fall in percentage points."""
    tables = {**case, "seed": seed, "network": {**case.get("network", {}), "name": network}}
    if rate is not None:
        tables["qat"] = {"learning_rate": rate}
    recipe = build_recipe(tables)
    dataset = open_dataset(recipe.data)
    recipe = settle(recipe, dataset)
    watched = Watched(recipe, copies, dataset.mirror)
    epochs: list[Any] = []

    def report(progress: Any) -> None:
        if progress.phase == "qat" and progress.int8_agreement is not None:
            epochs.append(progress)

    with tempfile.TemporaryDirectory() as folder:
        run = create_run(recipe, Path(folder) / "run")
        info = train(recipe, dataset, run, report, int8=watched)
        model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    assert watched.images is not None
    changed = watched.agreements(predictor(model, recipe.input_scale, recipe.input_zero_point)(watched.images))
    assert info.int8
    validation = info.int8.validation
    assert validation.calibrated and validation.qat
    start = validation.calibrated.agreement
    agreements = [progress.int8_agreement for progress in epochs]
    return {
        "n": validation.n,
        "learning_rate": info.int8.learning_rate,
        "calibrated": start,
        "lowest": min(agreements),
        "last": agreements[-1],
        "fall": 100 * (start - min(agreements)),
        "calibrated_copies": changed[0],
        "lowest_copies": min(changed[-len(epochs) :]),
        "fall_copies": 100 * (changed[0] - min(changed[-len(epochs) :])),
        "accuracy_float": validation.float.accuracy,
        "accuracy_last": epochs[-1].int8_accuracy,
        "accuracy_kept": validation.qat.accuracy,
        "agreement_kept": validation.qat.agreement,
    }


HEADINGS = (
    "data",
    "network",
    "seed",
    "rate",
    "calibrated",
    "lowest",
    "last",
    "kept",
    "fall",
    "fall, copies",
    "float",
    "int8, last",
    "int8, kept",
)


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one training's figures as text."""
    agreements = (f"{result[key]:.2%}" for key in ("calibrated", "lowest", "last", "agreement_kept"))
    accuracies = (f"{result[key]:.2%}" for key in ("accuracy_float", "accuracy_last", "accuracy_kept"))
    return (result["data"], result["network"], str(result["seed"]), f"{result['learning_rate']:.2g}",
            *agreements, f"{result['fall']:+.2f}", f"{result['fall_copies']:+.2f}", *accuracies)  # fmt: skip


if __name__ == "__main__":
    main()
