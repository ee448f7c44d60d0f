"""`edgecnn import`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.console import emit_json
from edgecnn.cli.options import Json, option
from edgecnn.cli.recipes import resolve, seen_region

CALIBRATION = "Calibration"


def import_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The model: a .keras or .h5 file, or the folder of a SavedModel.")
    ],
    calibrate: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="The model's images: a dataset's name, or a folder or zip.",
            rich_help_panel=CALIBRATION,
        ),
    ],
    calibrate_images: Annotated[
        int | None, option("How many training images to calibrate with.", "500", CALIBRATION, metavar="N", min=1)
    ] = None,
    region: Annotated[
        str | None,
        option(
            "The part of each image that the model sees, as fractions of the upright image: left, top, width and height.",
            "the whole image",
            CALIBRATION,
            metavar="X,Y,W,H",
        ),
    ] = None,
    seed: Annotated[int | None, option("Seed that draws the calibration images.", "1", CALIBRATION, min=0)] = None,
    input_range: shared.InputRange = None,
    input_scale: shared.InputScale = None,
    input_zero_point: shared.InputZeroPoint = None,
    input_mean: shared.InputMean = None,
    input_std: shared.InputStd = None,
    labels: shared.Labels = None,
    out: Annotated[Path | None, option("The run folder to write.", "runs/MODEL")] = None,
    force: shared.Force = False,
    json: Json = False,
) -> None:
    """Start a run with a model that was trained somewhere else.

    export, verify and bundle then work as for any other run. Its int8 files are quantized after training and calibrated with training
    images.

    The model's outputs must be the classes of the data in alphabetical order. A softmax at its end is removed. Unless you
    give the input range, edgecnn chooses one and prints it. If you give one, a warning says when another usual range does far better.
    Import only files that you trust: they can hold code.

    \b
    Examples:
      edgecnn import model.keras --calibrate photos/
      edgecnn import saved_model/ --calibrate photos.zip --input-range unit --out runs/mine
    """
    from edgecnn.recipe import INPUT_RANGES

    given = shared.stated_range(input_range, input_scale, input_zero_point, input_mean, input_std)
    scale, zero_point = given if isinstance(given, tuple) else (None, None)
    recipe = resolve(
        None,
        None,
        data=calibrate,
        region=seen_region(region),
        seed=seed,
        input_range=given if isinstance(given, str) and given in INPUT_RANGES else None,
        input_scale=scale,
        input_zero_point=zero_point,
    )
    from edgecnn.calibrate.input_range import Stated
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.stages.import_ import import_stage

    with ProgressReporter() as reporter:
        run = import_stage(
            model,
            recipe,
            out,
            reporter,
            images=calibrate_images,
            stated=Stated(input_range=given, labels=shared.stated_labels(labels)),
            force=force,
        )
    info = run.info
    if json:
        from edgecnn.tables import to_json

        emit_json({"run": str(run.path), **to_json(info)})
        return
    size, imported = info.input, info.imported
    assert imported
    print(
        f"{run.path}: {imported.format}, input ({size.height}, {size.width}, {size.channels}), {len(info.data.labels)} classes"
        + ", softmax removed" * imported.softmax_cut
    )
