"""A folder of kept pictures: DIR/DAY/NAME.jpg and its description NAME.json, which is written last. `kept.schema.json` is its schema."""

import contextlib
import json
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgecnn.device.stream.pictures import stamp
from edgecnn.errors import ImageError
from edgecnn.files import open_regular, output_errors, sha256, write_atomic
from edgecnn.images import MAX_SIDE, read_file
from edgecnn.labels import utf8
from edgecnn.region import EXPECTED, is_region
from edgecnn.tables import Struct, build, fields_of, key, to_json

SCHEMA = "edgecnn.kept/1"

Why = Literal["unsure", "stranger", "random"]

UNSURE: Why = "unsure"
STRANGER: Why = "stranger"
RANDOM: Why = "random"
"""Why a picture was kept. A frame of the random sample is RANDOM, however unsure its answer."""

DAY, NAME = re.compile(r"\d{4}-\d\d-\d\d"), re.compile(r"\d{8}T\d{6}\.\d{6}Z-\d+")

MOST_BYTES = 1 << 20  # of a picture's JSON

LAST_S = 253_402_300_799  # the last second of the year 9999: names hold four digits of the year

FOLDER_MODE, FILE_MODE = 0o700, 0o600  # these are pictures of somebody's home


class KeptModel(Struct):
    """The model that answered: its bundle's name and the hash of its own file."""

    name: str
    sha256: str


class KeptScore(Struct):
    """A class and its softmax probability."""

    label: str
    score: float = key(low=0, high=1)


class KeptPicture(Struct):
    """The JPEG file: its hash, and its upright width and height in pixels."""

    sha256: str
    width: int = key(low=1, high=MAX_SIDE)
    height: int = key(low=1, high=MAX_SIDE)


class Facts(Struct):
    """The content of a kept picture's JSON.

    Attributes:
        ts: when the frame was complete, in seconds since the epoch (UTC).
        why: UNSURE, STRANGER or RANDOM.
        scores: of the best classes, best first, as many as the result had.
        label: the decision; None if the decision was not a label, for `reason`.
        region: the part of the picture that the model saw, as in `edgecnn.region`; the rest is grey. None for the whole picture.
    """

    schema: Literal["edgecnn.kept/1"] = "edgecnn.kept/1"
    ts: float = key(low=0, high=LAST_S)
    why: Why
    source: str
    seq: int = key(low=0)
    model: KeptModel
    scores: tuple[KeptScore, ...]
    label: str | None
    reason: str | None
    region: tuple[float, float, float, float] | None = key(valid=is_region, expected=EXPECTED)
    picture: KeptPicture

    @property
    def guess(self) -> str | None:
        """The best class, even if the decision was not a label; None without scores."""
        return self.scores[0].label if self.scores else None


class Kept(Facts):
    """A kept picture: its facts, and the path of its JPEG file."""

    path: Path

    def read(self) -> bytes:
        """Return the JPEG file's bytes; ImageError if it cannot be read, or has changed since."""
        data = read_file(self.path)
        if sha256(data) != self.picture.sha256:
            raise ImageError("the picture has changed since it was kept: its SHA-256 differs")
        return data


def name_of(ts: float, seq: int) -> str:
    """Return a kept picture's path in the folder, without suffix: its day in UTC, time and number."""
    return f"{time.strftime('%Y-%m-%d', time.gmtime(ts))}/{stamp(ts, 6)}-{seq}"


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can read; leave an existing one unchanged. OutputError if that fails."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def documents(facts: Facts, data: bytes) -> dict[str, bytes]:
    """Return a kept picture's files by suffix, in writing order: the JPEG, then the JSON, which marks it as complete."""
    text = utf8(json.dumps(to_json(facts), ensure_ascii=False, indent=1), r"\\")
    return {".jpg": data, ".json": text.encode() + b"\n"}


def write_files(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write a picture's files by suffix, all or none. OutputError if one cannot be written."""
    for missing in (folder, (folder / name).parent):
        make_folder(missing)
    with contextlib.ExitStack() as undo:
        for suffix, data in files.items():
            write_atomic(folder / f"{name}{suffix}", data, FILE_MODE)
            undo.callback((folder / f"{name}{suffix}").unlink, missing_ok=True)
        undo.pop_all()


def write_kept(folder: Path, facts: Facts, data: bytes) -> Kept:
    """Write a picture as a keeper does, and return it. OutputError if it cannot be written."""
    name = name_of(facts.ts, facts.seq)
    write_files(folder, name, documents(facts, data))
    return Kept(path=folder / f"{name}.jpg", **vars(facts))


def kept_pictures(folder: Path) -> list[Kept]:
    """Return a folder's kept pictures, oldest first; a missing folder has none.

    Incomplete or damaged pictures, links and other files are skipped: a folder fetched from a board may hold anything.
    """
    paths = sorted(
        path for path in folder.glob("*/*.json") if DAY.fullmatch(path.parent.name) and NAME.fullmatch(path.stem)
    )
    return [kept for path in paths if not path.parent.is_symlink() and (kept := read_kept(path)) is not None]


def read_kept(path: Path) -> Kept | None:
    """Return the kept picture of a JSON file and the JPEG next to it; None if they are not one. Unknown fields are ignored."""
    picture = path.with_suffix(".jpg")
    try:
        if not all(stat.S_ISREG(file.lstat().st_mode) for file in (picture, path)):
            return None
        with open_regular(path) as file:
            table = json.loads(file.read(MOST_BYTES + 1) or b"")
        known = {name: value for name, value in table.items() if name in fields_of(Facts)}
        return Kept(path=picture, **vars(build(Facts, known, ValueError)))
    except (OSError, ValueError, AttributeError, RecursionError):  # also if the JSON is not an object
        return None
