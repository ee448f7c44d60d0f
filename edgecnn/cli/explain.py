"""`edgecnn explain`."""

import json as json_text
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.options import Model, RegionText, check_choice, read_region
from edgecnn.cli.workstation_options import Force
from edgecnn.errors import ImageError, PartialFailure

if TYPE_CHECKING:
    from edgecnn.region import Region
    from edgecnn.runtime.classifier import Classifier
    from edgecnn.runtime.occlusion import Occlusion

SCHEMA = "edgecnn.explanation/1"
"""The schema of the JSON lines: `edgecnn/device/explanation.schema.json`."""

SUFFIX = "-explained.png"

LONGEST_STEM = 200
"""Bytes of an image's name in that of its picture: a file's name has at most 255, and the temporary one is longer."""

DECIMALS = 3


def explain(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Image files, folders, globs, or - to read paths from standard input.",
            show_default="none",
        ),
    ] = None,
    model: Model = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How an image fits the input: crop, letterbox or stretch.", show_default="the model's"
        ),
    ] = None,
    region: RegionText = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("explained"),
    force: Force = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line for each image, with the map.", show_default="off"),
    ] = False,
) -> None:
    """Show which part of an image an answer rests on.

    Covers the image with a grey patch, place by place, and runs the model of the device each time: where the answer's logit falls, the
    answer rests on what is there. For each image it writes a picture, IMAGE-explained.png. On the left is what the model sees, at the
    model's own size: the part of the photo, or of its region, that crop, letterbox or stretch leaves. On the right is the same in grey
    with the map over it: orange speaks for the answer, blue against it. The line on standard output names the place where covering costs
    most, in fractions of that part.

    An image that cannot be read is reported and skipped, and the exit code is then 22.

    \b
    Examples:
      edgecnn explain photo.jpg
      edgecnn explain photos/ --model photos.edgecnn --json
      edgecnn explain photo.jpg --region 0.25,0,0.5,1 --out maps
    """
    check_choice("--fit", fit, ("crop", "letterbox", "stretch"))
    if not images:
        raise typer.BadParameter("name an image, a folder or a glob, or - to read paths.", param_hint="IMAGE")
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(default_bundle(model), region=read_region(region))
    note(classifier.about)
    explain_images(classifier, images, fit, Pictures(out, force), json)


class Pictures:
    """Where the pictures of a command go: a name for each, none twice and none of a file that exists, unless it may be replaced."""

    def __init__(self, folder: Path, force: bool) -> None:
        self._folder = folder
        self._force = force
        self._given: set[Path] = set()

    def path(self, source: str) -> Path:
        """Return where the picture of an image goes.

        Raises:
            OutputExistsError: if there is a file already that must not be replaced.
        """
        stem = Path(source).stem
        name = os.fsencode(stem)
        if len(name) > LONGEST_STEM:
            stem = name[:LONGEST_STEM].decode(errors="ignore")
        from edgecnn.files import refuse_existing

        path, number = self._folder / f"{stem}{SUFFIX}", 1
        while path in self._given:
            number += 1
            path = self._folder / f"{stem}-{number}{SUFFIX}"
        refuse_existing(path, self._force)
        self._given.add(path)
        return path


def explain_images(
    classifier: "Classifier", sources: Sequence[str], fit: str | None, pictures: Pictures, json: bool
) -> None:
    """Write an image's picture and print its line, one image after the other.

    Raises:
        OutputExistsError, OutputError: if a picture cannot be written.
        PartialFailure: if an image could not be explained, or standard input named none.
    """
    from edgecnn.device.explain import explain as explain_one
    from edgecnn.device.explain import picture
    from edgecnn.device.stream.sources import expand
    from edgecnn.files import write_atomic

    count = failed = 0
    for source, error in expand(sources, sys.stdin.buffer, note):
        count += 1
        try:
            if error:
                raise error
            path = pictures.path(source)
            found = explain_one(source, classifier, fit)
        except ImageError as caught:
            failed += 1
            report_failure(source, caught, json)
            continue
        write_atomic(path, picture(found.pixels, found.map, found.answer, found.score))
        seen = classifier.model.contract.region
        emit_line(json_line(source, found, path, seen) if json else text_line(source, found, path, seen))
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be explained; each is named above.")
    if not count:
        raise PartialFailure("standard input named no image.")


def report_failure(source: str, error: ImageError, json: bool) -> None:
    """Print that an image could not be explained: a JSON line on standard output, or a note."""
    from edgecnn.labels import printable, utf8

    if json:
        emit_line(json_text.dumps({"schema": SCHEMA, "source": utf8(source), "error": utf8(str(error))}))
    else:
        from edgecnn.cli.advice import with_advice

        note(f"{printable(source)}: {with_advice(error)}")


def text_line(source: str, found: "Occlusion", path: Path, region: "Region") -> str:
    """Return the line for people: the answer, its score, where the model looked, and the picture."""
    from edgecnn.device.explain import in_words
    from edgecnn.labels import printable
    from edgecnn.region import WHOLE, region_text

    left, top, right, bottom = found.box
    looked = (
        f"looked at the {in_words(found.box)} (x {left:.2f} to {right:.2f}, y {top:.2f} to {bottom:.2f})"
        + ("" if region == WHOLE else f" of the region {region_text(region)}")
        if found.decrease > 0
        else "looked at no one place: covering any leaves the answer's logit as high"
    )
    return f"{printable(source)}: {printable(found.answer)} {found.score:.2%}, {looked}: {printable(str(path))}"


def json_line(source: str, found: "Occlusion", path: Path, region: "Region") -> str:
    """Return the JSON line of an image: as in the text, and the map, rounded, as rows of columns."""
    from edgecnn.device.explain import in_words
    from edgecnn.labels import utf8
    from edgecnn.region import WHOLE

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
