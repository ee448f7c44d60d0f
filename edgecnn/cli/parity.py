"""A parity report as text, for the commands that make or read one, and the options of `edgecnn verify --on`, which runs a bundle on
emulated boards.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgecnn.cli.options import emit_json, note, option, terminal_width

if TYPE_CHECKING:
    from edgecnn.emulate.on_boards import OnBoards
    from edgecnn.verify.against import Against
    from edgecnn.verify.parity_report import Report


def show_report(report: "Report", json: bool, full: bool = False) -> None:
    if json:
        emit_json(report)
        note_warnings(report)
    else:
        print_report(report, full)


def print_report(report: "Report", full: bool = False) -> None:
    """Print what decides the next command, or with `full` all figures."""
    from edgecnn.report import table
    from edgecnn.verify.parity_report import gate_line

    width = terminal_width()
    lines = [f"{table.images_line(report.data)}{f'; {report.timing}' if full else ''}", *table.range_lines(report)]
    lines += table.taught_lines(report)
    lines += table.class_lines(report, full)
    if full:
        lines += [
            *table.fold_lines(report),
            table.text_table(table.HEADINGS, table.parity_rows(report), width),
            table.text_table(table.COMPARISON_HEADINGS, table.comparison_rows(report), width),
            *table.int8_lines(report),
            *table.conversion_lines(report),
            *table.program_lines(report),
            *table.flip_lines(report),
            *table.score_lines(report),
        ]
    else:
        lines += [*table.model_lines(report), *table.conversion_lines(report, only_failed=True)]
    lines.append(gate_line(report))
    if report.matrix:
        lines.append(f"\n{table.matrix_table(report.matrix, width)}")
    if report.boards:
        lines.append(f"\n{table.text_table(table.BOARD_HEADINGS, table.board_rows(report.boards), width)}")
    print("\n".join([*lines, *table.warning_lines(report)]))


def show_against(against: "Against") -> None:
    from edgecnn.labels import printable
    from edgecnn.verify.against import against_lines

    print("\n".join(map(printable, against_lines(against))))


def note_warnings(report: "Report") -> None:
    from edgecnn.report.table import warning_lines

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


def last_run() -> bool:
    from edgecnn.runs import LATEST, RUNS

    return (RUNS / LATEST).exists()


def verify_bundle(model: Path | None, boards: "OnBoards", data: str | None, out: Path | None, json: bool) -> None:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.emulate.on_boards import bundle_on_boards
    from edgecnn.report.table import BOARD_HEADINGS, board_rows, text_table
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
        print(text_table(BOARD_HEADINGS, board_rows(report.boards), terminal_width()))
    require_boards(report.boards)
