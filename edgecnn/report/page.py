"""The report as a self-contained HTML file, and its figures as JSON."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.files import write_atomic
from edgecnn.labels import printable
from edgecnn.pixels import as_image
from edgecnn.report.figures import AnswersByPhoto, PageFigures, Pair, RunFigures, pairs, run_answers, run_figures
from edgecnn.report.plots import Plots, drop_of, plots, png, side_by_side, svg
from edgecnn.report.sections import against_float, images_of, parity_sections
from edgecnn.report.table import FigureText, Section, choice_section, stress_section
from edgecnn.runs import PAGE, Run, write_json
from edgecnn.tables import Struct
from edgecnn.verify.against import Against, against_lines
from edgecnn.verify.parity_report import Comparison, ModelFigures
from edgecnn.verify.predictions import GALLERY, read_pictures, read_predictions

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


DIFFERENT = (
    "These runs were tested on different images, so their own accuracies cannot be compared: one set may be easier. Compare only "
    "accuracies on photos that both have answers for."
)


class Shown(Struct):
    """A run on the page: its figures, and the parts that the JSON omits. These are its `pictures` as data URLs, by index in the test
    split, its `answers` to each photo, and the `flips`: pictures of photos that an old model answers differently, by index among these."""

    figures: RunFigures
    pictures: Mapping[int, str]
    answers: AnswersByPhoto = field(default_factory=dict)
    flips: Mapping[int, str] = field(default_factory=dict)


def shown_run(run: Run) -> Shown:
    predictions = read_predictions(run)
    pictures = predictions.pictures if predictions else {}
    figures = run_figures(run, predictions)
    return Shown(
        figures=figures,
        pictures=addresses(pictures),
        answers=run_answers(run, predictions, figures.int8),
        flips=addresses(read_pictures(run)),
    )


def addresses(pictures: Mapping[int, np.ndarray]) -> dict[int, str]:
    return {index: data_address(pixels) for index, pixels in pictures.items()}


def data_address(pixels: np.ndarray) -> str:
    """Return pixels, uint8 (height, width, channels), as a data URL of a PNG."""
    buffer = io.BytesIO()
    as_image(pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page_figures(shown: Sequence[Shown]) -> PageFigures:
    runs = tuple(item.figures for item in shown)
    tested = {run.parity.data.test_sha256 for run in runs if run.parity}
    found = list(pairs([(item.figures.name, item.answers) for item in shown]))
    return PageFigures(
        schema="edgecnn.report/1",
        pairs=tuple(item for item in found if isinstance(item, Pair)),
        warnings=(*([DIFFERENT] if len(tested) > 1 else []), *(item for item in found if isinstance(item, str))),
        runs=runs,
    )


def render(shown: Sequence[Shown]) -> str:
    """Return the page as HTML that makes no requests and contains no script."""
    runs = [
        {
            **vars(item),
            **int8_of(item.figures),
            "plots": drawn(plots(item.figures), f"r{number}"),
            "drops": drop_of(item.figures),
            "sections": sections_of(item.figures),
            "images": images_of(item.figures.parity) if item.figures.parity else "",
            "against": against_texts(item.figures.against, item.flips),
        }
        for number, item in enumerate(shown)
    ]
    together = drawn(side_by_side([item.figures for item in shown]), "all")
    return rendered(runs=runs, page=page_figures(shown), together=together)


def rendered(**values: Any) -> str:
    return templates().get_template("page.html.j2").render({"compared": None, **values})


def against_texts(against: Against | None, pictures: Mapping[int, str]) -> dict[str, Any] | None:
    if against is None:
        return None
    return {"figures": against, "lines": against_lines(against), "pictures": pictures, "shown": GALLERY}


def write_against_page(against: Against, pictures: Mapping[int, np.ndarray], path: Path) -> None:
    """Write a page that compares two bundles; `pictures` as in `edgecnn.stages.against.compare_bundles`."""
    compared = against_texts(against, addresses(pictures))
    write_atomic(path, rendered(runs=[], together={}, compared=compared).encode())


def templates(*packages: str) -> "Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in ("edgecnn.report", *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pct": pct,
        "num": num,
        "points": points,
        "name": name_of,
        "title": title_of,
        "headed": headed,
        "cell": cell,
    }
    return environment


def int8_of(figures: RunFigures) -> dict[str, Comparison | ModelFigures | None]:
    if figures.parity is None or figures.int8 is None:
        return {"int8": None, "compared": None}
    (model,) = (item for item in figures.parity.models if item.name == figures.int8)
    return {"int8": model, "compared": against_float(figures.parity)[model.name]}


def sections_of(figures: RunFigures) -> list[Section]:
    """Return the page's sections after the summary, which has the first two of a parity report."""
    return [
        *(parity_sections(figures.parity)[2:] if figures.parity else ()),
        *([stress_section(figures.stress)] if figures.stress else ()),
        *([choice_section(figures.choice)] if figures.choice else ()),
    ]


