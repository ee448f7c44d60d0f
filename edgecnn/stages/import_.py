"""The stage that starts a run from a model that edgecnn did not train."""

import dataclasses
from pathlib import Path

from edgecnn.calibrate.input_range import Labelled, Stated, find_range, line
from edgecnn.data import Dataset, open_dataset
from edgecnn.data.recorded import write_known
from edgecnn.errors import ExportError
from edgecnn.evaluate.answers import contract_of
from edgecnn.export.imported import read_model, refuse_scores, with_range
from edgecnn.export.representative import IMAGES
from edgecnn.files import write_atomic
from edgecnn.labels import plural
from edgecnn.networks.frozen import FrozenModel
from edgecnn.networks.predict import predictor, real_input
from edgecnn.recipe import INPUT_RANGES, Recipe
from edgecnn.run_info import ImportedFrom, InputSize, RepresentativeInfo, RunInfo
from edgecnn.runs import FLOAT_GRAPH, Run, create_run, free_path, locked
from edgecnn.stages.choose import labelled, splits_to_try
from edgecnn.stages.reporter import Reporter
from edgecnn.verify.golden import golden_images
from edgecnn.versions import library_versions

IMPORTED = "imported"

CHECKED = 200  # images on which an ONNX file is compared with ONNX Runtime


def import_stage(
    path: Path,
    recipe: Recipe,
    out: Path | None,
    reporter: Reporter,
    *,
    images: int | None = None,
    size: tuple[int, int] | None = None,
    stated: Stated = Stated(),
    force: bool = False,
) -> Run:
    """Start a run from a model that edgecnn did not train. Exports, verification and bundles then work as for any other run.

    `images` calibrate the int8 and int16x8 exports. A range with a mean and a deviation per channel becomes a part of the model, which
    then reads -1 to 1.

    Raises:
        ExportError: if the model cannot be read, it has another number of outputs than labels, or ends in a softmax that
            cannot be removed.
    """
    reporter.note(f"reading {path}")
    model, what, softmax_cut, check = read_model(path, size)
    dataset = open_dataset(recipe.data, progress=reporter.working, note=reporter.note)
    dataset.check()
    if stated.labels:
        dataset.order_classes(stated.labels)
    classes = model.output_shape[1]
    if classes != len(dataset.labels):
        raise ExportError(
            f"{path} has {classes} outputs, but {dataset.name} has {len(dataset.labels)} classes: "
            f"{', '.join(dataset.labels[:8])} … Expected one output per class, in this order. "
            "If the model has more or other classes, name its outputs in order with --labels FILE."
        )
    height, width, channels = model.input_shape[1:]
    network = dataclasses.replace(recipe.network, name=IMPORTED, height=height, width=width, channels=channels)
    recipe = dataclasses.replace(recipe, name=path.stem, network=network)
    tried = labelled_images(model, dataset, reporter)
    reading = find_range(lambda pixels, *numbers: predictor(model, *numbers)(pixels), None, tried, stated.input_range)
    if check:
        pixels = tried.images[:CHECKED]
        difference = check(real_input(pixels, *reading.numbers).numpy())
        reporter.note(
            f"{path.name}: answers {plural(len(pixels), 'image')} as ONNX Runtime does "
            f"(largest difference {difference:.0e} of the largest output)"
        )
    if reading.mean is not None:
        centred = INPUT_RANGES[network.input_range]
        model = with_range(model, reading.numbers, centred)
    elif reading.name in INPUT_RANGES:
        recipe = dataclasses.replace(recipe, network=dataclasses.replace(network, input_range=reading.name))
    reporter.note(line(path.name, reading))
    if reading.warning:
        reporter.note(f"WARNING: {path.name}: {reading.warning}")
    require_logits(model, recipe)
    folder = out or free_path(path.stem, force)
    with locked(folder):
        run = create_run(recipe, folder, force=force)
        write_atomic(run.file(FLOAT_GRAPH), model.to_bytes())
        run.write_info(
            RunInfo(
                state="imported",
                data=dataset.info({}),
                input=InputSize(height=height, width=width, channels=channels),
                parameters=model.count_params(),
                versions=library_versions(),
                imported=ImportedFrom(
                    file=path.name, format=what, softmax_cut=softmax_cut, range=line(path.name, reading)
                ),
                representative_dataset=RepresentativeInfo(images=images or IMAGES, seed=recipe.seed),
            )
        )
        write_known(run, dataset)
    run.make_latest()
    return run


def labelled_images(model: FrozenModel, dataset: Dataset, reporter: Reporter) -> Labelled:
    """Return images outside the test split, at the model's size, to try the usual input ranges on."""
    size = dict(zip(("height", "width", "channels"), model.input_shape[1:], strict=True))
    return labelled(dataset.load(splits_to_try(dataset), **size, stage="import", progress=reporter.working))


def require_logits(model: FrozenModel, recipe: Recipe) -> None:
    images = golden_images(contract_of(recipe, model.input_shape[1:]))
    refuse_scores(predictor(model, recipe.input_scale, recipe.input_zero_point)(images))
