"""From SOURCE arguments to images: a file, a folder, a glob, or `-` for a list of paths on standard input."""

import os
from collections.abc import Callable, Iterable, Iterator

from edgecnn.errors import ImageError
from edgecnn.images import SUFFIXES, left_out

STDIN = "-"


def expand(
    sources: Iterable[str], stdin: Iterable[bytes], note: Callable[[str], object] = lambda text: None
) -> Iterator[tuple[str, ImageError | None]]:
    """Yield the images that SOURCE arguments stand for, in order, without opening them.

    A folder stands for the images in it and below, sorted, hidden ones left out. A glob stands for what it matches,
    sorted. `-` stands for what the lines of standard input stand for.

    Args:
        sources: the arguments.
        stdin: lines of paths, read when a `-` is reached.
        note: called with a line about the files of a folder that are not read as images.

    Yields:
        (path, None), or (source, error) for one that stands for nothing.
    """
    for source in sources:
        if source == STDIN:
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in stdin)
            for line in lines:
                if line:
                    yield from _expand_one(line, note)
        else:
            yield from _expand_one(source, note)


def _expand_one(source: str, note: Callable[[str], object]) -> Iterator[tuple[str, ImageError | None]]:
    if os.path.isdir(source):
        yield from _folder(source, note)
        return
    if os.path.lexists(source):
        yield source, None
        return
    import glob  # a file's name needs no patterns, and starts faster without

    if glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        for match in matches:
            yield from _folder(match, note) if os.path.isdir(match) else [(match, None)]
        if not matches:
            yield source, ImageError("the pattern matches nothing")
    elif "." in source or "/" in source:
        yield source, ImageError("no such file or folder")
    else:  # an image has a suffix; somebody who types 0 or webcam means a camera
        yield source, ImageError("no such file or folder", advice="name_camera")


def _leads_back(source: str, folder: str, name: str) -> bool:
    """Tell whether an entry of a folder is a link to a folder that was entered on the way from `source`, or that contains it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target, above = os.path.realpath(path), source
    for part in folder[len(source) :].split(os.sep):
        above = os.path.join(above, part)
        if os.path.commonpath((target, os.path.realpath(above))) == target:
            return True
    return False


def _folder(source: str, note: Callable[[str], object]) -> Iterator[tuple[str, ImageError | None]]:
    unreadable: list[OSError] = []
    any_image = False
    others: list[str] = []
    for folder, folders, names in os.walk(source, onerror=unreadable.append, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(source, folder, name)
        )
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(SUFFIXES):
                any_image = True
                yield os.path.join(folder, name), None
            else:
                others.append(name)
    if others:
        note(f"{source}: {left_out(others)}")
    for error in unreadable:
        yield os.fsdecode(error.filename or source), ImageError(f"cannot be read: {error.strerror or error}")
    if not any_image and not unreadable:
        yield source, ImageError(f"no images in this folder; they end in {' '.join(SUFFIXES)}")