def drawn(figures: Plots, prefix: str) -> dict[str, dict[str, Any]]:
    from markupsafe import Markup

    return {
        name: {"text": text, "svg": Markup(svg(draw, f"{prefix}-{name}"))} for name, (text, draw) in figures.items()
    }


def data(value: float | int, text: str) -> "Markup":
    from markupsafe import Markup

    return Markup('<data value="{}">{}</data>').format(value, text)


def pct(value: float | None, digits: int = 2) -> "Markup | str":
    return "-" if value is None else data(value, f"{value:.{digits}%}")


def points(value: float | None) -> "Markup | str":
    return "-" if value is None else data(value, f"{value:+.2f}")


def num(value: float | None, digits: int = 0) -> "Markup | str":
    return "-" if value is None else data(value, f"{value:,.{digits}f}")


def cell(text: str) -> "Markup":
    """Show a table's cell: each number as data, or a text like `name_of`."""
    from markupsafe import Markup

    if not isinstance(text, FigureText):
        return name_of(text)
    marked = re.sub(r"{(:[^}]*)?}", r'<data value="{}">{\1}</data>', text.form)
    return Markup(marked).format(*(value for value in text.values for _ in range(2)))


def name_of(text: str) -> "Markup":
    """Show a label, file name or other text that an attacker may have chosen: printable, and isolated in its direction."""
    from markupsafe import Markup

    return Markup("<bdi>{}</bdi>").format(printable(text))


def title_of(text: str) -> "Markup":
    """Show a name like `name_of`, but let a narrow screen break it only after dashes, underscores, dots and slashes, if it has any."""
    from markupsafe import Markup, escape

    return Markup("<bdi>{}</bdi>").format(Markup(re.sub(r"([-_./]+)", r"\1<wbr>", str(escape(printable(text))))))


def headed(rows: "Markup", headings: Sequence[str]) -> "Markup":
    """Give each cell in a table's rows its column heading, which a narrow screen shows next to it."""
    from markupsafe import Markup, escape

    def cells(row: re.Match[str]) -> str:
        names = iter(headings)
        return re.sub(r"<t[dh]\b", lambda cell: f'{cell[0]} data-heading="{escape(next(names))}"', row[0])

    return Markup(re.sub(r"<tr>.*?</tr>", cells, rows, flags=re.DOTALL))


def write_page(shown: Sequence[Shown], path: Path, png_folder: Path | None = None) -> None:
    """Write a page, its figures as JSON next to it and, if requested, its plots as RUN-PLOT.png into a folder."""
    write_atomic(path, render(shown).encode())
    write_json(path.with_suffix(".json"), page_figures(shown))
    if png_folder:
        for number, item in enumerate(shown):
            prefix = f"{number + 1}-" if len(shown) > 1 else ""
            for name, (_, draw) in plots(item.figures).items():
                write_atomic(png_folder / f"{prefix}{name}.png", png(draw()))


def write_run_page(run: Run) -> Path:
    write_page([shown_run(run)], run.file(PAGE))
    return run.file(PAGE)
