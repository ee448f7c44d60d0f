"""`edgecnn verify`: parity of a run's exports, or of any two models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgecnn.cli.boards import BoardModel, Engines, On, Release, Sample, boards_of, last_run, verify_bundle
from edgecnn.cli.console import emit_json, note, terminal_width
from edgecnn.cli.ranges import InputRange, InputScale, InputZeroPoint, stated_range
from edgecnn.cli.workstation import AcceptConversion, Json, MaxDrop, RunArgument, TargetError

GateConfident = Annotated[
    bool,
    typer.Option(
        "--confident",
        help="Hold the upper end of the drop's 95 % interval to --max-drop too, and refuse models at chance level.",
        show_default="off",
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="The gate: least share of images with the same answer, 0 to 1.", show_default="no limit"
    ),
]


def verify(
    run: RunArgument = None,
    max_drop: MaxDrop = 1.0,
    confident: GateConfident = False,
    min_agreement: MinAgreement = None,
    accept_conversion: AcceptConversion = False,
    target_error: TargetError = None,
    matrix: Annotated[
        bool,
        typer.Option("--matrix", help="Compare every engine that can run the int8 models too.", show_default="off"),
    ] = False,
    tflite_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Python of an environment with tflite-runtime, for --matrix.", show_default="none"
        ),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="Show instead where int8 departs from float, on validation images.", show_default="off"
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare two models instead: .tflite, .onnx, .keras, .h5 or a SavedModel.",
            show_default="none",
        ),
    ] = None,
    candidate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The other model.", show_default="none")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images of two models, or of --model: a dataset's name, a folder or zip.", show_default="none"
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="test|all", help="Which of the images of --data.")] = "test",
    input_range: InputRange = None,
    input_scale: InputScale = None,
    input_zero_point: InputZeroPoint = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the report of two models, or of --model, here.", show_default="nowhere"
        ),
    ] = None,
    on: On = None,
    engines: Engines = None,
    release: Release = None,
    sample: Sample = 1000,
    model: BoardModel = None,
    json: Json = False,
) -> None:
    """Compare a run's exports with its float and fake-quantized models, on the test split.

    A temperature that makes scores what they claim, and the threshold of --target-error, are chosen on validation images
    first; bundle takes them.
    Writes parity.json into the run, and exits with 14 if a comparison fails the gate. With --reference and --candidate it
    compares any two models instead, and needs no run. With --on it runs the exports on emulated boards too, by the packages
    that a board would install; where there is no run here, or with --model, it runs a bundle on the boards and nothing else.

    \b
    Examples:
      edgecnn verify --max-drop 0.5 --confident --min-agreement 0.985
      edgecnn verify --target-error 0.05
      edgecnn verify --matrix --tflite-python venv/bin/python
      edgecnn verify --layers
      edgecnn verify --on rpi-zero2w,rpi3,rpi4,rpi5
      edgecnn verify --on rpi4 --model cats.edgecnn --data cats/ --engines all --release bookworm
      edgecnn verify --reference a.tflite --candidate b.onnx --data photos/ --input-range unit
    """
    if on or model or engines or release:
        if reference or candidate or layers or not on:
            raise typer.BadParameter(
                "--engines, --release and --model belong to --on, which goes with neither two models nor --layers."
            )
        boards = boards_of(on, engines, release, sample)
        if model or (run is None and not last_run()):
            of_run = (run, matrix, tflite_python, confident, accept_conversion)
            if any(of_run) or min_agreement is not None or target_error is not None:
                raise typer.BadParameter(
                    "RUN, --matrix, --tflite-python, --confident, --min-agreement, --accept-conversion and --target-error belong "
                    "to a run, --model to a bundle."
                )
            verify_bundle(model, boards, data, out, json)
            return
    else:
        boards = None
    two = {"--reference": reference, "--candidate": candidate, "--data": data}
    missing = [name for name, value in two.items() if value is None]
    if missing and len(missing) < len(two):
        raise typer.BadParameter(
            f"two models are compared with all of {', '.join(two)}: {', '.join(missing)} is missing."
        )
    if split not in ("test", "all"):
        raise typer.BadParameter(f"--split is test or all, received {split!r}.")
    ranges = (input_range, input_scale, input_zero_point)
    if missing and (out or any(value is not None for value in ranges) or split != "test"):
        raise typer.BadParameter(f"--out, --split and the input's range belong to two models: give {', '.join(two)}.")
    if not missing and (run or matrix or layers or tflite_python or accept_conversion or target_error is not None):
        raise typer.BadParameter(
            "RUN, --matrix, --layers, --tflite-python, --accept-conversion and --target-error belong to a run, not to two models."
        )
    if layers:
        print_layers(run, json)
        return
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.verify.gate import Gate, require_parity

    gate = Gate(
        max_drop=max_drop, confident=confident, min_agreement=min_agreement, accept_conversion=accept_conversion
    )
    with ProgressReporter() as reporter:
        if reference and candidate and data:
            from edgecnn.recipe import INPUT_RANGES
            from edgecnn.verify.models import verify_models

            report = verify_models(
                reference,
                candidate,
                data,
                split=split,
                input_range=stated_range(*ranges, tuple(INPUT_RANGES)),
                gate=gate,
                progress=reporter.working,
            )
            if out:
                from edgecnn.files import canonical_json, write_atomic

                write_atomic(out, canonical_json(report))
        else:
            report = verify_run(
                run,
                reporter.working,
                gate=gate,
                target_error=target_error,
                matrix=matrix or tflite_python is not None,
                tflite_python=tflite_python,
                boards=boards,
            )
    if json:
        from edgecnn.report.table import warning_lines

        emit_json(report)
        for line in warning_lines(report):
            note(line)
    else:
        print_report(report)
    require_parity(report)


def verify_run(path: Path | None, progress: Any, **options: Any) -> dict[str, Any]:
    """Open a run and its data, and verify it with the options of `edgecnn.verify.verify`."""
    from edgecnn.data import open_dataset
    from edgecnn.runs import open_run
    from edgecnn.verify import verify as verify_exports

    opened = open_run(path)
    note(f"run {opened.path}")
    dataset = open_dataset(opened.recipe.data, progress=progress)
    return verify_exports(opened, dataset, progress=progress, **options)


def print_report(report: dict[str, Any]) -> None:
    """Print a parity report: the table, what each comparison found, the first flipped images, the matrix and the boards."""
    from edgecnn.report import table

    width = terminal_width()
    print(f"{table.images_line(report['data'])}; {report['timing']}")
    for line in table.range_lines(report):
        print(line)
    print(table.text_table(table.HEADINGS, table.parity_rows(report), width))
    print(table.text_table(table.COMPARISON_HEADINGS, table.comparison_rows(report), width))
    for line in (*table.int8_lines(report), *table.conversion_lines(report), *table.flip_lines(report)):
        print(line)
    for line in table.score_lines(report):
        print(line)
    if report["matrix"]:
        print(f"\n{table.matrix_table(report, width)}")
    if report["boards"]:
        print(f"\n{table.text_table(table.BOARD_HEADINGS, table.board_rows(report['boards']), width)}")
    for line in table.warning_lines(report):
        print(line)


def print_layers(path: Path | None, json: bool) -> None:
    """Print how far each layer of the int8 TFLite file departs from the float model, worst first."""
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import open_run

    opened = open_run(path)
    note(f"run {opened.path}")
    with ProgressReporter() as reporter:
        from edgecnn.data import open_dataset
        from edgecnn.report.table import text_table
        from edgecnn.verify.layers import layer_errors

        found = layer_errors(opened, open_dataset(opened.recipe.data, progress=reporter.working), reporter.working)
    if json:
        emit_json(found)
        return
    print(f"signal to quantization noise on {found['images']:,} validation images, worst first")
    rows = [
        (
            item["layer"], f"{item['sqnr_db']:.1f}", f"{item['saturated']:.2%}", f"{item['channel_ratio']:.1f}",
            item["hint"],
        )
        for item in found["layers"]
    ]  # fmt: skip
    print(text_table(("layer", "dB", "saturated", "channel ratio", "what usually fixes it"), rows, terminal_width()))
    if found["unmatched"]:
        print(f"not matched: {', '.join(found['unmatched'])}")
