"""edgecnn export, bundle and report: what is made of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import Force, Json, check_choice, emit_json, emit_line, note, option
from edgecnn.cli.workstation_options import Full, RunArgument, opened_run

if TYPE_CHECKING:
    from edgecnn.report.page import Shown
    from edgecnn.runs import Run


PRECISION = "Precision (one of)"
PROGRAM = "For another program"


def precision_flag(name: str, text: str, shown: str = "off") -> Any:
    return option(False, text, shown, PRECISION, name)


def export(
    run: RunArgument = None,
    format_: str | None = option(None, "The file format.", "tflite", None, "--format", metavar="tflite|onnx"),
    int8: bool = precision_flag("--int8", "int8 weights and activations.", "on"),
    float32: bool = precision_flag("--float32", "float32, from the float model."),
    float16: bool = precision_flag("--float16", "float16, from the float model. Input and output stay float32."),
    int16x8: bool = precision_flag(
        "--int16x8", "int16 activations and int8 weights (TFLite only), calibrated with training images."
    ),
    io: str | None = option(
        None, "Type of an int8 TFLite file's input and output.", "int8", metavar="int8|uint8|float32"
    ),
    program: str | None = option(
        None,
        "Write the int8 model in this program's form: Frigate's custom classifiers, MediaPipe's ImageClassifier.",
        "none",
        PROGRAM,
        "--for",
        metavar="frigate|mediapipe",
    ),
    out: Path | None = option(
        None,
        "Folder for those files; the run keeps a copy for verify.",
        "RUN/frigate or RUN/mediapipe",
        PROGRAM,
        metavar="DIR",
    ),
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a run's model as a TFLite or ONNX file.

    The file goes into the run folder. A quantized file that still holds a float tensor is refused. If the run has both the int8 and the
    float32 file of the format, both are timed, and the output names the faster one. An int8 TFLite export also writes a second int8 file,
    made by the method that does not ship (quantization after training, or quantization-aware training), for verify to measure.

    With --for, the files are made from the int8 TFLite file: uint8 pixels in, uint8 scores out. verify judges them with the program's own
    steps.

    \b
    Examples:
      edgecnn export --format tflite --int8
      edgecnn export runs/digits --format onnx --float16
      edgecnn export --format tflite --int8 --io uint8
      edgecnn export --for frigate
      edgecnn export --for mediapipe --out app/assets
    """
    if program is not None:
        check_choice("--for", program, ("frigate", "mediapipe"))
        if format_ or io or int8 or float32 or float16 or int16x8:
            raise typer.BadParameter("--for sets the format, the precision and --io: leave them out.")
        export_for(run, program, out, force, json)
        return
    if out is not None:
        raise typer.BadParameter("--out needs --for: other exports go into the run.")
    format_ = format_ or "tflite"
    precision = one_precision(int8=int8, float32=float32, float16=float16, int16x8=int16x8)
    check_choice("--format", format_, ("tflite", "onnx"))
    check_choice("--io", io, ("int8", "uint8", "float32"))
    if io is not None and (format_, precision) != ("tflite", "int8"):
        raise typer.BadParameter("--io is for int8 TFLite files: other files have a fixed input and output type.")
    if (format_, precision) == ("onnx", "int16x8"):
        raise typer.BadParameter("--int16x8 is for --format tflite.")
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.export import export as export_model
    from edgecnn.export import export_alternative, export_path, io_type
    from edgecnn.files import refuse_existing
    from edgecnn.verify.golden import time_exports

    with ProgressReporter() as reporter:
        opened = opened_run(run)
        refuse_existing(export_path(opened, format_, precision, io), force)
        reporter.note(f"converting {opened.name} to {format_} {precision}")
        path = export_model(opened, format_, precision, io=io, force=force, progress=reporter.working)
        if (format_, precision, io) == ("tflite", "int8", None):
            export_alternative(opened, reporter.note, reporter.working)
        timing = time_exports(opened, format_)
    if json:
        about = {"format": format_, "precision": precision, "io": io_type(format_, precision, io), "timing": timing}
        emit_json({**file_figures(path), **about})
    else:
        print(FILE_LINE.format(**file_figures(path)))
        print(timing.text)


def export_for(run: Path | None, program: str, out: Path | None, force: bool, json: bool) -> None:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.interop import export_program

    with ProgressReporter() as reporter:
        opened = opened_run(run)
        paths = export_program(opened, program, out=out, force=force, note=reporter.note, progress=reporter.working)
    files = list(map(file_figures, paths))
    if json:
        emit_json({"for": program, "files": files})
        return
    for file in files:
        print(FILE_LINE.format(**file))


FILE_LINE = "{path}  {size_bytes:,} bytes  SHA-256 {sha256}"


