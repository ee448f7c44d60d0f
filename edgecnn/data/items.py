"""Labelled images as listed by a source: hashed, not yet decoded."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.data.tree import Fault
from edgecnn.errors import DatasetError
from edgecnn.files import sha256
from edgecnn.labels import printable
from edgecnn.run_info import Unreadable
from edgecnn.tables import Struct

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total), at most ten times a second and once at the end; total 0 means unknown."""

Note = Callable[[str], None]

PROGRESS_S = 0.1

NAMED = 5
"""Number of broken images that an error or a note names."""

MOST_UNREADABLE = 0.05
"""Largest fraction of a dataset's images that may be left out as unreadable. More suggests an interrupted copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One labelled image: `hash` is the SHA-256 of its file or raw pixels, `handle` what the source needs to read it.

    `below` is its path below the class folder, without the ending.
    """

    split: str
    label: int
    hash: str
    source: str
    handle: Any
    below: str = ""


def held(item: Item) -> np.ndarray:
    return item.handle


class LabelledImages(Struct):
    """A source, listed and hashed, of native `shape`.

    `mirror` is whether classes survive a left-right flip, `own` whether the images are a user's. `read` returns an item's encoded bytes, or
    its uint8 pixels (height, width, channels); it raises ImageError. `faults` are problems of folders. `lists` are edgecnn's own files next
    to the class folders, by name, and `place` is where more of them may be written, or None.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    shape: tuple[int, int, int]
    mirror: bool
    own: bool = False
    items: tuple[Item, ...]
    read: Callable[[Item], bytes | np.ndarray] = held
    skipped: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    faults: tuple[Fault, ...] = ()
    lists: Mapping[str, bytes] = field(default_factory=dict)
    place: Path | None = None


class Meter:
    """Counts work and reports it to a progress function, at most every PROGRESS_S seconds."""

    def __init__(self, progress: Progress | None, what: str, total: int):
        self.progress = progress
        self.what = what
        self.total = total
        self.done = 0
        self.next = 0.0

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        if self.progress is not None:
            now = time.monotonic()
            if now >= self.next or self.done == self.total:
                self.next = now + PROGRESS_S
                self.progress(self.what, self.done, self.total)


def array_items(split: str, name: str, pixels: np.ndarray, classes: Sequence[int]) -> Iterator[Item]:
    """List the images of a contiguous uint8 array, shape (n, height, width, channels), as "name[0]", "name[1]" …; `held` reads them."""
    for index, (image, label) in enumerate(zip(pixels, classes, strict=True)):
        yield Item(split=split, label=int(label), hash=sha256(image.tobytes()), source=f"{name}[{index}]", handle=image)


def too_many(broken: Sequence[Unreadable], total: int) -> bool:
    """Return whether more than MOST_UNREADABLE of all images cannot be read, too many to leave out."""
    return len(broken) > MOST_UNREADABLE * total


def unreadable_text(broken: Sequence[Unreadable], total: int) -> str:
    named = "; ".join(f"{printable(item.source)} ({item.reason})" for item in broken[:NAMED])
    more = f"; and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
    return f"{len(broken):,} of {total:,} images cannot be read: {named}{more}"


def unreadable(broken: Sequence[Unreadable], total: int, where: str, why: str = "") -> DatasetError:
    """Return the error for unreadable images; `why`, a sentence, is the reason that they are not left out."""
    why = why or f"Up to {MOST_UNREADABLE:.0%} of the images are left out if they cannot be read; these are too many."
    return DatasetError(f"{where}: {unreadable_text(broken, total)}.\n{why} Replace or remove them, then run again.")


PASSING = (
    "An image that is too large to decode here, is gone or has changed is not left out, since it would count elsewhere."
)
"""Why edgecnn does not leave out images that another machine, or this one later, may be able to read."""


def emptied(classes: Iterable[str]) -> str:
    """Return why images are not left out if some classes would have no readable one."""
    return f"No image would be left in {', '.join(map(repr, classes))}."
