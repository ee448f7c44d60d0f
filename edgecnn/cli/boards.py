"""The options of `edgecnn verify --on`, and a bundle on emulated boards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json, note, terminal_width

if TYPE_CHECKING:
    from edgecnn.emulate.on_boards import OnBoards

BOARDS = "Emulated boards"

On = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="Also run on emulated boards: targets separated by commas, or all. May be repeated. The packages are downloaded once, "
        "into ~/.cache/edgecnn/boards.",
        show_default="none",
        rich_help_panel=BOARDS,
    ),
]
Engines = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Engines to run on the boards, or all.",
        show_default="each target's own",
        rich_help_panel=BOARDS,
    ),
]
Release = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The boards' Debian: trixie (Python 3.13) or bookworm (Python 3.11).",
        show_default="each target's own",
        rich_help_panel=BOARDS,
    ),
]
Sample = Annotated[
    int, typer.Option(min=0, help="How many test images the boards run; 0 for all.", rich_help_panel=BOARDS)
]
BoardModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run this bundle on the boards, and nothing else.",
        show_default="without a run, the bundle of edgecnn classify",
        rich_help_panel=BOARDS,
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
    """Run a bundle on boards, print the result and hold it to the gate."""
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.emulate.bundles import bundle_on_boards
    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.table import BOARD_HEADINGS, board_rows, text_table
    from edgecnn.runtime.default import find_bundle
    from edgecnn.tables import to_json
    from edgecnn.verify.gate import require_boards

    choice = find_bundle(model)
    note(f"bundle {choice.path} ({choice.reason})")
    with ProgressReporter() as reporter:
        report = bundle_on_boards(choice.path, boards, data=data, note=reporter.note, progress=reporter.working)
    if out:
        write_atomic(out, canonical_json(to_json(report)))
    if json:
        emit_json(to_json(report))
    else:
        images = f"a sample of {report.data.title}'s test split" if report.data else "golden images"
        print(f"{report.bundle}, {images}")
        print(text_table(BOARD_HEADINGS, board_rows(report.boards), terminal_width()))
    require_boards(report.boards)
