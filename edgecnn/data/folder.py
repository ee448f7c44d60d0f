"""A user's own images: a folder or a zip with one subfolder per class."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgecnn import images
from edgecnn.data.archive import open_zip
from edgecnn.data.items import NAMED, PASSING, Item, LabelledImages, Meter, Progress, emptied, too_many, unreadable
from edgecnn.data.tree import LAYOUT, Folder, find_images, hidden
from edgecnn.errors import DatasetError, ImageError, ImageTooLargeError
from edgecnn.files import sha256
from edgecnn.run_info import Unreadable

SAMPLE = 256
"""Number of training images that the native shape is taken from: those with the smallest hashes."""

LARGEST_SIDE = 224

USUAL_SIDE = 96
"""Side of the square input for images of several sizes, or of one large size. A single size up to LARGEST_SIDE is kept."""

DEPTH = 8
"""Number of folder levels to list: enclosing folders, a split, a class, and its subfolders."""


def open_folder(
    path: Path, progress: Progress | None = None, lenient: bool = False, may_be_empty: Sequence[str] = ()
) -> LabelledImages:
    """List and hash a folder or zip of images; DatasetError for a faulty folder, which `lenient` and `may_be_empty` only leave out."""
    read_handle: Callable[[Any], bytes]
    if path.is_dir():
        root, read_handle, name = list_folder(path), images.read_file, path.resolve().name or "images"
    else:
        (root, read_handle), name = open_zip(path), path.stem
    name = printable(name)
    for label in may_be_empty:
        if label in root.folders and not root.folders[label].images:
            del root.folders[label]
    listed, skipped, faults, lists, place = find_images(root, str(path))
    if faults and not lenient:
        raise DatasetError("\n".join(f"{path}: {fault}" for fault in faults[:NAMED]))
    labels = tuple(sorted({image.label for image in listed}))
    numbers = {label: number for number, label in enumerate(labels)}
    meter = Meter(progress, f"reading {name}", len(listed))
    items: list[Item] = []
    broken: list[Unreadable] = []
    for image in listed:
        meter.advance()
        try:
            content = sha256(read_handle(image.handle))
        except ImageError as error:
            found = Unreadable(source=image.path, split=None, reason=str(error))
            if isinstance(error, ImageTooLargeError):
                raise unreadable([found], len(listed), str(path), PASSING) from None
            broken.append(found)
            continue
        items.append(
            Item(
                split=image.split,
                label=numbers[image.label],
                hash=content,
                source=image.path,
                handle=image.handle,
                below=image.below,
            )
        )
    if too_many(broken, len(listed)):
        raise unreadable(broken, len(listed), str(path))
    if lost := set(range(len(labels))) - {item.label for item in items}:
        raise unreadable(broken, len(listed), str(path), emptied(labels[index] for index in sorted(lost)))
    return LabelledImages(
        name=name,
        title=name,
        labels=labels,
        shape=native_shape(items, read_handle, str(path)),
        mirror=True,
        own=True,
        items=tuple(items),
        read=lambda item: read_handle(item.handle),
        skipped=tuple(skipped),
        unreadable=tuple(broken),
        faults=tuple(faults),
        lists={name: read_list(handle, read_handle, f"{path}/{place}{name}") for name, handle in lists.items()},
        place=path / place if path.is_dir() else None,
    )


def read_list(handle: Any, read: Callable[[Any], bytes], where: str) -> bytes:
    try:
        return read(handle)
    except ImageError as error:
        raise DatasetError(f"{where}: {error}.") from None


def native_shape(items: Sequence[Item], read: Callable[[Any], bytes], where: str) -> tuple[int, int, int]:
    """Return the (height, width, channels) that suits the images, from the headers of a sample; DatasetError if none can be read."""
    training = [item for item in items if item.split == "train"] or items
    sample = sorted(training, key=lambda item: (item.hash, item.source))[:SAMPLE]
    shapes: set[tuple[int, int, int]] = set()
    broken: list[Unreadable] = []
    for item in sample:
        try:
            shapes.add(images.probe(read(item.handle)))
        except ImageError as error:  # decoding reports a few broken images, together with all others
            broken.append(Unreadable(source=item.source, split=item.split, reason=str(error)))
    if sample and not shapes:
        raise unreadable(broken, len(sample), where)
    channels = 1 if all(shape[2] == 1 for shape in shapes) else 3
    sizes = {shape[:2] for shape in shapes}
    height, width = sizes.pop() if len(sizes) == 1 else (USUAL_SIDE, USUAL_SIDE)
    return (USUAL_SIDE, USUAL_SIDE, channels) if max(height, width) > LARGEST_SIDE else (height, width, channels)


def printable(name: str) -> str:
    """Return a file's name as text that can be written anywhere: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_folder(path: Path, above: tuple[tuple[int, int], ...] = ()) -> Folder:
    """List a folder's files as a tree of paths, at most DEPTH levels deep; links are followed, except to a folder above."""
    root = Folder()
    try:
        status = path.stat()
        above = (*above, (status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = printable(entry.name)
                if hidden(name):
                    continue
                inner = Path(entry.path)
                if inner.is_dir():
                    status = inner.stat()
                    if len(above) > DEPTH:
                        raise DatasetError(f"{inner} is more than {DEPTH} folders deep. {LAYOUT}")
                    if (status.st_dev, status.st_ino) not in above:
                        root.folders[name] = list_folder(inner, above)
                elif inner.is_file() or inner.is_symlink():  # a dangling link is an image that cannot be read
                    root.files[name] = inner
    except OSError as error:
        raise DatasetError(f"cannot list the folder {error.filename or path}: {error.strerror or error}.") from None
    return root
