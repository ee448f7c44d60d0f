"""`edgecnn import`."""

from pathlib import Path
from typing import ClassVar

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Force, Json, emit_json, option, with_flags
from edgecnn.cli.recipes import resolve, stated_values
from edgecnn.tables import Group, to_json
from edgecnn.tables import option as setting


def read_layers(text: str) -> int | tuple[str, ...]:
    """Read a number of layers, or their names; ValueError for neither."""
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if not names or text.strip() == "0":
        raise ValueError(f"received {text!r}, expected a number of layers from 1, or names of layers")
    return int(text) if text.strip().isdigit() else names


class Calibration(Group):
    """How its int8 files are calibrated."""

    heading: ClassVar = "Calibration"
    calibrate_images: int | None = setting(
        None, "Number of training images to calibrate with.", shown="500", metavar="N", low=1
    )
    region: list[float] | None = setting(
        None,
        "The part of each image that the model sees, as fractions of the upright image: left, top, width and height.",
        shown="the whole image",
        metavar="X,Y,W,H",
        typed=None,
        read=shared.read_seen,
        keys=("data.region",),
    )
    size: tuple[int, int] | None = setting(
        None,
        "The model's input in pixels, width x height, if an ONNX file leaves it open. One number is the side of a square.",
        shown="the file's",
        metavar="WxH",
        typed=None,
        read=shared.read_sides,
    )
    qat_epochs: int | None = setting(
        None,
        "Make the int8 model answer more like the imported one: round its weights better, then train it for up to N epochs on the "
        "training images, without their labels. Validation images choose what ships.",
        shown="none",
        metavar="N",
        low=0,
        keys=("qat.epochs",),
    )
    float_layers: int | tuple[str, ...] = setting(
        (),
        "Layers of the int8 TFLite file that stay in float: their names, or the N that edgecnn layers ranks "
        "worst. For networks that training cannot help; bytes and milliseconds before and after are printed.",
        shown="none",
        metavar="N|NAME,…",
        typed=None,
        read=read_layers,
    )
    unseen: str | None = setting(
        None,
        "A folder or zip of images that did not train the model, to judge it on. The images of --calibrate then only calibrate and choose.",
        shown="a fifth of the images of --calibrate",
        metavar="DATA",
        keys=("data.unseen",),
    )
    seed: int | None = setting(None, "Seed for drawing the calibration images.", shown="1", low=0, keys=("seed",))


@with_flags
def import_(
    model: Path = typer.Argument(
        ..., metavar="MODEL", help="The model: an .onnx, .keras, .h5 or .tflite file, or the folder of a SavedModel."
    ),
    calibrate: str = typer.Option(
        ...,
        metavar="DATA",
        help="The model's images: a dataset's name, or a folder or zip.",
        rich_help_panel=Calibration.heading,
    ),
    *,
    calibration: Calibration,
    foreign: shared.Foreign,
    reference: Path | None = option(
        None,
        "The float model that a quantized MODEL must answer like: a .tflite, .onnx, .keras or .h5 file, or a SavedModel.",
        "none",
        None,
        metavar="FLOAT",
    ),
    out: Path | None = option(None, "The run folder to write.", "runs/MODEL"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Start a run with a model that was trained elsewhere.

    export, verify and bundle then work as for any other run. Its int8 files are quantized after training and calibrated with training
    images, or trained to answer like the model, with --qat-epochs.

    A TFLite file, and a quantized ONNX file, ship as they are, except for their ends: verify and bundle follow, without export.

    The model's outputs must be the classes of the data in alphabetical order. A softmax at its end is removed. Unless you
    give the input range, edgecnn chooses one and prints it. If you give one, it warns when another usual range does far better.
    Import only files that you trust: they can contain code.

    \b
    Examples:
      edgecnn import model.onnx --calibrate photos/
      edgecnn import model.onnx --calibrate photos/ --qat-epochs 8
      edgecnn import model.onnx --calibrate photos/ --qat-epochs 0 --float-layers 3
      edgecnn import saved_model/ --calibrate photos.zip --input-range unit --out runs/mine
      edgecnn import int8.tflite --reference model.onnx --calibrate photos/
    """
    from edgecnn.recipe import INPUT_RANGES

    stated = shared.stated(foreign)
    keys = {"data.source": calibrate, **stated_values(calibration)}
    match stated.input_range:
        case (scale, zero_point):
            keys |= {"network.input_scale": scale, "network.input_zero_point": zero_point}
        case str(name) if name in INPUT_RANGES:
            keys["network.input_range"] = name
    recipe = resolve(None, None, keys)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.stages.import_ import import_given, import_stage, ships_unchanged

    ships = ships_unchanged(model)
    making = {
        "--qat-epochs": calibration.qat_epochs,
        "--calibrate-images": calibration.calibrate_images,
        "--size": calibration.size,
        "--float-layers": calibration.float_layers or None,
    }
    if ships and (unused := [name for name, value in making.items() if value is not None]):
        raise typer.BadParameter(f"{model} ships as it is, so {unused[0]} has no use: leave it out.")
    if calibration.float_layers and calibration.qat_epochs:
        raise typer.BadParameter(
            "layers in float are for networks that training cannot help: give --qat-epochs 0.",
            param_hint="--float-layers",
        )
    if reference and not ships:
        raise typer.BadParameter(f"--reference is for a quantized file, and {model} is a float model: leave it out.")
    with ProgressReporter() as reporter:
        if ships:
            run = import_given(model, reference, recipe, out, reporter, stated=stated, force=force)
        else:
            run = import_stage(
                model,
                recipe,
                out,
                reporter,
                images=calibration.calibrate_images,
                size=calibration.size and calibration.size[::-1],
                stated=stated,
                float_layers=calibration.float_layers,
                force=force,
            )
    info = run.info
    if json:
        emit_json({"run": str(run.path), **to_json(info)})
        return
    size, imported = info.input, info.imported
    assert imported
    print(
        f"{run.path}: {imported.format}, input ({size.height}, {size.width}, {size.channels}), {len(info.data.labels)} classes"
        + ", softmax removed" * imported.softmax_cut
    )
