"""A user's own images: a folder or a zip with one subfolder per class, and photos that a model's own training never saw as the test split.

A zip is read in place: nothing is unpacked to the disk.
"""

import dataclasses
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgecnn import images
from edgecnn.data.items import (
    LAYOUT,
    NAMED,
    PASSING,
    Folder,
    Item,
    LabelledImages,
    Meter,
    Progress,
    emptied,
    find_images,
    hidden,
    insert,
    too_many,
    unreadable,
)
from edgecnn.errors import DatasetError, ImageError, ImageTooLargeError, UnsafeArchiveError
from edgecnn.files import sha256
from edgecnn.images import MAX_FILE_BYTES
from edgecnn.run_info import Unreadable

MAX_ARCHIVE_BYTES = 16 * 1024**3
"""Maximum bytes that a zip's members may claim in total."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that unpack piece by piece, so that a false size cannot fill the memory."""


DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, OverflowError)
"""Errors that zipfile raises on damaged and hostile archives."""


def open_zip(path: Path) -> tuple[Folder, Callable[[zipfile.ZipInfo], bytes]]:
    """List a zip's files except hidden ones; return their tree and a function that reads one, which raises ImageError.

    UnsafeArchiveError for a path that leads outside or sizes above the limits, DatasetError for unreadable data.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DatasetError(f"{path} is not a zip file, or it is damaged: {error}. Make the zip again.") from None
    root = Folder()
    total = 0
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            raise UnsafeArchiveError(
                f"{path}: the member {member.filename!r} points outside the archive. Nothing was read; "
                "make the zip again from a folder that you trust."
            )
        total += member.file_size
        if member.file_size > MAX_FILE_BYTES or total > MAX_ARCHIVE_BYTES:
            raise UnsafeArchiveError(
                f"{path}: the member {member.filename!r} claims {member.file_size:,} bytes, which brings the total to {total:,}. "
                f"The limits are {MAX_FILE_BYTES:,} for one and {MAX_ARCHIVE_BYTES:,} for all. Nothing was read."
            )
        if not parts or any(map(hidden, parts)):
            continue
        if member.flag_bits & 1 or member.compress_type not in METHODS:
            raise DatasetError(
                f"{path}: the member {member.filename!r} is encrypted or uses an unsupported compression method. "
                "Make the zip again, stored or deflated, without a password."
            )
        try:
            insert(root, parts, None if name.endswith("/") else member)
        except ValueError as error:
            raise DatasetError(f"{path} is not a valid zip: {error}. Make the zip again.") from None

    def read(member: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size)  # not read(), which would unpack more than the claimed size
        except DAMAGE as error:
            raise ImageError(f"it is damaged in the zip: {error}") from None
        if len(data) != member.file_size:
            raise ImageError(f"the zip contains only {len(data):,} of its {member.file_size:,} bytes")
        return data

    return root, read


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
    name = escaped_name(name)
    for label in may_be_empty:
        if label in root.folders and not root.folders[label].images:
            del root.folders[label]
    tree = find_images(root, str(path))
    listed = tree.images
    if tree.faults and not lenient:
        raise DatasetError("\n".join(f"{path}: {fault}" for fault in tree.faults[:NAMED]))
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
        skipped=tuple(tree.skipped),
        unreadable=tuple(broken),
        faults=tuple(tree.faults),
        lists={
            name: read_list(handle, read_handle, f"{path}/{tree.place}{name}") for name, handle in tree.lists.items()
        },
        place=path / tree.place if path.is_dir() else None,
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


def escaped_name(name: str) -> str:
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
                name = escaped_name(entry.name)
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


def with_unseen(listed: LabelledImages, unseen: LabelledImages) -> LabelledImages:
    """Return the images of a source for training and validation, and those of another for test.

    Raises DatasetError if the other has a class that the source lacks.
    """
    if more := sorted(set(unseen.labels) - set(listed.labels)):
        raise DatasetError(
            f"{unseen.name} has classes that {listed.name} lacks: {', '.join(map(repr, more[:4]))}. "
            "Expected photos of the same classes, in folders of the same names."
        )

    def read_by(images: LabelledImages, item: Item, **changes: Any) -> Item:
        return dataclasses.replace(item, handle=(images.read, item), **changes)

    numbers = [listed.labels.index(label) for label in unseen.labels]
    items = [read_by(listed, item) for item in listed.items if item.split != "test"]
    for item in unseen.items:
        label, source = numbers[item.label], f"{unseen.name}/{item.source}"
        items.append(read_by(unseen, item, split="test", label=label, source=source))
    return dataclasses.replace(
        listed,
        items=tuple(items),
        read=lambda item: item.handle[0](item.handle[1]),
        unreadable=(*listed.unreadable, *unseen.unreadable),
        lists={},
        place=None,
    )
