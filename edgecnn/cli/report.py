"""`edgecnn report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.options import Json, emit_json, emit_line, note, option
from edgecnn.cli.workstation_options import Force

if TYPE_CHECKING:
    from edgecnn.report.page import Shown


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run folders or bundles.", show_default="runs/latest"),
    ] = None,
    out: Annotated[
        Path | None, option("The page. Its figures go next to it as JSON.", "RUN/report.html", metavar="FILE")
    ] = None,
    png: Annotated[Path | None, option("Also write each plot to this folder, as PNG.", "none", metavar="DIR")] = None,
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

    if out:
        refuse_existing(out, force)
    from edgecnn.report.page import page_figures, write_page

    shown, pages = zip(*map(show, paths), strict=True)
    for warning in page_figures(shown).warnings:
        note(f"WARNING: {warning}")
    page = out or pages[0]
    write_page(shown, page, png)
    if json:
        emit_json(page_figures(shown))
        note(f"report: {page}")
    else:
        emit_line(str(page))


def show(path: Path | None) -> "tuple[Shown, Path]":
    """Return the content of a page about a run folder or a bundle, `runs/latest` for None, and the page's default path."""
    from edgecnn.report.page import Shown, shown_run
    from edgecnn.runs import PAGE, open_run

    if path is not None and path.is_file():
        from edgecnn.bundle.file import read_bundle
        from edgecnn.report.collect import bundle_answers, bundle_figures

        bundle = read_bundle(path)
        shown = Shown(figures=bundle_figures(bundle), pictures={}, answers=bundle_answers(bundle))
        return shown, path.with_suffix(".html")
    run = open_run(path)
    note(f"run {run.path}")
    return shown_run(run), run.file(PAGE)
