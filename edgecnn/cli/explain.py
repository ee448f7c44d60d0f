"""`edgecnn explain`."""

import functools
import json as json_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.options import Force, Model, emit_line, load_classifier, note, with_flags
from edgecnn.device.stream import settings
from edgecnn.labels import printable, utf8
from edgecnn.region import WHOLE, Region, region_text

if TYPE_CHECKING:
    from edgecnn.device.stream.sources import ImageOutcome
    from edgecnn.runtime.occlusion import Occlusion

SCHEMA = "edgecnn.explanation/1"

SUFFIX = "-explained.png"

LONGEST_STEM = 200
"""Maximum bytes of an image's name in its picture's name: a file name has at most 255, and the temporary one is longer."""

DECIMALS = 3


@with_flags
def explain(
    images: list[str] | None = typer.Argument(
        None,
        metavar="[IMAGE]...",
        help="Image files, folders, globs, or - to read paths from standard input.",
        show_default="none",
    ),
    model: Model = None,
    *,
    fit: Annotated[str | None, settings.Decision],
    region: Annotated[Region | None, settings.Model],
    out: Path = typer.Option(Path("explained"), metavar="DIR", help="Folder for the pictures."),
    force: Force = False,
    json: bool = typer.Option(
        False, "--json", help="Print one JSON line for each image, with the map.", show_default="off"
    ),
) -> None:
    """Show which part of an image an answer rests on.

    Covers the image with a grey patch, place by place, and runs the device's model each time: where the answer's logit falls, the answer
    rests on what is there. For each image it writes a picture, IMAGE-explained.png. On the left is the model's input, at its own size: the
    part of the photo, or of its region, that crop, letterbox or stretch leaves. On the right is the same in grey with the map over it:
    orange speaks for the answer, blue against it. The line on standard output names the place where covering costs most, in fractions of
    that part.

    Unreadable images are reported and skipped; the exit code is then 22.

    \b
    Examples:
      edgecnn explain photo.jpg
      edgecnn explain photos/ --model photos.edgecnn --json
      edgecnn explain photo.jpg --region 0.25,0,0.5,1 --out maps
    """
    if not images:
        raise typer.BadParameter("name an image, a folder or a glob, or - to read paths.", param_hint="IMAGE")
    from edgecnn.cli.classify_files import show_each
    from edgecnn.device.explain import explain as explain_one

    classifier = load_classifier(model, region=region)
    given: set[Path] = set()

    def work(source: str) -> "tuple[Path, Occlusion]":
        path = picture_path(source, out, force, given)
        return path, explain_one(source, classifier, fit)

    show_each(work, images, functools.partial(show, classifier.model.contract.region, json), "explained")


def picture_path(source: str, folder: Path, force: bool, given: set[Path]) -> Path:
    """Return a path for an image's picture that is not in `given`, and add it; OutputExistsError for an existing file without `force`."""
    from edgecnn.files import refuse_existing

    stem = Path(source).stem
    while len(os.fsencode(stem)) > LONGEST_STEM:
        stem = stem[:-1]
    path, number = folder / f"{stem}{SUFFIX}", 1
    while path in given:
        number += 1
        path = folder / f"{stem}-{number}{SUFFIX}"
    refuse_existing(path, force)
    given.add(path)
    return path


def show(region: Region, json: bool, outcome: "ImageOutcome[tuple[Path, Occlusion]]") -> None:
    from edgecnn.device.explain import picture
    from edgecnn.files import write_atomic

    source = outcome.source
    if outcome.result is not None:
        path, found = outcome.result
        write_atomic(path, picture(found.pixels, found.map, found.answer, found.score))
        emit_line((json_line if json else text_line)(source, found, path, region))
    elif json:
        emit_line(json_text.dumps({"schema": SCHEMA, "source": utf8(source), "error": utf8(str(outcome.error))}))
    else:
        note(f"{printable(source)}: {outcome.error}")


def text_line(source: str, found: "Occlusion", path: Path, region: Region) -> str:
    from edgecnn.device.explain import in_words

    left, top, right, bottom = found.box
    looked = (
        f"looked at the {in_words(found.box)} (x {left:.2f} to {right:.2f}, y {top:.2f} to {bottom:.2f})"
        + ("" if region == WHOLE else f" of the region {region_text(region)}")
        if found.decrease > 0
        else "looked at no single place: covering any leaves the answer's logit as high"
    )
    return f"{printable(source)}: {printable(found.answer)} {found.score:.2%}, {looked}: {printable(str(path))}"


def json_line(source: str, found: "Occlusion", path: Path, region: Region) -> str:
    from edgecnn.device.explain import in_words

    line = {
        "schema": SCHEMA,
        "source": utf8(source),
        "answer": found.answer,
        "index": found.index,
        "score": round(found.score, 6),
        "box": [round(end, 4) for end in found.box],
        "where": in_words(found.box) if found.decrease > 0 else None,
        "decrease": round(found.decrease, DECIMALS),
        "picture": utf8(str(path)),
        **({} if region == WHOLE else {"region": list(region)}),
        "map": found.map.astype(float).round(DECIMALS).tolist(),
    }
    return json_text.dumps(line)
