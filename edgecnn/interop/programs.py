"""Exports for other programs: a run's int8 model as the files that such a program loads."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.errors import ExportError
from edgecnn.export import export, export_path
from edgecnn.files import refuse_existing, write_atomic
from edgecnn.labels import plural
from edgecnn.region import WHOLE, region_text
from edgecnn.runs import Run

if TYPE_CHECKING:
    from edgecnn.data import Progress

FRIGATE = "frigate"
MEDIAPIPE = "mediapipe"
PROGRAMS = (FRIGATE, MEDIAPIPE)

MODEL = "model.tflite"
LABELMAP = "labelmap.txt"
SIDE = 224

STRETCH = "stretch"


def program_path(run: Run, program: str) -> Path:
    return run.file(program)


def programs_of(run: Run) -> list[str]:
    return [program for program in PROGRAMS if (program_path(run, program) / MODEL).exists()]


def check_program(run: Run, program: str) -> None:
    """Raise ExportError if a model expects other images than the program provides, or Frigate would change its labels."""
    region = run.recipe.data.region
    if region != WHOLE:
        cuts = "Frigate crops its images itself" if program == FRIGATE else "a file for MediaPipe cannot hold a region"
        raise ExportError(
            f"run {run.path} sees the region {region_text(region)} of each image; {cuts}. "
            "Train without --region, on images that are already cropped, such as those that edgecnn capture --region keeps."
        )
    shape = run.info.input
    received = f"run {run.path} reads {shape.width}x{shape.height} images with {plural(shape.channels, 'channel')}"
    if program == FRIGATE and (shape.height, shape.width, shape.channels) != (SIDE, SIDE, 3):
        raise ExportError(
            f"{received}; Frigate provides {SIDE}x{SIDE} RGB. Train one for it: edgecnn train --data frigate:PATH, or on other data "
            "--size 224 with --set network.channels=3 and --set data.fit=stretch"
        )
    if shape.channels != 3:
        raise ExportError(f"{received}; MediaPipe provides RGB. Train with --set network.channels=3.")
    labels = run.info.data.labels
    stripped = [label.strip() for label in labels]
    if program == FRIGATE and (len(set(stripped)) < len(labels) or not all(stripped)):
        raise ExportError(
            f"the labels of {run.path} are {', '.join(map(repr, labels[:8]))}. Frigate strips spaces from both ends, which makes two of "
            "them equal or one empty. Rename those folders and train again."
        )


def program_files(run: Run, program: str) -> dict[str, bytes]:
    """Make a program's files from a run's int8 TFLite file: bytes by name. Raises RunError if that file is missing.

    MODEL reads uint8 RGB pixels and outputs a uint8 softmax with scale 1/256 and zero point 0. Frigate's LABELMAP has one label per line.
    """
    check_program(run, program)
    data = run.read(export_path(run, "tflite", "int8").name, "export", "--format tflite --int8")
    from edgecnn.interop.mediapipe import with_metadata
    from edgecnn.interop.scores import with_scores

    labels, model = run.info.data.labels, with_scores(data)
    if program == FRIGATE:
        return {MODEL: model, LABELMAP: "".join(f"{label.strip()}\n" for label in labels).encode()}
    scale, zero_point = run.recipe.input_scale, run.recipe.input_zero_point
    return {MODEL: with_metadata(model, name=run.name, labels=labels, mean=128 + zero_point, std=1 / scale)}


def export_program(
    run: Run,
    program: str,
    *,
    out: Path | None = None,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: "Progress | None" = None,
) -> list[Path]:
    """Write a program's files, each atomically. If the run has no int8 TFLite file to make them from, that is exported first.

    They go to `out`, if given, and always to the run, because verification reads them there.
    """
    folder = out or program_path(run, program)
    for name in (MODEL, LABELMAP) if program == FRIGATE else (MODEL,):
        refuse_existing(folder / name, force)
    check_program(run, program)
    if not export_path(run, "tflite", "int8").exists():
        note(f"converting {run.name} to tflite int8")
        export(run, "tflite", "int8", progress=progress)
    note(f"making the files of {run.name} for {program}")
    files = program_files(run, program)
    if run.recipe.data.fit != STRETCH:
        note(f"{program} stretches every image; this run was trained with fit = {run.recipe.data.fit}. See verify.")
    for place in dict.fromkeys((program_path(run, program), folder)):
        for name, data in files.items():
            write_atomic(place / name, data)
    return [folder / name for name in files]
