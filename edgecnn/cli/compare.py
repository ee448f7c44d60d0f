"""`edgecnn compare`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, check_choice, option


@with_flags
def compare(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            help="The reference: a .tflite, .onnx, .keras or .h5 file, or the folder of a SavedModel.",
        ),
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="B", help="The model to compare with A, in any of these formats.")
    ],
    data: Annotated[str, typer.Option(help="The images: a dataset's name, or a folder or zip.")],
    split: Annotated[str, typer.Option(metavar="test|all", help="Which images to compare on.")] = "test",
    *,
    foreign: shared.Foreign,
    max_drop: Annotated[float, shared.Limits],
    confident: Annotated[bool, shared.Limits],
    min_agreement: Annotated[float | None, shared.Limits],
    out: Annotated[Path | None, option("Write the JSON report to this file.", "none", metavar="FILE")] = None,
    json: Json = False,
) -> None:
    """Compare any two models on the same images.

    Neither needs to come from edgecnn, and no run is needed. Classes are in the alphabetical order of the folders. For an integer
    input, the file's own quantization applies. The exit code is 14 if B fails the gate.

    \b
    Examples:
      edgecnn compare a.tflite b.onnx --data photos/
      edgecnn compare model.keras model.tflite --data photos/ --split all --input-range unit
      edgecnn compare torch.onnx int8.onnx --data photos/ --input-range imagenet --labels classes.txt
    """
    check_choice("--split", split, ("test", "all"))
    stated = shared.stated(foreign)
    from edgecnn.cli.parity import show_report
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.stages.compare import compare_models
    from edgecnn.verify.gate import Gate, require_parity

    with ProgressReporter() as reporter:
        report = compare_models(
            reference,
            candidate,
            data,
            split=split,
            stated=stated,
            gate=Gate(max_drop=max_drop, confident=confident, min_agreement=min_agreement),
            reporter=reporter,
        )
    if out:
        from edgecnn.runs import write_json

        write_json(out, report)
    show_report(report, json)
    require_parity(report)
