"""The stage that begins a run with a model that was trained elsewhere."""

import dataclasses
from pathlib import Path

from edgecnn.bundle.manifest import InputContract
from edgecnn.data import Dataset, open_dataset
from edgecnn.errors import ExportError
from edgecnn.export.calibration import IMAGES
from edgecnn.export.elsewhere import read_model, refuse_scores
from edgecnn.files import write_atomic
from edgecnn.networks.predict import predictor
from edgecnn.pipeline import Reporter
from edgecnn.recipe import Recipe
from edgecnn.runs import FLOAT_GRAPH, Run, create_run, free_path
from edgecnn.train.train import describe_data
from edgecnn.verify.golden import golden_images
from edgecnn.verify.ranges import AUTO, find_range, labelled, line, splits_to_try
from edgecnn.versions import library_versions

IMPORTED = "imported"
"""Name of the network in the recipe of such a run."""


def import_stage(
    path: Path,
    recipe: Recipe,
    out: Path | None,
    reporter: Reporter,
    *,
    images: int | None = None,
    choose_range: bool = False,
    force: bool = False,
) -> tuple[Run, Dataset]:
    """Make a run of a model that was trained elsewhere; every export, verification and bundle then works as for any other run.

    Args:
        path: the model; see `edgecnn.export.elsewhere.read_model`.
        recipe: says where the images are and what the model's input means. Its outputs are the labels in their order.
        out: the run folder; runs/NAME of the model by default.
        reporter: told of progress.
        images: how many images calibrate its int8 and int16x8 exports; 500 by default.
        choose_range: whether the input range is chosen on validation and training images; else it is the recipe's.
        force: whether a run there is replaced.

    Returns:
        The run and its data.

    Raises:
        ExportError: if the model cannot be read, has another number of outputs than there are labels, or ends in a softmax
            that cannot be cut off.
        OutputExistsError, OutputError, DatasetError: as the parts do.
    """
    reporter.note(f"reading {path}")
    model, what, softmax_cut = read_model(path)
    dataset = open_dataset(recipe.data, progress=reporter.working)
    classes = model.output_shape[1]
    if classes != len(dataset.labels):
        raise ExportError(
            f"{path} has {classes} outputs and {dataset.name} {len(dataset.labels)} classes: "
            f"{', '.join(dataset.labels[:8])} … Expected one output a class, in this order."
        )
    height, width, channels = model.input_shape[1:]
    network = dataclasses.replace(recipe.network, name=IMPORTED, height=height, width=width, channels=channels)
    recipe = dataclasses.replace(recipe, name=path.stem, network=network)
    found = find_range(
        lambda pixels, scale, zero_point: predictor(model, scale, zero_point)(pixels),
        None,
        labelled(
            dataset.load(
                splits_to_try(dataset),
                height=height,
                width=width,
                channels=channels,
                stage="import",
                progress=reporter.working,
            )
        ),
        AUTO if choose_range else (recipe.input_scale, recipe.input_zero_point),
    )
    if choose_range:
        recipe = dataclasses.replace(recipe, network=dataclasses.replace(network, input_range=found.name))
    reporter.note(line(path.name, found))
    if found.warning:
        reporter.note(f"WARNING: {path.name}: {found.warning}")
    scale, zero_point = recipe.input_scale, recipe.input_zero_point
    shape = InputContract(
        height=height, width=width, channels=channels, fit=recipe.data.fit, scale=scale, zero_point=zero_point
    )
    refuse_scores(predictor(model, scale, zero_point)(golden_images(shape)))
    run = create_run(recipe, out or free_path(path.stem), force=force)
    write_atomic(run.file(FLOAT_GRAPH), model.to_bytes())
    run.write_info(
        {
            "state": "imported",
            "data": describe_data(dataset, {}),
            "input": {"height": height, "width": width, "channels": channels},
            "parameters": model.count_params(),
            "imported": {
                "file": path.name,
                "format": what,
                "softmax_cut": softmax_cut,
                "range": line(path.name, found),
            },
            "calibration": {"images": images or IMAGES, "seed": recipe.seed},
            "versions": library_versions(),
        }
    )
    run.make_latest()
    cut = ", its softmax cut off" if softmax_cut else ""
    reporter.note(f"{path.name}: {what}, input ({height}, {width}, {channels}), {classes} classes{cut}")
    return run, dataset
