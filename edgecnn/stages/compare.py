"""Compare any two models on any images, without a run."""

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.calibrate.input_range import InputRange, Labelled, Stated, find_range
from edgecnn.data import Dataset, Progress, Split, open_dataset
from edgecnn.data.decoding import rooms
from edgecnn.errors import DatasetError
from edgecnn.evaluate.answers import Answers, in_chunks, timed
from edgecnn.evaluate.statistics import is_scores
from edgecnn.recipe import build_recipe
from edgecnn.stages import Reporter, Silent
from edgecnn.stages.choose import labelled, splits_to_try
from edgecnn.verify.model_files import ModelFile, open_model_file
from edgecnn.verify.parity import Basis, compared, judged
from edgecnn.verify.parity_report import Data, Gate, ModelRange, Report, SplitName

FAR_BELOW = 1 / 3  # of the way from guessing to perfect: below it, a reference is doubtful

SPLITS = {"test": ("test",), "all": ("train", "validation", "test")}


def compare_models(
    reference: Path,
    candidate: Path,
    data: str,
    *,
    split: SplitName = "test",
    stated: Stated = Stated(),
    gate: Gate = Gate(),
    reporter: Reporter = Silent(),
) -> Report:
    """Compare two models on the same images, each with its own input type and size: one comparison, of kind "models".

    The files are as for `open_model_file`; the data's classes follow the order of the models' outputs. A file's own quantization turns the
    stated value of a pixel into codes; "auto" chooses for each model, on validation and training images: see `find_range`.
    Raises EngineError if a file cannot be opened; DatasetError if the images make no dataset, none are in the split, the number of classes
    is not that of a model's outputs, or a class is not among the labels.
    """
    paths, opened = (reference, candidate), [open_model_file(reference), open_model_file(candidate)]
    recipe = build_recipe({"data": {"source": data, "fit": stated.fit, "resampling": stated.resampling}})
    dataset = open_dataset(recipe.data, progress=reporter.working, for_training=False, note=reporter.note)
    if stated.labels:
        dataset.order_classes(stated.labels)
    for line in dataset.left_out():
        reporter.note(line)
    if not sum(dataset.sizes[name] for name in SPLITS[split]):
        none = f"{dataset.name}: none of its {sum(dataset.sizes.values())} images is in the test split."
        raise DatasetError(f"{none} Compare on all of them: --split all")
    for path, model in zip(paths, opened, strict=True):
        if model.output.shape[1] != len(dataset.labels):
            raise DatasetError(
                f"{path} has {model.output.shape[1]} outputs, and {dataset.name} has {len(dataset.labels)} classes "
                f"({', '.join(dataset.labels[:4])} …). Both must list the same classes in the same order. "
                "If the models have more or other classes, name their outputs in order with --labels FILE."
            )
    (one, one_labelled), (other, other_labelled) = (
        images_for(model, dataset, split, reporter.working) for model in opened
    )
    splits = in_both(one, other)
    ranges = [
        find_range(model.values, model.input, images, stated.input_range)
        for model, images in zip(opened, (one_labelled, other_labelled), strict=True)
    ]
    answers = []
    for name, model, images, chosen in zip(names(*paths), opened, splits, ranges, strict=True):
        answers += timed([model_answers(name, model, images, chosen, reporter.working)], images.images[:1])
    comparison = compared("models", answers[0], answers[1], splits[0], dataset.labels, gate)
    described = Data(
        name=dataset.name,
        title=dataset.title,
        split=split,
        test_images=len(splits[0].classes),
        images=sum(dataset.sizes.values()),
        own_test="test" in dataset.given,
        test_sha256=dataset.hashes["test"] if split == "test" else dataset.fingerprint,
    )
    report = judged(
        None, described, gate, answers, [comparison], Basis(splits[0], dataset.labels, counts=dataset.class_counts())
    )
    given = zip(answers, ranges, strict=True)
    return replace(
        report,
        input_ranges=tuple(ModelRange(model=item.name, **vars(choice)) for item, choice in given),
        doubts=report.doubts + doubts(answers[0], splits[0].classes, len(dataset.labels)),
    )


