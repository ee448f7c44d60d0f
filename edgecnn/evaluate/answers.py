"""Running models over images: their answers and their speed, answers of models that did not see the image, and what a bundle's model saw.

Each fold's run stores its answers in `held-out.npz`, and the run of the final model, trained on all images, stores all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from edgecnn.bundle.file import Bundle
from edgecnn.bundle.manifest import InputContract
from edgecnn.data import Dataset, Progress, Split, open_dataset
from edgecnn.data.dataset import Known, known_images, require_split
from edgecnn.data.splits import read_split_groups
from edgecnn.errors import BundleError, DatasetError, RunError, UnknownNameError
from edgecnn.files import csv_rows, csv_text, npz, read_npz, sha256, write_atomic
from edgecnn.labels import SPLITS_CSV
from edgecnn.recipe import DataRecipe, Recipe, build_recipe, merge
from edgecnn.runs import HELD_OUT, IMAGES, LEFT_OUT, Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import engine_text, open_engine
from edgecnn.runtime.model import Model, measure_interleaved
from edgecnn.tables import shown

WARM_UP = 10
REPEATS = 100
CHUNK = 100
"""Images converted and run at a time, so that verification's memory on top of the pixels does not grow with their number."""

Unit = Literal["logit", "score"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """One model's answers on n images.

    `values` is float32 (n, num_classes), in `unit`. `codes` is the quantized output, with `scale` and `zero_point`; None for a float
    model. `call` runs the model on uint8 images, for timing; `ms_per_image` is None until it has been timed.
    """

    name: str
    format: str
    precision: str
    engine: str
    size_bytes: int
    sha256: str
    values: np.ndarray
    unit: Unit = "logit"
    codes: np.ndarray | None = None
    scale: float = 0.0
    zero_point: int = 0
    call: Callable[[np.ndarray], np.ndarray] | None = None
    ms_per_image: float | None = None

    @property
    def scores(self) -> np.ndarray:
        """Softmax scores, float32, shape (n, num_classes)."""
        return self.values if self.unit == "score" else softmax(self.values)


def input_contract(run: Run) -> InputContract:
    size = run.info.input
    return contract_of(run.recipe, (size.height, size.width, size.channels))


def contract_of(recipe: Recipe, shape: tuple[int, ...]) -> InputContract:
    """Return the input contract of a recipe's models; `shape` is (height, width, channels)."""
    height, width, channels = shape
    return InputContract(
        height=height,
        width=width,
        channels=channels,
        fit=recipe.data.fit,
        region=recipe.data.region,
        resampling=recipe.data.resampling,
        scale=recipe.input_scale,
        zero_point=recipe.input_zero_point,
    )


def device_model(data: bytes, format_: str, contract: InputContract, threads: int = 1) -> Model:
    """Open a model file's bytes with the engine that a device would use. An int8 file's answers do not depend on the threads."""
    return Model(open_engine(None, data, format_, num_threads=threads), contract)


def load_test(run: Run, dataset: Dataset, progress: Progress | None = None) -> Split:
    """Load the test split. Raises RunError if it is not the one recorded when the run was trained."""
    require_split(run, dataset, "test")
    return dataset.load(("test",), **vars(run.info.input), stage="verify", progress=progress)["test"]


def export_answers(
    run: Run, path: Path, format_: str, precision: str, images: np.ndarray, progress: Progress
) -> Answers:
    """Run an exported file over images, with the engine that a device would use."""
    data, name = path.read_bytes(), f"{format_}-{precision}"
    model = device_model(data, format_, input_contract(run))
    outputs, given = in_chunks(model.outputs, images, name, progress), model.engine.output
    return Answers(
        name=name,
        format=format_,
        precision=precision,
        engine=engine_text(model.engine),
        size_bytes=len(data),
        sha256=sha256(data),
        values=model.dequantize(outputs),
        codes=outputs if np.issubdtype(outputs.dtype, np.integer) else None,
        scale=given.scale,
        zero_point=given.zero_point,
        call=model.logits,
    )


def in_chunks(
    call: Callable[[np.ndarray], np.ndarray], images: np.ndarray, name: str, progress: Progress
) -> np.ndarray:
    """Call a model on CHUNK images at a time, report progress, and return the concatenated outputs."""
    outputs = []
    for start in range(0, len(images), CHUNK):
        outputs.append(call(images[start : start + CHUNK]))
        progress(name, min(start + CHUNK, len(images)), len(images))
    return np.concatenate(outputs)


def milliseconds(calls: Mapping[str, Callable[[np.ndarray], np.ndarray]], image: np.ndarray) -> dict[str, float]:
    """Return the median time of REPEATS interleaved calls of each function with one uint8 image (1, height, width, channels)."""
    bound = {name: partial(call, image) for name, call in calls.items()}
    timings = measure_interleaved(bound, warmup=WARM_UP, repeats=REPEATS)
    return {name: round(timing.p50_ms, 4) for name, timing in timings.items()}


def timed(answers: Sequence[Answers], image: np.ndarray) -> list[Answers]:
    """Fill in missing `ms_per_image` values with `milliseconds`. The names must be distinct."""
    taken = milliseconds({item.name: item.call for item in answers if item.call and item.ms_per_image is None}, image)
    return [replace(item, ms_per_image=taken.get(item.name, item.ms_per_image)) for item in answers]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Answers to n images: content `hashes` and `sources`, true `classes`, and the `fold` of each, from 1, int (n,).

    `float` and `int8` are logits, float32 (n, num_classes), of the float model and its int8 file. `similarity` compares the int8 file's
    features with those of its known images, float64 (n,); NaN if strangers are not detected.
    """

    hashes: np.ndarray
    sources: np.ndarray
    classes: np.ndarray
    fold: np.ndarray
    float: np.ndarray
    int8: np.ndarray
    similarity: np.ndarray

    @property
    def sha256(self) -> str:
        """SHA-256 over the arrays; a choice based on them records it."""
        parts = (np.ascontiguousarray(value).tobytes() for value in vars(self).values())
        return sha256(b"".join(parts))


def joined_folds(parts: Sequence[HeldOut]) -> HeldOut:
    """Concatenate the answers of all folds, sorted by content hash."""
    whole = {entry.name: np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(HeldOut)}
    order = np.lexsort((whole["classes"], whole["hashes"]))
    return HeldOut(**{name: values[order] for name, values in whole.items()})


def write_held_out(run: Run, held: HeldOut) -> None:
    write_atomic(run.file(HELD_OUT), npz(vars(held)))


def read_held_out(run: Run) -> HeldOut | None:
    """Return a run's held-out answers; None if the file is missing or unusable."""
    arrays = read_npz(run.file(HELD_OUT))
    whole = arrays.keys() == {entry.name for entry in fields(HeldOut)} and len(set(map(len, arrays.values()))) == 1
    return HeldOut(**arrays) if whole else None


def require_held_out(run: Run) -> HeldOut:
    """Return the held-out answers of a run. Raises RunError if they are missing or damaged."""
    held = read_held_out(run)
    if held is None:
        raise RunError(
            f"{run.file(HELD_OUT)}, which holds the answers of the folds, is missing or damaged. Each fold still has its own answers. "
            f"First: edgecnn train --resume --out {run.path}"
        )
    return held


ANSWERS = "folds/answers.csv"
"""The file in a bundle that holds the output of `answers_csv`."""


def read_answers(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Return the rows of a bundle's `answers_csv` by hash; empty if it has none. Raises BundleError if they cannot be read."""
    if ANSWERS not in bundle.files:
        return {}
    try:
        rows = csv_rows(bundle.files[ANSWERS])
        named = {name for row in rows for name in (row["class"], row["int8"])}
    except (ValueError, KeyError) as error:
        raise BundleError(f"{bundle.path}: {ANSWERS} is damaged: {error}.") from None
    if strange := named - set(bundle.manifest.labels):
        raise BundleError(f"{bundle.path}: {ANSWERS} names {shown(min(strange))}, which is not a class of the bundle.")
    return {row["sha256"]: row for row in rows}


def answers_csv(held: HeldOut, labels: Sequence[str]) -> bytes:
    """Return CSV, sorted by hash: each image's hash, class, fold, both models' answers, and int8's score without a temperature."""
    scores = softmax(held.int8).max(axis=1)
    answers = (
        (labels[index] for index in held.float.argmax(axis=1)),
        (labels[index] for index in held.int8.argmax(axis=1)),
    )
    classes = (labels[index] for index in held.classes)
    rows = zip(held.hashes, classes, held.fold.tolist(), *answers, (f"{score:.4f}" for score in scores), strict=True)
    return csv_text(("sha256", "class", "fold", "float", "int8", "score"), rows).encode()


MOST = 20_000
"""Most images whose hashes a bundle lists; each line takes 71 bytes."""

TIED = "tied"
"""The split of a test image that shows the same thing as a training image."""


def taught_images(run: Run) -> dict[str, str] | None:
    """Return the split of each of a user's own images by its hash (TIED for some test images); None for a named dataset."""
    rows = {(split, digest) for split, _, digest in known_images(run).files}
    if not rows:
        return None
    path = run.file(LEFT_OUT)
    tied = {row["sha256"] for row in csv_rows(path.read_bytes())} if path.exists() else set()
    splits = {digest: TIED if digest in tied else split for split, digest in rows if split == "test"}
    return splits | {digest: split for split, digest in sorted(rows) if split != "test"}


def read_taught(bundle: Bundle) -> dict[str, str] | None:
    """Return `taught_images` as stored in a bundle; None if the bundle has no list. Raises BundleError if it cannot be read."""
    if IMAGES not in bundle.files:
        return None
    try:
        return {row["sha256"]: row["split"] for row in csv_rows(bundle.files[IMAGES])}
    except (ValueError, KeyError) as error:
        raise BundleError(f"{bundle.path}: {IMAGES} is damaged: {error}.") from None


def groups_of(run: Run, hashes: Sequence[str]) -> list[str] | None:
    """Return the group of each of a run's images, by hash, if a user named groups."""
    if run.info.data.groups is None:
        return None
    split_groups = read_split_groups(run.file(SPLITS_CSV).read_bytes(), str(run.file(SPLITS_CSV)))
    return [split_groups[one].group for one in hashes]


def images_csv(run: Run) -> bytes | None:
    """Return `taught_images` in a bundle's format, with numbered groups if a user named them; None also for more than MOST images."""
    taught = taught_images(run)
    if taught is None or len(taught) > MOST:
        return None
    images = sorted(taught.items())
    groups = groups_of(run, [one for one, _ in images])
    if groups is None:
        return csv_text(("sha256", "split"), images).encode()
    numbers: dict[str, int] = {}
    rows = (
        (one, split, numbers.setdefault(group, len(numbers) + 1))
        for (one, split), group in zip(images, groups, strict=True)
    )
    return csv_text(("sha256", "split", "group"), rows).encode()


def recorded_data(
    bundle: Bundle, data: str | None, split: str, progress: Progress, note: Callable[[str], None]
) -> Dataset:
    """Open the data a bundle was made from, at the recipe's location or another. Raises DatasetError if the split is missing or changed."""
    provenance = bundle.manifest.provenance
    recipe, recorded = provenance.get("recipe"), provenance.get("data")
    hashes = recorded.get("split_hashes") if isinstance(recorded, dict) else None
    if not isinstance(recipe, dict) or not isinstance(hashes, dict) or split not in hashes:
        raise DatasetError(f"the bundle {bundle.path} does not record which images it was verified with.")
    given = {} if data is None else {"source": data}
    recipe_data: DataRecipe = build_recipe(merge({"data": recipe.get("data", {})}, {"data": given})).data
    images = Known(labels=bundle.manifest.labels, files={})
    try:
        dataset: Dataset = open_dataset(recipe_data, progress=progress, for_training=False, note=note, known=images)
    except UnknownNameError:
        if data is not None:
            raise
        raise DatasetError(
            f"the images that {bundle.path.name} was made from, {recipe_data.source}, are not here. Say where they are: --data photos/"
        ) from None
    if dataset.hashes[split] != hashes[split] and (taught := read_taught(bundle)):
        dataset = dataset.redivided({digest: "test" if part == TIED else part for digest, part in taught.items()})
    if dataset.hashes[split] != hashes[split]:
        raise DatasetError(
            f"{bundle.path.name} was verified with other {split} images than {dataset.name}. Name them with --data."
        )
    return dataset
