"""Labelled images as listed by a source: their layout in a folder or zip, and their hashes; not yet decoded.

The layouts are DIR/<class>/* or DIR/{train,val,test}/<class>/*, possibly inside enclosing folders.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.errors import DatasetError
from edgecnn.files import sha256
from edgecnn.images import SUFFIXES, left_out
from edgecnn.labels import SPLIT_FOLDERS, printable, why_not_a_label
from edgecnn.run_info import Unreadable
from edgecnn.tables import Struct

LAYOUT = "Expected DIR/<class>/<image> or DIR/{train,val,test}/<class>/<image>."


@dataclass(kw_only=True)
class Folder:
    """Names in a folder: its folders, and its files with the handles to read them."""

    folders: dict[str, "Folder"] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        return sorted(name for name in self.files if name.lower().endswith(SUFFIXES))

    def below(self) -> Iterator[tuple[str, Any]]:
        """Yield all files in it and its subfolders, by path."""
        yield from self.files.items()
        for name, folder in self.folders.items():
            yield from ((f"{name}/{path}", handle) for path, handle in folder.below())


class Fault(NamedTuple):
    """What is wrong with a layout, and what to do."""

    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text.rstrip('.')}.\n{self.advice}"


class ImageFile(Struct):
    """One image file. `path` is relative, with slashes; `below` starts below the class folder, and ends before the ending."""

    split: str
    label: str
    path: str
    below: str
    handle: Any


LISTS = "edgecnn-*.csv"
"""Files that edgecnn keeps next to the class folders, such as the list of the photos' sources: not images, and skipped silently."""

LEFT_OUT = "left-out.json"
"""The file that `edgecnn inspect` writes into a cleaned copy: the images that it left out."""


def hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", LEFT_OUT)


def find_images(root: Folder, where: str) -> "Tree":
    """List the content of a tree; DatasetError for fewer than two classes."""
    prefix = ""
    while len(root.folders) == 1 and not root.images:
        (name, inner), *_ = root.folders.items()
        if not inner.folders or inner.images or name.lower() in SPLIT_FOLDERS:
            break
        root, prefix = inner, f"{prefix}{name}/"
    found = Tree(prefix)
    found.lists = {name: root.files.pop(name) for name in sorted(root.files) if fnmatchcase(name, LISTS)}
    found.skipped += [prefix + name for name in sorted(root.files)]
    outer = root.folders.items()
    if outer and all(name.lower() in SPLIT_FOLDERS and not folder.images for name, folder in outer):
        for name, folder in sorted(outer):
            if not folder.folders:
                found.fault(f"the split folder {prefix}{name}/ has no class folders", LAYOUT)
            found.skipped += [f"{prefix}{name}/{file}" for file in sorted(folder.files)]
            found.classes(folder, SPLIT_FOLDERS[name.lower()], f"{prefix}{name}/")
    else:
        found.classes(root, "train", prefix)
    found.require_same_classes()
    labels = {image.label for image in found.images}
    if len(labels) < 2:
        few = "has no class folders, so no image has a label"
        if labels:
            few = f"has only one class, {labels.pop()!r}; a classifier needs two or more"
        raise DatasetError("\n".join([*(f"{where}: {fault}" for fault in found.faults), f"{where} {few}. {LAYOUT}"]))
    return found


class Tree:
    """A tree's images, its other files, the faults of its layout, and the LISTS next to its class folders in `place`."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.lists: dict[str, Any] = {}
        self.images: list[ImageFile] = []
        self.skipped: list[str] = []
        self.faults: list[Fault] = []

    def fault(self, text: str, advice: str) -> None:
        self.faults.append(Fault(text, advice))

    def classes(self, folder: Folder, split: str, prefix: str) -> None:
        for label, inner in sorted(folder.folders.items()):
            place = f"{prefix}{label}/"
            files = dict(inner.below())
            images = sorted(name for name in files if name.lower().endswith(SUFFIXES))
            named = SPLIT_FOLDERS.keys()
            inside = [name for name in sorted(inner.folders) if not named.isdisjoint((name.lower(), label.lower()))]
            if inside:
                self.fault(f"{place} must contain only images, but contains the folder {inside[0]!r}", LAYOUT)
            elif not images:
                reason = left_out(files) or f"images end in {' '.join(SUFFIXES)}."
                self.fault(f"the class folder {place} has no images: {reason}", "Add some, or remove the folder.")
            elif why := why_not_a_label(label):
                self.fault(
                    f"the class folder {label!r} cannot be a class: {why}", "Rename the folder, for example to 'other'."
                )
            else:
                self.images += [
                    ImageFile(
                        split=split,
                        label=label,
                        path=place + name,
                        below=name.rpartition(".")[0],
                        handle=files[name],
                    )
                    for name in images
                ]
                self.skipped += [place + name for name in sorted(set(files).difference(images))]

    def require_same_classes(self) -> None:
        classes: dict[str, set[str]] = {}
        for image in self.images:
            classes.setdefault(image.split, set()).add(image.label)
        training = classes.get("train", set())
        for split, labels in classes.items():
            if training and (unknown := labels - training):
                text = f"{split} has classes that train does not have: {_quoted(unknown)}"
                if missing := training - labels:
                    text += f"; and train has classes that {split} does not have: {_quoted(missing)}"
                self.fault(text, "Give all splits the same class folders.")


def _quoted(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def insert(root: Folder, parts: list[str], handle: Any) -> None:
    """Put a file (or, with handle None, a folder) into a tree; ValueError if the name is taken."""
    *above, name = parts
    for part in above:
        if part in root.files:
            raise ValueError(f"{part!r} is both a file and a folder")
        root = root.folders.setdefault(part, Folder())
    if name in root.files or (handle is not None and name in root.folders):
        raise ValueError(f"{'/'.join(parts)!r} is in it twice")
    if handle is None:
        root.folders.setdefault(name, Folder())
    else:
        root.files[name] = handle


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


def held_pixels(item: Item) -> np.ndarray:
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
    read: Callable[[Item], bytes | np.ndarray] = held_pixels
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
