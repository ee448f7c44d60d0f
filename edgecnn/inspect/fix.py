"""A cleaned copy of labelled images: the same classes and splits, without the images that an inspection detected."""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgecnn.data import Dataset, Progress
from edgecnn.data.decoding import require_listed
from edgecnn.data.items import LEFT_OUT, Item, Meter
from edgecnn.errors import DatasetError, ImageError, OutputExistsError
from edgecnn.files import canonical_json, output_errors
from edgecnn.images import SUFFIXES, suffix_of
from edgecnn.inspect.findings import Cleaned, Copy, Group, Inspection, LeftOut
from edgecnn.labels import SOURCES_CSV, SPLITS_CSV, unsafe
from edgecnn.pixels import as_image
from edgecnn.tables import to_json

LEAVE_OUT = ("unreadable", "copies", "near", "labels", "far", "blurred")
"""Kinds that a cleaned copy can leave out. Of "copies", which have the same pixels, one stays, or none if their labels differ; the same
goes for "near" copies."""

USUAL = LEAVE_OUT[:3]
"""Kinds left out by default: those that can be decided without a look."""

LONGEST_NAME = 200  # maximum bytes of a file's name to keep


def left_out(report: Inspection, kinds: Sequence[str]) -> dict[str, str]:
    """Return the first reason for each image that is left out, by source."""
    found: dict[str, list[tuple[str, str]]] = {
        "unreadable": [(item.source, f"it cannot be read: {item.reason}") for item in report.unreadable],
        "groups": [pair for group in report.groups for pair in of_group(group, kinds)],
        "labels": [
            (item.source, f"it is labelled {item.label} but looks like {item.suggested}")
            for item in report.wrong_labels
        ],
        "far": [(item.source, "it is unlike all others") for item in report.far],
        "blurred": [(item.source, "it is much less sharp than the others") for item in report.blurred],
    }
    return dict(pair for kind in reversed(found) if kind in ("groups", *kinds) for pair in reversed(found[kind]))


def of_group(group: Group, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    if "near" in kinds and ("copies" in kinds or not group.exact):
        yield from but_one(group.copies)
    elif "copies" in kinds:
        for number in sorted({copy.pixels for copy in group.copies}):
            yield from but_one([copy for copy in group.copies if copy.pixels == number])


def but_one(copies: Sequence[Copy]) -> Iterator[tuple[str, str]]:
    kept = copies[0]
    for copy in copies:
        if other := next((item for item in copies if item.label != copy.label), None):
            yield copy.source, f"it shows the same thing as {other.source}, which is labelled {other.label}"
        elif copy is not kept:
            same = copy.pixels == kept.pixels
            why = f"it has the same pixels as {kept.source}" if same else f"it shows the same thing as {kept.source}"
            yield copy.source, why + (f", which is in {kept.split}" if kept.split != copy.split else "")


def require_new(folder: Path, source: str) -> None:
    """Raise OutputExistsError if the folder of a cleaned copy exists, or lies inside the data."""
    original = Path(os.path.expanduser(source))
    inside = original.is_dir() and folder.resolve().is_relative_to(original.resolve())
    if inside or folder.exists() or folder.is_symlink():
        fault = "lies inside the data" if inside else "exists"
        raise OutputExistsError(f"{folder} {fault}. Name a new folder outside the data with --fix.")


def write_cleaned(
    report: Inspection, dataset: Dataset, folder: Path, kinds: Sequence[str], progress: Progress
) -> Cleaned:
    """Write a cleaned copy: the kept files, byte for byte, and a list of the others. The original is only read.

    The folder, which must not exist, appears once it is complete. The kinds are those of LEAVE_OUT.
    Raises DatasetError if fewer than two classes would remain, or an image can no longer be read; OutputError if the folder cannot be
    written.
    """
    reasons = left_out(report, kinds)
    every = [item for part in dataset.items.values() for item in part]
    broken = {item.source for item in report.unreadable}
    for item in every:
        if item.source in broken and is_link(item):
            reasons.setdefault(item.source, "it is a link, and not to an image")
    items = [item for item in every if item.source not in reasons]
    if len({item.label for item in items}) < 2:
        raise DatasetError(f"a cleaned copy of {dataset.name} would have fewer than two classes. Leave out less.")
    cleaned = Cleaned(
        schema="edgecnn.left-out/1",
        data=dataset.title,
        kept=len(items),
        left_out=tuple(LeftOut(source=source, reason=reason) for source, reason in sorted(reasons.items())),
    )
    meter = Meter(progress, f"writing {folder}", len(items))
    with output_errors(folder):
        made = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
        made.mkdir(parents=True)
        try:
            write_items(items, dataset, made, meter)
            for name in dataset.lists.keys() & {SPLITS_CSV, SOURCES_CSV}:
                (made / name).write_bytes(dataset.lists[name])
            (made / LEFT_OUT).write_text(canonical_json(to_json(cleaned)), encoding="utf-8")
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return cleaned


def emptied(cleaned: Cleaned, dataset: Dataset) -> list[str]:
    gone = {item.source for item in cleaned.left_out}
    kept = {item.label for part in dataset.items.values() for item in part if item.source not in gone}
    return [label for index, label in enumerate(dataset.labels) if index not in kept]


def is_link(item: Item) -> bool:
    """Return whether an item's file, or a folder above it in the data, is a link: its content may be anything."""
    inside = (item.handle, *item.handle.parents[: item.source.count("/")]) if isinstance(item.handle, Path) else ()
    return any(path.is_symlink() for path in inside)


def write_items(items: Sequence[Item], dataset: Dataset, folder: Path, meter: Meter) -> None:
    taken: set[tuple[str, str, str]] = set()
    for item in items:
        data = encoded(item, dataset)
        split, label, own = destination_of(item, dataset, data)
        name, number = own, len(taken)
        while (split, label, name.lower()) in taken:  # another image may have the new name too
            name, number = f"{number}-{own}", number + 1
        taken.add((split, label, name.lower()))
        target = folder / split / label
        target.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
        meter.advance()


def encoded(item: Item, dataset: Dataset) -> bytes:
    try:
        data = dataset.read(item)
        if isinstance(data, np.ndarray):
            buffer = io.BytesIO()
            as_image(data).save(buffer, "PNG")
            return buffer.getvalue()
        require_listed(item, data)
    except ImageError as error:
        raise DatasetError(f"{item.source}: {error}. Inspect the images again.") from None
    return data


def destination_of(item: Item, dataset: Dataset, data: bytes) -> tuple[str, str, str]:
    """Return the destination of an item: its split's folder ("" without splits), its class's folder, and its name."""
    split = item.split if item.split in dataset.given else "train"
    name = item.source.rpartition("/")[2]
    plain = name and not any(map(unsafe, name)) and "\\" not in name and len(name.encode()) <= LONGEST_NAME
    if not plain or not name.lower().endswith(SUFFIXES):
        stem = name if plain else item.hash[:16]
        name = f"{stem}{suffix_of(data)}"
    label = dataset.labels[item.label].replace("/", "-").replace("\\", "-")
    return split if dataset.given != {"train"} else "", label, name