def file_figures(path: Path) -> dict[str, Any]:
    from edgecnn.files import sha256_file

    return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def one_precision(**flags: bool) -> str:
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{' and --'.join(chosen)} are mutually exclusive: give one.")
    return chosen[0] if chosen else "int8"


def bundle(
    run: RunArgument = None,
    out: Path | None = option(None, "The bundle to write.", "RUN/NAME.edgecnn"),
    only: list[str] | None = option(
        None,
        "Include only models of this precision, such as int8, for a smaller file. May be repeated.",
        "all verified models",
        metavar="PRECISION",
    ),
    serial: int = option(
        0,
        "Serial number, by which a device recognises an older bundle: increase it each time, as with $(date +%s).",
        "none",
        metavar="N",
        min=0,
        max=2**53,
    ),
    force: Force = False,
    full: Full = False,
    json: Json = False,
) -> None:
    """Pack a verified run into one .edgecnn file.

    A bundle holds the models, labels, parity report and golden vectors, and the temperature and threshold that verify chose.

    \b
    Examples:
      edgecnn bundle --out cats.edgecnn
      edgecnn bundle --only int8 --serial 2
    """
    opened = opened_run(run)
    from edgecnn.cli.verify import note_warnings
    from edgecnn.stages.bundle import bundle_stage, verified_confidence
    from edgecnn.verify.parity import parity_report

    path, digest = bundle_stage(opened, out, only=only or (), serial=serial, force=force)
    if out is not None:
        note(f"use it: edgecnn classify --model {path}")
    report = parity_report(opened)
    confidence = verified_confidence(opened, report)
    note_warnings(report)
    size = path.stat().st_size
    if json:
        emit_json({"path": str(path), "size_bytes": size, "sha256": digest, "confidence": confidence})
    else:
        from edgecnn.report.sections import abstains_line, calibration_line, chosen_on, model_lines

        print(f"{path}  {size:,} bytes  SHA-256 {digest}")
        for line in model_lines(report, only):
            print(line)
        images = chosen_on(opened.info)
        if full:
            print(calibration_line(confidence.validation, confidence, images))
        print(abstains_line(confidence.validation, confidence.choice, images))


def report(
    runs: list[Path] | None = typer.Argument(
        None, metavar="[RUN]...", help="Run folders or bundles.", show_default="runs/latest"
    ),
    out: Path | None = option(None, "The page. Its figures go next to it as JSON.", "RUN/report.html", metavar="FILE"),
    png: Path | None = option(None, "Also write each plot to this folder, as PNG.", "none", metavar="DIR"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Show how a model performs, on one self-contained HTML page.

    The page shows whether the model is good, and the verdict; size, accuracy and latency of every export; confusion matrix, drop by
    class, reliability, coverage and learning curves; the images that int8 answers differently, and its most confident mistakes. Several
    runs are shown side by side, on the photos that all of them answer. If a run lacks the figures for a part, the page names the command
    that makes them.

    \b
    Examples:
      edgecnn report
      edgecnn report runs/small runs/large --out sizes.html
      edgecnn report cats.edgecnn --out cats.html --json
    """
    paths: list[Path | None] = [*runs] if runs else [None]
    if len(paths) > 1 and out is None:
        raise typer.BadParameter("several runs share a page: name its file.", param_hint="--out")
    from edgecnn.files import refuse_existing
    from edgecnn.report.page import page_figures, write_page
    from edgecnn.runs import PAGE

    if out and out.suffix == ".json":
        raise typer.BadParameter(
            "the page is HTML, and its figures go next to it as .json: name FILE.html.", param_hint="--out"
        )
    subjects = [path if path and path.is_file() else opened_run(path) for path in paths]
    page = out or page_of(subjects[0])
    if page.name != PAGE or out:
        for file in (page, page.with_suffix(".json")):
            refuse_existing(file, force)
    shown = tuple(map(show, subjects))
    for warning in page_figures(shown).warnings:
        note(f"WARNING: {warning}")
    write_page(shown, page, png)
    if json:
        emit_json(page_figures(shown))
        note(f"report: {page}")
    else:
        emit_line(str(page))


def page_of(subject: "Run | Path") -> Path:
    """Return the default path of the page about a run, or about a bundle."""
    from edgecnn.runs import PAGE

    return subject.with_suffix(".html") if isinstance(subject, Path) else subject.file(PAGE)


def show(subject: "Run | Path") -> "Shown":
    """Return the content of the page about a run, or about a bundle."""
    from edgecnn.report.page import Shown, shown_run

    if not isinstance(subject, Path):
        return shown_run(subject)
    from edgecnn.bundle.file import read_bundle
    from edgecnn.report.figures import bundle_answers, bundle_figures

    bundle = read_bundle(subject)
    return Shown(figures=bundle_figures(bundle), pictures={}, answers=bundle_answers(bundle))
