"""edgecnn verify, layers and compare, and a parity report as text, for the commands that make or read one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Json, check_choice, emit_json, note, option, terminal_width, with_flags
from edgecnn.tables import Group
from edgecnn.tables import option as setting

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


class EmulatedBoards(Group):
    """Where the files, or a bundle, also run."""

    heading: ClassVar = "Emulated boards"
    on: list[str] | None = setting(
        None,
        "Also run on emulated boards: targets separated by commas, or all. May be repeated. Packages are downloaded once, "
        "into ~/.cache/edgecnn/boards.",
        shown="none",
        metavar="TARGET",
    )
    engines: str | None = setting(
        None, "Engines to run on the boards, or all.", shown="each target's own", metavar="NAME,…"
    )
    release: str | None = setting(
        None,
        "The boards' Debian: trixie (Python 3.13) or bookworm (Python 3.11).",
        shown="each target's own",
        metavar="NAME",
    )
    sample: int = setting(1000, "How many test images the boards run; 0 for all.", low=0)
    model: Path | None = setting(
        None,
        "Run this bundle on the boards, and nothing else.",
        shown="without a run, the bundle that edgecnn classify uses",
        metavar="FILE",
    )
    data: str | None = setting(
        None,
        "Test images of that bundle: a dataset's name, a folder or zip.",
        shown="as recorded in the bundle",
    )
    out: Path | None = setting(None, "Write that bundle's JSON report to this file.", shown="none", metavar="FILE")


def boards_of(given: EmulatedBoards) -> "OnBoards":
    from edgecnn.boards import emulated_targets
    from edgecnn.emulate.on_boards import OnBoards

    names = tuple(part.strip() for part in given.engines.split(",")) if given.engines else ()
    targets = tuple(emulated_targets(given.on or ()))
    return OnBoards(targets=targets, engines=names, release=given.release, sample=given.sample)


def runner(boards: "OnBoards") -> "Boards":
    """Return what `edgecnn.stages.verify` calls to run exports on boards; EmulatorError if they cannot be emulated here."""
    from edgecnn.emulate.on_boards import find_qemu, run_on_boards

    find_qemu()
    return lambda run, exports, images, progress: run_on_boards(run, exports, images, boards, progress)


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
    matrix: bool = option(False, "Also compare every engine that can run the int8 models.", "off", ENGINES, "--matrix"),
    tflite_python: Path | None = option(
        None, "Python of an environment with tflite-runtime, for --matrix.", "none", ENGINES, metavar="PATH"
    ),
    emulated: EmulatedBoards,
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
    from edgecnn.runs import LATEST, RUNS

    model, data, out = emulated.model, emulated.data, emulated.out
    boards = boards_of(emulated) if emulated.on else None
    if not boards and (model or emulated.engines or emulated.release or emulated.sample != EmulatedBoards.sample):
        raise typer.BadParameter("--engines, --release, --sample and --model need --on.")
    if boards and (model or (run is None and not (RUNS / LATEST).exists())):
        of_run = (run, matrix, tflite_python, target_error, full) != (None, False, None, None, False)
        if of_run or limits != shared.Limits() or replacing != shared.Replacing():
            raise typer.BadParameter(
                "a bundle on boards takes only --on, --engines, --release, --sample, --data, --out and --json; other options are for a run "
                f"of edgecnn train{'; leave out --model to verify one' if model else ', so train one first'}."
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
    from edgecnn.stages.verify import verify as verify_exports
    from edgecnn.verify.against import require_no_harm
    from edgecnn.verify.parity_report import Gate, require_parity

    against = None
    with ProgressReporter() as reporter:
        opened = shared.opened_run(run)
        dataset = open_run_dataset(opened, progress=reporter.working, note=note)
        report = verify_exports(
            opened,
            dataset,
            gate=Gate(**vars(limits)),
            target_error=target_error,
            matrix=matrix or tflite_python is not None,
            tflite_python=tflite_python,
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
        note_warnings(report)
    else:
        show_report(report, json, full)
        show_against(against)
    note(f"report: {page}") if json else print(f"report: {page}")
    require_parity(report)
    if against:
        require_no_harm(against, f"{opened.name}.edgecnn")


def layers(run: shared.RunArgument = None, json: Json = False) -> None:
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

    opened = shared.opened_run(run)
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
    reference: Path = typer.Argument(
        ...,
        metavar="A",
        help="The reference: a .tflite, .onnx, .keras or .h5 file, the folder of a SavedModel, or a bundle.",
    ),
    candidate: Path = typer.Argument(
        ..., metavar="B", help="The model to compare with A, in any of these formats; a bundle if A is one."
    ),
    data: str = typer.Option(..., help="The images: a dataset's name, or a folder or zip."),
    split: str = typer.Option("test", metavar="test|all", help="Which images to compare on."),
    *,
    foreign: shared.Foreign,
    max_drop: Annotated[float, shared.Limits],
    confident: Annotated[bool, shared.Limits],
    min_agreement: Annotated[float | None, shared.Limits],
    renamed: Annotated[list[str] | None, shared.Replacing],
    strict: Annotated[bool, shared.Replacing],
    out: Path | None = option(
        None,
        "Write the JSON report to this file; for bundles, also a page with pictures next to it.",
        "none",
        metavar="FILE",
    ),
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
    if out and out.suffix == ".html":
        raise typer.BadParameter(
            "this file is JSON, and bundles' page goes next to it as .html: name FILE.json.", param_hint="--out"
        )
    bundles = [path for path in (reference, candidate) if path.suffix == ".edgecnn"]
    if len(bundles) == 1:
        raise typer.BadParameter(f"{bundles[0]} is a bundle, the other is not. Name two bundles, or two model files.")
    if bundles:
        limits = max_drop != shared.Limits.max_drop or min_agreement is not None
        if limits or full or split != "test" or foreign != shared.Foreign():
            raise typer.BadParameter(
                "--split, --max-drop, --min-agreement, --full, --labels and the input range are for model files: bundles record their "
                "input and the photos that they were trained on."
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
