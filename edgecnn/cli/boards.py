"""The options of `edgecnn verify --on`, and how to run a bundle on emulated boards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edgecnn.cli.console import emit_json, note, terminal_width
from edgecnn.cli.options import option

if TYPE_CHECKING:
    from edgecnn.emulate.on_boards import OnBoards

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
    from edgecnn.boards.targets import emulated_targets
    from edgecnn.emulate.on_boards import OnBoards

    names = tuple(part.strip() for part in engines.split(",")) if engines else ()
    return OnBoards(targets=tuple(emulated_targets(on)), engines=names, release=release, sample=sample)


def last_run() -> bool:
    from edgecnn.runs import LATEST, RUNS

    return (RUNS / LATEST).exists()


def verify_bundle(model: Path | None, boards: "OnBoards", data: str | None, out: Path | None, json: bool) -> None:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.emulate.bundles import bundle_on_boards
    from edgecnn.report.table import BOARD_HEADINGS, board_rows, text_table
    from edgecnn.runs import write_json
    from edgecnn.runtime.default import find_bundle
    from edgecnn.verify.gate import require_boards

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