def doubts(reference: Answers, classes: np.ndarray, count: int) -> tuple[str, ...]:
    accuracy = float(np.mean(np.argmax(reference.values, axis=1) == classes))
    floor = 1 / count + FAR_BELOW * (1 - 1 / count)
    if accuracy >= floor:
        return ()
    return (
        f"{reference.name} classifies {accuracy:.1%} of {len(classes):,} images correctly, which is little for a model of these {count} "
        f"classes (below {floor:.0%}): it probably does not see them as it did in training. Check the input range, RGB or BGR, and the "
        "order of the classes.",
    )


def names(reference: Path, candidate: Path) -> tuple[str, str]:
    if reference.name != candidate.name:
        return reference.name, candidate.name
    if reference != candidate:
        return str(reference), str(candidate)
    return f"{reference.name} (reference)", f"{candidate.name} (candidate)"


def images_for(model: ModelFile, dataset: Dataset, split: str, progress: Progress) -> tuple[Split, Labelled]:
    """Load the images of a comparison, and those to try input ranges on, at the model's input size; the data's own if it is open."""
    sides = zip(("height", "width", "channels"), model.input.shape[1:], dataset.shape, strict=True)
    size: dict[str, Any] = {name: own if side == -1 else side for name, side, own in sides}
    tried = splits_to_try(dataset)
    requested = tuple(dict.fromkeys((*SPLITS[split], *tried)))
    loaded = dataset.load(requested, **size, stage="verify", progress=progress)
    compared_images = joined_splits([loaded[name] for name in SPLITS[split]], dataset.name)
    to_try = labelled({name: loaded[name] for name in tried}, compared_images)
    return compared_images, replace(to_try, labels=tuple(dataset.labels))


def joined_splits(parts: Sequence[Split], name: str, kept: Container[str] | None = None) -> Split:
    """Join splits of a dataset, without the images that are not among the `kept` sources.

    A whole one is returned unchanged, since a copy would take as much memory again.
    """
    keeping = [
        np.array([row for row, source in enumerate(part.sources) if kept is None or source in kept], np.int64)
        for part in parts
    ]
    if len(parts) == 1 and len(keeping[0]) == len(parts[0].sources):
        return parts[0]
    rows = list(zip(parts, keeping, strict=True))
    (images,) = rooms(name, [sum(map(len, keeping))], parts[0].images.shape[1:])
    start = 0
    for part, keep in rows:
        room = images[start : start + len(keep)]
        np.take(part.images, keep, axis=0, out=room, mode="clip")  # "raise" would buffer them
        start += len(keep)
    return Split(
        images=images,
        classes=np.concatenate([part.classes[keep] for part, keep in rows]),
        sources=tuple(part.sources[row] for part, keep in rows for row in keep),
    )


def in_both(one: Split, other: Split) -> tuple[Split, Split]:
    """Keep the images that both hold: at another size, different images may be exact duplicates across splits."""
    shared = set(one.sources) & set(other.sources)
    return joined_splits([one], "compared images", shared), joined_splits([other], "compared images", shared)


def model_answers(name: str, model: ModelFile, split: Split, given: InputRange, progress: Progress) -> Answers:

    def call(pixels: np.ndarray) -> np.ndarray:
        return model.outputs(pixels, *given.numbers)

    outputs = in_chunks(call, split.images, name, progress)
    values = model.dequantize(outputs)
    quantized = bool(model.output.scale)
    return Answers(
        name=name,
        format=model.format,
        precision=str(model.input.dtype),
        engine=model.engine,
        size_bytes=model.size_bytes,
        sha256=model.sha256,
        values=values,
        unit="score" if is_scores(values, model.output.scale) else "logit",
        codes=outputs if quantized else None,
        scale=model.output.scale,
        zero_point=model.output.zero_point,
        call=call,
    )
