"""A folder of plain photos as pictures to label: no board kept them, so they have no guess."""

import os
from pathlib import Path

from edgecnn.device.keep.folder import UNSURE, Kept, KeptModel, KeptPicture
from edgecnn.device.stream.sources import expand
from edgecnn.errors import ImageError
from edgecnn.files import sha256
from edgecnn.images import probe, read_file


class Plain:
    """Lists a folder's images, and those of its sub-folders, oldest first, without those in `photos`; reads a file again if it changes."""

    def __init__(self, photos: Path) -> None:
        self._photos = photos.resolve()
        self._known: dict[tuple[str, int, int], Kept | None] = {}

    def __call__(self, folder: Path) -> list[Kept]:
        paths = (Path(path) for path, error in expand([str(folder)], ()) if error is None)
        found = (self._picture(path) for path in paths if self._photos not in path.resolve().parents)
        return sorted(filter(None, found), key=lambda kept: (kept.ts, kept.path))

    def _picture(self, path: Path) -> Kept | None:
        try:
            status = path.stat()
        except OSError:
            return None
        key = os.fspath(path), status.st_size, status.st_mtime_ns
        if key not in self._known:
            self._known[key] = described(path, status.st_mtime)
        return self._known[key]


def described(path: Path, ts: float) -> Kept | None:
    """Return a file as a kept picture; None if it cannot be read. One that is no image counts as damaged, as on a board."""
    try:
        data = read_file(path)
    except ImageError:
        return None
    try:
        height, width, _ = probe(data)
    except ImageError:
        height = width = 1
    return Kept(
        path=path, ts=max(0.0, ts), why=UNSURE, source=str(path), seq=0, model=KeptModel(name="", sha256=""), scores=(), label=None,
        reason=None, region=None, picture=KeptPicture(sha256=sha256(data), width=width, height=height),
    )  # fmt: skip
