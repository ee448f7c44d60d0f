"""The representative dataset: training images that calibrate activation ranges if training did not set them."""

from dataclasses import replace

from edgecnn.data import Dataset, Progress, open_run_dataset
from edgecnn.data.dataset import require_split
from edgecnn.data.decoding import balanced
from edgecnn.export.tflite import RepresentativeDataset
from edgecnn.files import sha256
from edgecnn.run_info import RepresentativeInfo
from edgecnn.runs import Run

IMAGES = 500


def needs_representative_dataset(run: Run, precision: str) -> bool:
    """Return whether an export needs a representative dataset: int16x8 does, and int8 that is quantized after training."""
    return precision in ("int16x8", "int8-ptq") or (precision == "int8" and run.int8_method == "ptq")


def representative_dataset(
    run: Run, dataset: Dataset | None = None, progress: Progress | None = None
) -> RepresentativeDataset:
    """Draw a run's representative dataset from its training split, and record its hash in `run.json`.

    `run.json` sets the number of images and the seed under "representative_dataset"; the defaults are IMAGES and the recipe's seed.
    """
    info = run.info
    dataset = dataset or open_run_dataset(run, progress=progress)
    require_split(run, dataset, "train")
    settings = info.representative_dataset or RepresentativeInfo(images=IMAGES, seed=run.recipe.seed)
    split = dataset.load(("train",), **vars(info.input), stage="export", progress=progress)["train"]
    images = split.images[balanced(split.classes, settings.images, settings.seed)]
    drawn = replace(settings, split="train", drawn=len(images), sha256=sha256(images.tobytes()))
    if drawn != info.representative_dataset:
        run.write_info(replace(info, representative_dataset=drawn))
    return RepresentativeDataset(images, run.recipe.input_scale, run.recipe.input_zero_point)
