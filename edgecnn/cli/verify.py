"""edgecnn verify, layers and compare, and a parity report as text, for the commands that make or read one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Json, check_choice, emit_json, note, option, terminal_width, with_flags
from edgecnn.cli.workstation_options import RunArgument

if TYPE_CHECKING:
    from edgecnn.emulate.on_boards import OnBoards
    from edgecnn.stages.verify import Boards
    from edgecnn.verify.against import Against, Rule
    from edgecnn.verify.parity_report import Report


def show_report(report: "Report", json: bool, full: bool = False) -> None:
    if json:
        emit_json(report)
        note_warnings(report)
    else:
        print_report(report, full)


def print_report(report: "Report", full: bool = False) -> None:
    """Print what decides the next command, or with `full` all figures."""
    from edgecnn.report import sections as words

    if full:
        for section in words.parity_sections(report):
            shared.print_section(section)
    else:
        lines = [words.images_line(report.data), *words.range_lines(report), *words.taught_lines(report)]
        lines += [*words.class_lines(report, always=False), *words.model_lines(report)]
        lines += [*words.conversion_lines(report, only_failed=True), words.gate_line(report)]
        print("\n".join(lines))
        for section in words.elsewhere_sections(report):
            shared.print_section(section)
    print("".join(f"{line}\n" for line in words.warning_lines(report)), end="")


def show_against(against: "Against") -> None:
    from edgecnn.labels import printable
    from edgecnn.verify.against import against_lines

    print("\n".join(map(printable, against_lines(against))))


def note_warnings(report: "Report") -> None:
    from edgecnn.report.sections import warning_lines

    for line in warning_lines(report):
        note(line)


BOARDS = "Emulated boards"

On = Annotated[
    list[str] | None,
    option(
        "Also run on emulated boards: targets separated by commas, or all. May be repeated. Packages are downloaded once, "
        "into ~/.cache/edgecnn/boards.",
        "none",
        BOARDS,
        metavar="TARGET",
    ),
]
Engines = Annotated[
    str | None, option("Engines to run on the boards, or all.", "each target's own", BOARDS, metavar="NAME,…")
]
Release = Annotated[
    str | None,
    option(
        "The boards' Debian: trixie (Python 3.13) or bookworm (Python 3.11).",
        "each target's own",
        BOARDS,
        metavar="NAME",
    ),
]
Sample = Annotated[int, option("How many test images the boards run; 0 for all.", True, BOARDS, min=0)]
BoardModel = Annotated[
    Path | None,
    option(
        "Run this bundle on the boards, and nothing else.",
        "without a run, the bundle that edgecnn classify uses",
        BOARDS,
        metavar="FILE",
    ),
]


def boards_of(on: list[str], engines: str | None, release: str | None, sample: int) -> "OnBoards":
    from edgecnn.boards import emulated_targets
    from edgecnn.emulate.on_boards import OnBoards

    names = tuple(part.strip() for part in engines.split(",")) if engines else ()
    return OnBoards(targets=tuple(emulated_targets(on)), engines=names, release=release, sample=sample)


def runner(boards: "OnBoards") -> "Boards":
    """Return what `edgecnn.stages.verify` calls to run exports on boards; EmulatorError if they cannot be emulated here."""
    from edgecnn.emulate.on_boards import find_qemu, run_on_boards

    find_qemu()
    return lambda run, exports, images, progress: run_on_boards(run, exports, images, boards, progress)


def last_run() -> bool:
    from edgecnn.runs import LATEST, RUNS

    return (RUNS / LATEST).exists()


def verify_bundle(model: Path | None, boards: "OnBoards", data: str | None, out: Path | None, json: bool) -> None:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.emulate.on_boards import bundle_on_boards
    from edgecnn.report.sections import boards_section
    from edgecnn.runs import write_json
    from edgecnn.runtime.default import find_bundle
    from edgecnn.verify.parity_report import require_boards

    choice = find_bundle(model)
    note(f"bundle {choice.path} ({choice.reason})")
    with ProgressReporter() as reporter:
        report = bundle_on_boards(choice.path, boards, data, reporter.note, reporter.working)
    if out:
        write_json(out, report)
    if json:
        emit_json(report)
    else:
        images = f"a sample of {report.data.title}'s test split" if report.data else "golden images"
        print(f"{report.bundle}, {images}")
        shared.print_section(boards_section(report.boards))
    require_boards(report.boards)


ENGINES = "Other engines"


@with_flags
def verify(
    run: shared.RunArgument = None,
    *,
    limits: shared.Limits,
    target_error: Annotated[float | None, shared.Scores],
    replacing: shared.Replacing,
    matrix: Annotated[
        bool, option("Also compare every engine that can run the int8 models.", "off", ENGINES, "--matrix")
    ] = False,
    tflite_python: Annotated[
        Path | None,
        option("Python of an environment with tflite-runtime, for --matrix.", "none", ENGINES, metavar="PATH"),
    ] = None,
    on: On = None,
    engines: Engines = None,
    release: Release = None,
    sample: Sample = 1000,
    model: BoardModel = None,
    data: Annotated[
        str | None,
        option("Test images of that bundle: a dataset's name, a folder or zip.", "as recorded in the bundle", BOARDS),
    ] = None,
    out: Annotated[
        Path | None, option("Write that bundle's JSON report to this file.", "none", BOARDS, metavar="FILE")
    ] = None,
    full: shared.Full = False,
    json: Json = False,
) -> None:
    """Check that exported files still answer like the float model.

    Compares each exported file of a run with its float and fake-quantized models on the test split, and writes parity.json into the run.
    The exit code is 14 if the gate fails. Before that, validation images are used to choose the temperature (so that a
    score of 90 % is right about 90 % of the time) and the threshold of --target-error. The bundle stores both.

    With --against, the new int8 model is also compared with the one that it would replace, on test photos that neither learnt from. The
    exit code is 36 if it is worse, and 37 if no photo can show it, or too few for --strict.

    With --on, the exports also run on emulated boards, with the packages that a board would install. With --model, or without a run, only a
    bundle runs on them, with no other comparison.

    \b
    Examples:
      edgecnn verify --max-drop 0.5 --confident --min-agreement 0.985
      edgecnn verify --target-error 0.05
      edgecnn verify --against old.edgecnn --renamed kitten=cat
      edgecnn verify --matrix --tflite-python venv/bin/python
      edgecnn verify --on rpi-zero2w,rpi3,rpi4,rpi5
      edgecnn verify --on rpi4 --model cats.edgecnn --data cats/ --engines all --release bookworm
    """
    boards = boards_of(on, engines, release, sample) if on else None
    if not on and (model or engines or release):
        raise typer.BadParameter("--engines, --release and --model need --on.")
    if boards and (model or (run is None and not last_run())):
        of_run = replace(limits, max_drop=shared.Limits.max_drop)
        if run or matrix or tflite_python or of_run != shared.Limits() or target_error is not None or replacing.against:
            raise typer.BadParameter(
                "RUN, --matrix, --tflite-python, --confident, --min-agreement, --accept-conversion, --target-error and --against are for a "
                "run, --model is for a bundle."
            )
        verify_bundle(model, boards, data, out, json)
        return
    if data or out:
        raise typer.BadParameter("--data and --out are for a bundle on boards: --on TARGET --model FILE.")
    if (replacing.renamed or replacing.strict) and not replacing.against:
        raise typer.BadParameter("needs --against.", param_hint="--renamed" if replacing.renamed else "--strict")
    renamed = shared.renames(replacing.renamed)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_run_dataset
    from edgecnn.report.page import write_run_page
    from edgecnn.runs import open_run
    from edgecnn.stages.verify import Matrix
    from edgecnn.stages.verify import verify as verify_exports
    from edgecnn.verify.against import require_no_harm
    from edgecnn.verify.parity_report import Gate, require_parity

    against = None
    with ProgressReporter() as reporter:
        opened = open_run(run)
        note(f"run {opened.path}")
        dataset = open_run_dataset(opened, progress=reporter.working, note=note)
        report = verify_exports(
            opened,
            dataset,
            gate=Gate(**vars(limits)),
            target_error=target_error,
            matrix=Matrix(tflite_python=tflite_python) if matrix or tflite_python else None,
            boards=runner(boards) if boards else None,
            progress=reporter.working,
        )
        if replacing.against:
            from edgecnn.stages.against import verify_against

            old, rule = replacing.against, shared.rule(replacing.strict, limits.confident)
            against = verify_against(opened, dataset, old, renamed=renamed, rule=rule, progress=reporter.working)
        page = write_run_page(opened)
    if against is None:
        show_report(report, json, full)
    elif json:
        emit_json({"parity": report, "against": against})
    else:
        show_report(report, json, full)
        show_against(against)
    note(f"report: {page}") if json else print(f"report: {page}")
    require_parity(report)
    if against:
        require_no_harm(against, f"{opened.name}.edgecnn")


def layers(run: RunArgument = None, json: Json = False) -> None:
    """Show where int8 departs from float, layer by layer.

    Compares a run's int8 TFLite file with its float model on validation images. For each layer, worst first: the
    signal-to-quantization-noise ratio in dB, the share of saturated values, the largest channel range over the median one, and what
    usually fixes it. The figures are kept in the run as layers.json, for `edgecnn report`.

    \b
    Examples:
      edgecnn layers
      edgecnn layers runs/digits --json
    """
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import open_run

    opened = open_run(run)
    note(f"run {opened.path}")
    with ProgressReporter() as reporter:
        from edgecnn.data import open_run_dataset
        from edgecnn.labels import text_table
        from edgecnn.runs import LAYERS, write_json
        from edgecnn.verify.layers import layer_errors, measured_split

        dataset = open_run_dataset(opened, progress=reporter.working, note=reporter.note)
        result = layer_errors(opened, dataset, reporter.working)
    write_json(opened.file(LAYERS), result)
    if json:
        emit_json(result)
        return
    which = {"train": "training"}.get(split := measured_split(opened), split)
    print(f"signal to quantization noise on {result.images:,} {which} images, worst first")
    rows = [
        (item.layer, f"{item.sqnr_db:.1f}", f"{item.saturated:.2%}", f"{item.channel_ratio:.1f}", item.hint)
        for item in result.layers
    ]
    print(text_table(("layer", "dB", "saturated", "channel ratio", "what usually fixes it"), rows, terminal_width()))
    if result.unmatched:
        print(f"not matched: {', '.join(result.unmatched)}")


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
