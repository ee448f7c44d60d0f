"""`edgecnn compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Json, check_choice, emit_json, note, option, with_flags

if TYPE_CHECKING:
    from edgecnn.verify.against import Rule


@with_flags
def compare(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            help="The reference: a .tflite, .onnx, .keras or .h5 file, the folder of a SavedModel, or a bundle.",
        ),
    ],
    candidate: Annotated[
        Path,
        typer.Argument(metavar="B", help="The model to compare with A, in any of these formats; a bundle if A is one."),
    ],
    data: Annotated[str, typer.Option(help="The images: a dataset's name, or a folder or zip.")],
    split: Annotated[str, typer.Option(metavar="test|all", help="Which images to compare on.")] = "test",
    *,
    foreign: shared.Foreign,
    max_drop: Annotated[float, shared.Limits],
    confident: Annotated[bool, shared.Limits],
    min_agreement: Annotated[float | None, shared.Limits],
    renamed: Annotated[list[str] | None, shared.Replacing],
    strict: Annotated[bool, shared.Replacing],
    out: Annotated[
        Path | None,
        option(
            "Write the JSON report to this file; for bundles, also a page with pictures next to it.",
            "none",
            metavar="FILE",
        ),
    ] = None,
    full: shared.Full = False,
    json: Json = False,
) -> None:
    """Compare any two models on the same images.

    Neither needs to come from edgecnn, and no run is needed. Classes are the folders in alphabetical order. For an integer input, the
    file's own quantization applies. The exit code is 14 if B fails the gate.

    Two bundles are compared as old and new: both answer the photos that neither learnt from, each with everything in its bundle. The exit
    code is 36 if B is worse, and 37 if no photo can show it, or too few for --strict.

    \b
    Examples:
      edgecnn compare a.tflite b.onnx --data photos/
      edgecnn compare model.keras model.tflite --data photos/ --split all --input-range unit
      edgecnn compare torch.onnx int8.onnx --data photos/ --input-range imagenet --labels classes.txt
      edgecnn compare old.edgecnn new.edgecnn --data photos/
    """
    bundles = [path for path in (reference, candidate) if path.suffix == ".edgecnn"]
    if len(bundles) == 1:
        raise typer.BadParameter(
            f"{bundles[0]} is a bundle, and the other is not. Name two bundles, or two model files."
        )
    if bundles:
        limits = max_drop != shared.Limits.max_drop or min_agreement is not None
        if limits or split != "test" or foreign != shared.Foreign():
            raise typer.BadParameter(
                "--split, --max-drop, --min-agreement, --labels and the input range are for model files: bundles record their input and "
                "the photos that they were trained on."
            )
        rule = shared.rule(strict, confident)
        against(reference, candidate, data, shared.renames(renamed), rule, out, json)
        return
    if renamed or strict:
        raise typer.BadParameter("needs two bundles.", param_hint="--renamed" if renamed else "--strict")
    check_choice("--split", split, ("test", "all"))
    stated = shared.stated(foreign)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.cli.verify import show_report
    from edgecnn.stages.compare import compare_models
    from edgecnn.verify.parity_report import Gate, require_parity

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
    show_report(report, json, full)
    require_parity(report)


def against(
    old: Path, new: Path, data: str, renamed: dict[str, str], rule: "Rule", out: Path | None, json: bool
) -> None:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.cli.verify import show_against
    from edgecnn.stages.against import compare_bundles
    from edgecnn.verify.against import require_no_harm

    with ProgressReporter() as reporter:
        made, pictures = compare_bundles(old, new, data, renamed=renamed, rule=rule, reporter=reporter)
    if out:
        from edgecnn.report.page import write_against_page
        from edgecnn.runs import write_json

        write_json(out, made)
        write_against_page(made, pictures, out.with_suffix(".html"))
        note(f"report: {out.with_suffix('.html')}")
    emit_json(made) if json else show_against(made)
    require_no_harm(made, str(new))
