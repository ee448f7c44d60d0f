"""The representative dataset: training images on which activation ranges are calibrated where training did not set them."""

from dataclasses import replace

import numpy as np

from edgecnn.data import Dataset, Progress, open_dataset
from edgecnn.export.tflite import RepresentativeDataset
from edgecnn.files import sha256
from edgecnn.run_info import RepresentativeInfo
from edgecnn.runs import Run

IMAGES = 500
"""How many, by default."""


def needs_representative_dataset(run: Run, precision: str) -> bool:
    """Tell whether an export of a run takes a representative dataset: int16x8, and int8 that is quantized after training."""
    return precision in ("int16x8", "int8-ptq") or (precision == "int8" and run.int8_method == "ptq")


def balanced(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw images, the same number of each class as far as they go.

    Args:
        classes: int array, shape (n,), of images in an order that does not depend on where they stand.
        count: how many; all where there are fewer.
        seed: of the drawing.

    Returns:
        Indices of images, the classes interleaved.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(classes))
    turn = np.empty(len(order), np.int64)  # 0 for the first image drawn of its class, 1 for the second, …
    for label in np.unique(classes):
        of_class = classes[order] == label
        turn[of_class] = np.arange(np.sum(of_class))
    return order[np.lexsort((classes[order], turn))][:count]


def representative_dataset(
    run: Run, dataset: Dataset | None = None, progress: Progress | None = None
) -> RepresentativeDataset:
    """Draw a run's representative dataset from its training split, and record their hash in `run.json`.

    How many and by which seed stands under "representative_dataset" in `run.json`; else IMAGES and the recipe's seed.

    Args:
        run: a trained or imported run.
        dataset: the run's data, if they are open already.
        progress: called with the images decoded.

    Raises:
        RunError: if the data have changed since the run began.
        DatasetError: if images cannot be read.
    """
    info = run.info
    dataset = dataset or open_dataset(run.recipe.data, progress=progress)
    advice = "Calibrate on the same data, or begin a new run."
    run.require_split("train", dataset.hashes["train"], dataset.name, advice)
    settings = info.representative_dataset or RepresentativeInfo(images=IMAGES, seed=run.recipe.seed)
    split = dataset.load(("train",), **vars(info.input), stage="export", progress=progress)["train"]
    images = split.images[balanced(split.classes, settings.images, settings.seed)]
    drawn = replace(settings, split="train", drawn=len(images), sha256=sha256(images.tobytes()))
    if drawn != info.representative_dataset:
        run.write_info(replace(info, representative_dataset=drawn))
    return RepresentativeDataset(images, run.recipe.input_scale, run.recipe.input_zero_point)
