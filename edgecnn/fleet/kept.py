"""Fetch a board's kept pictures over ssh: only those that are missing here, and each file whole."""

import contextlib
import re
import shlex
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgecnn.device.keep.folder import FILE_MODE, SAMPLE_FILE, make_folder
from edgecnn.device.review import LABELS
from edgecnn.device.service.config import CONFIG
from edgecnn.files import write_atomic
from edgecnn.fleet.ssh import Board, BoardError

PICTURE = re.compile(r"\./\d{4}-\d\d-\d\d/\d{8}T\d{6}\.\d{6}Z-\d+\.(?:jpg|json)", re.ASCII)
CHANGING = {f"./{SAMPLE_FILE}", f"./{LABELS}"}

ODD = (ValueError, OverflowError, LookupError, RecursionError)
"""What `tarfile` raises, apart from its own errors, for headers that nobody has written by accident."""

MOST_BYTES = 64 << 20
"""Limit for one file: somebody else may have taken over the board."""

SCRIPT = r"""
LC_ALL=C; export LC_ALL
cd -- "$folder" 2>/dev/null || { echo "no folder $folder" >&2; exit 1; }
{ cat; echo; find . -maxdepth 2 -type f \( -name '*.jpg' -o -name '*.json' -o -name '*.jsonl' \) | sort; } |
  awk '!length { listed = 1; next } !listed { here[$0] = 1; next } !($0 in here)' |
  tar -c --no-recursion --ignore-failed-read -f - -T -
[ $? -le 1 ]
"""
"""Sends the files that standard input does not name, a JPEG before its JSON; files that the board removes meanwhile are left out."""


def remote_folder(board: Board) -> str:
    """Return the folder of pictures that a board's service keeps, from its options; BoardError if it keeps none."""
    text = board.run(f"cat {CONFIG}").out
    try:
        folder = tomllib.loads(text).get("keep", "")
    except (ValueError, RecursionError):
        folder = ""
    if not folder or not isinstance(folder, str):
        raise BoardError(
            f"its service keeps no pictures: {CONFIG} has no keep. Name another folder there with --remote-folder"
        )
    return folder


def fetch_kept(board: Board, remote: str, folder: Path, progress: Callable[[int], object]) -> int:
    """Fetch the files of a board's folder that a local one lacks; return the number of pictures.

    Each file arrives whole or not at all, and a JPEG before its JSON; after an error, run it again to continue. BoardError, and OutputError
    for this machine's disk.
    """
    make_folder(folder)
    for path in folder.glob("*/.*.tmp"):  # from a fetch that was killed
        path.unlink()
    here = sorted(f"./{path.relative_to(folder)}" for path in folder.glob("*/*") if path.suffix in (".jpg", ".json"))
    script, names = f"folder={shlex.quote(remote)}{SCRIPT}", "".join(f"{name}\n" for name in here)
    count, whole = 0, False
    with board.reading(script, names.encode()) as stream, contextlib.suppress(tarfile.TarError, *ODD):
        bounded = Bounded(stream)
        with tarfile.open(fileobj=bounded, mode="r|", errorlevel=2) as archive:  # type: ignore[call-overload]
            for entry in archive:
                if take_entry(archive, entry, folder):
                    count += 1
                    progress(count)
                bounded.left = MOST_BYTES
        whole = True
        while bounded.read(1 << 16):
            pass
    if not whole:
        raise BoardError("the connection broke, or it does not send an archive")
    return count


class Bounded:
    """A stream that gives at most `left` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.left = stream, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise BoardError(f"it sends a file of more than {MOST_BYTES:,} bytes")
        return data


def take_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> bool:
    """Write an entry of the archive if it is an expected one; return whether it completes a picture."""
    match = PICTURE.fullmatch(entry.name)
    if not entry.isreg() or entry.issparse() or not (match or entry.name in CHANGING):  # a sparse file has no limit
        return False
    file = archive.extractfile(entry)
    assert file is not None
    path = folder / entry.name
    if path.parent != folder:
        make_folder(path.parent)
    write_atomic(path, file.read(), FILE_MODE)
    return path.suffix == ".json" and match is not None
