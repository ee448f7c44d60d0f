"""What `edgecnn verify --on` takes, and a bundle on emulated boards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json, note, terminal_width

if TYPE_CHECKING:
    from edgecnn.verify.boards import OnBoards

On = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="Run on emulated boards too: targets, with commas between or the option repeated, or all. "
        "What they need is made once, in ~/.cache/edgecnn/boards.",
        show_default="none",
    ),
]
Engines = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="Engines on the boards, or all.", show_default="each target's own"),
]
Release = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The boards' Debian: trixie (Python 3.13) or bookworm (3.11).",
        show_default="each target's own",
    ),
]
Sample = Annotated[int, typer.Option(min=0, help="Test images that the boards run; 0 for all.")]
BoardModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run this bundle on the boards, and nothing else.",
        show_default="where there is no run here, as edgecnn classify",
    ),
]


def boards_of(on: list[str], engines: str | None, release: str | None, sample: int) -> "OnBoards":
    """Return what the options ask for."""
    from edgecnn.boards.targets import emulated_targets
    from edgecnn.verify.boards import OnBoards

    names = tuple(part.strip() for part in engines.split(",")) if engines else ()
    return OnBoards(targets=tuple(emulated_targets(on)), engines=names, release=release, sample=sample)


def last_run() -> bool:
    """Tell whether there is a last run here."""
    from edgecnn.runs import LATEST, RUNS

    return (RUNS / LATEST).exists()


def verify_bundle(model: Path | None, boards: "OnBoards", data: str | None, out: Path | None, json: bool) -> None:
    """Run a bundle on boards, print what was found and hold it to the gate."""
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.table import BOARD_HEADINGS, board_rows, text_table
    from edgecnn.runtime.default import find_bundle
    from edgecnn.verify.bundles import bundle_on_boards
    from edgecnn.verify.gate import require_boards

    choice = find_bundle(model)
    note(f"bundle {choice.path} ({choice.reason})")
    with ProgressReporter() as reporter:
        report = bundle_on_boards(choice.path, boards, data=data, note=reporter.note, progress=reporter.working)
    if out:
        write_atomic(out, canonical_json(report))
    if json:
        emit_json(report)
    else:
        images = f"a sample of {report['data']['title']}'s test split" if report["data"] else "golden images"
        print(f"{report['bundle']}, {images}")
        print(text_table(BOARD_HEADINGS, board_rows(report["boards"]), terminal_width()))
    require_boards(report["boards"])
