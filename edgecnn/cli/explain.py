"""`edgecnn explain`."""

import json as json_text
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecnn.cli.console import emit_json, emit_line, note
from edgecnn.cli.options import Model, RegionText, check_choice, read_region
from edgecnn.cli.workstation_options import Force
from edgecnn.errors import ImageError, PartialFailure

if TYPE_CHECKING:
    from edgecnn.region import Region
    from edgecnn.runs import Run
    from edgecnn.runtime import model
    from edgecnn.runtime.occlusion import Occlusion
    from edgecnn.verify.gradcam import GradCAM

SCHEMA = "edgecnn.explanation/1"
"""The schema of the JSON lines: `edgecnn/device/explanation.schema.json`."""

SUFFIX = "-explained.png"

LONGEST_STEM = 200
"""Bytes of an image's name in that of its picture: a file's name has at most 255, and the temporary one is longer."""

DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is explained: its labels and temperature, how it fits images, and Grad-CAM of its float model, None without."""

    model: "model.Model"
    labels: Sequence[str]
    temperature: float
    fit: str | None
    gradcam: "GradCAM | None" = None


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
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Explain the int8 model of this run instead, and its float model by Grad-CAM.",
            show_default="none, or runs/latest with --sample",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How an image fits the input: crop, letterbox or stretch.", show_default="the model's"
        ),
    ] = None,
    region: RegionText = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("explained"),
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Without images: compare the two maps of the run's model on N of its test images.",
            show_default="none",
        ),
    ] = None,
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

    With --run, a third panel shows Grad-CAM of the float model, which needs TensorFlow. --sample measures how alike the two maps are:
    Spearman's rank correlation, median and quartiles. An image that cannot be read is reported and skipped, and the exit code is then 22.

    \b
    Examples:
      edgecnn explain photo.jpg
      edgecnn explain photos/ --model photos.edgecnn --json
      edgecnn explain photo.jpg --run runs/latest --out maps
      edgecnn explain --sample 200
    """
    check_choice("--fit", fit, ("crop", "letterbox", "stretch"))
    if model is not None and (run is not None or sample is not None):
        raise typer.BadParameter("names a bundle, which has no float model to compare with.", param_hint="--model")
    if sample is not None:
        if region is not None:
            raise typer.BadParameter("is for images; --sample takes the run's own region.", param_hint="--region")
        if images:
            raise typer.BadParameter("draws test images of the run: name no others.", param_hint="--sample")
        compare_maps(run, sample, json)
    elif not images:
        raise typer.BadParameter("name an image, a folder or a glob, or - to read paths.", param_hint="IMAGE")
    else:
        seen = read_region(region)
        subject = run_subject(run, fit, seen) if run else bundle_subject(model, fit, seen)
        explain_images(subject, images, Pictures(out, force), json)


def bundle_subject(bundle: Path | None, fit: str | None, region: "Region | None") -> Subject:
    """Load a bundle's model, and print which."""
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(default_bundle(bundle), region=region)
    note(classifier.about)
    return Subject(model=classifier.model, labels=classifier.labels, temperature=float(classifier.temperature), fit=fit)


def run_subject(path: Path, fit: str | None, region: "Region | None") -> Subject:
    """Open a run's int8 model, and Grad-CAM of its float model unless it was imported.

    Raises:
        RunError: if there is no such run, or it has no int8 export.
    """
    run = named_run(path)
    from edgecnn.verify.confidence import stored_confidence
    from edgecnn.verify.gradcam import int8_model, run_gradcam

    chosen = stored_confidence(run)
    if run.imported:
        note("the model was imported, as a frozen graph without Keras layers: there is no Grad-CAM of it.")
    return Subject(
        model=int8_model(run, region),
        labels=run.info.data.labels,
        temperature=chosen.temperature if chosen else 1.0,
        fit=fit,
        gradcam=None if run.imported else run_gradcam(run),
    )


def named_run(path: Path | None) -> "Run":
    """Open a run, the last one for None, and print which."""
    from edgecnn.runs import open_run

    run = open_run(path)
    note(f"run {run.path}")
    return run


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


def explain_images(subject: Subject, sources: Sequence[str], pictures: Pictures, json: bool) -> None:
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
            found = explain_one(source, subject.model, subject.labels, subject.temperature, subject.fit)
        except ImageError as caught:
            failed += 1
            report_failure(source, caught, json)
            continue
        maps = {"map": found.map}
        if subject.gradcam:
            import numpy as np

            maps["gradcam"] = subject.gradcam(found.pixels[np.newaxis], np.array([found.index]))[0]
        write_atomic(path, picture(found.pixels, list(maps.values()), found.answer, found.score))
        seen = subject.model.contract.region
        emit_line(json_line(source, found, maps, path, seen) if json else text_line(source, found, path, seen))
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


def json_line(source: str, found: "Occlusion", maps: dict[str, Any], path: Path, region: "Region") -> str:
    """Return the JSON line of an image: as in the text, and each map, rounded, as rows of columns."""
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
        **{name: item.astype(float).round(DECIMALS).tolist() for name, item in maps.items()},
    }
    return json_text.dumps(line)


def compare_maps(path: Path | None, count: int, json: bool) -> None:
    """Compare the two maps of a run's model on test images, and print how alike they are.

    Raises:
        RunError: as `edgecnn.verify.gradcam.map_correlation` does.
    """
    from edgecnn.cli.progress import ProgressReporter

    run = named_run(path)
    with ProgressReporter() as reporter:
        from edgecnn.data import open_run_dataset
        from edgecnn.tables import to_json
        from edgecnn.verify.gradcam import map_correlation

        dataset = open_run_dataset(run, progress=reporter.working, note=reporter.note)
        found = map_correlation(run, dataset, count, reporter.working)
    if json:
        emit_json(to_json(found))
        return
    about = f"occlusion map of int8 and Grad-CAM of float on {found.images:,} test images"
    left_out = f"; not defined on {found.undefined:,}, where a map has one value throughout" if found.undefined else ""
    if found.median is None:
        emit_line(f"{about}: no rank correlation{left_out}")
    else:
        quartiles = f"quartiles {found.lower_quartile:.2f} and {found.upper_quartile:.2f}"
        emit_line(f"{about}: rank correlation {found.median:.2f} in the median, {quartiles}{left_out}")
