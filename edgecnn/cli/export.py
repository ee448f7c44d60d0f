"""The command `edgecnn export`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli.console import emit_json, note
from edgecnn.cli.ranges import InputRange, InputScale, InputZeroPoint, stated_range
from edgecnn.cli.workstation import Force, Json, RunArgument, resolve

IMPORTING = "--calibrate, --calibrate-images, --input-range, --input-scale, --input-zero-point, --seed and --out belong to --from"


def flag(name: str, text: str, default: str = "off") -> typer.models.OptionInfo:
    """Return a plain flag's option."""
    return typer.Option(name, help=text, show_default=default)


def export(
    run: RunArgument = None,
    format_: Annotated[str, typer.Option("--format", metavar="tflite|onnx", help="The file's format.")] = "tflite",
    int8: Annotated[bool, flag("--int8", "int8 weights and activations (the default).", "on")] = False,
    float32: Annotated[bool, flag("--float32", "float32, from the float model.")] = False,
    float16: Annotated[
        bool, flag("--float16", "float16, from the float model; input and output stay float32.")
    ] = False,
    int16x8: Annotated[
        bool, flag("--int16x8", "int16 activations, int8 weights (TFLite only), calibrated on training images.")
    ] = False,
    io: Annotated[
        str | None,
        typer.Option(
            metavar="int8|uint8|float32", help="Input and output of an int8 TFLite file.", show_default="int8"
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="A model trained elsewhere, to make a run of: .keras, .h5 or a SavedModel's folder.",
            show_default="none",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="With --from: its images, as for train --data.", show_default="none"),
    ] = None,
    calibrate_images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --from: how many training images.", show_default="500"),
    ] = None,
    input_range: InputRange = None,
    input_scale: InputScale = None,
    input_zero_point: InputZeroPoint = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --from: draws the calibration images.", show_default="1")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --from: the run folder.", show_default="runs/MODEL")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a run's model as a TFLite or ONNX file, into the run folder.

    A quantized file that holds a float tensor within is refused. Where the format's int8 and float32 files are both
    there, they are timed and the faster is named. Beside int8 TFLite, int8 by the method that does not ship (quantized after
    training, or quantization-aware) is exported for verify to measure.

    With --from, the model comes from elsewhere and is quantized after training. A softmax at its end is cut off. Its
    outputs must be the classes of the data in alphabetical order. Give only files that you trust: they can hold code.
    The input range is named, and a warning says where another of the usual ones is far better.

    \b
    Examples:
      edgecnn export --format tflite --int8
      edgecnn export runs/digits --format onnx --float16
      edgecnn export --format tflite --int8 --io uint8
      edgecnn export --from model.keras --calibrate photos/ --format tflite --int8
    """
    chosen = [
        name
        for name, given in {"int8": int8, "float32": float32, "float16": float16, "int16x8": int16x8}.items()
        if given
    ]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{' and --'.join(chosen)} exclude each other: give one.")
    precision = chosen[0] if chosen else "int8"
    if format_ not in ("tflite", "onnx"):
        raise typer.BadParameter(f"--format is tflite or onnx, received {format_!r}.")
    if io is not None and (format_, precision) != ("tflite", "int8"):
        raise typer.BadParameter("--io is for int8 TFLite files: other files have one type of input and output.")
    if io not in (None, "int8", "uint8", "float32"):
        raise typer.BadParameter(f"--io is int8, uint8 or float32, received {io!r}.")
    if (format_, precision) == ("onnx", "int16x8"):
        raise typer.BadParameter("--int16x8 is for --format tflite.")
    importing = (calibrate, calibrate_images, input_range, input_scale, input_zero_point, seed, out)
    if from_ is None and any(value is not None for value in importing):
        raise typer.BadParameter(f"{IMPORTING}.")
    if from_ is not None and (calibrate is None or run is not None):
        raise typer.BadParameter("--from takes --calibrate DATA, and --out in place of a run folder.")
    from edgecnn.recipe import INPUT_RANGES

    given = stated_range(input_range, input_scale, input_zero_point, tuple(INPUT_RANGES))
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.export import export as export_model
    from edgecnn.runs import open_run
    from edgecnn.verify.speed import time_exports

    with ProgressReporter() as reporter:
        dataset = None
        if from_ is None:
            opened = open_run(run)
        else:
            from edgecnn.importing import import_stage

            scale, zero_point = given if isinstance(given, tuple) else (None, None)
            recipe = resolve(
                None,
                None,
                data=calibrate,
                seed=seed,
                input_range=given if given in INPUT_RANGES else None,
                input_scale=scale,
                input_zero_point=zero_point,
            )
            opened, dataset = import_stage(
                from_, recipe, out, reporter, images=calibrate_images, choose_range=given == "auto", force=force
            )
        note(f"run {opened.path}")
        result = export_model(
            opened,
            format_,
            precision,
            io=io,
            force=force,
            report=reporter.note,
            dataset=dataset,
            progress=reporter.working,
        )
        if (format_, precision, io) == ("tflite", "int8", None):
            from edgecnn.export import export_beside

            export_beside(opened, reporter.note, dataset=dataset, progress=reporter.working)
        timing = time_exports(opened, format_)
    if json:
        emit_json({**vars(result), "path": str(result.path), "timing": timing})
    else:
        print(f"{result.path}  {result.size_bytes:,} bytes  SHA-256 {result.sha256}")
        print(timing["text"])
