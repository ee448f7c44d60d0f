"""A folder of kept pictures: DIR/DAY/NAME.jpg and its description NAME.json, which is written last; its random sample, and the estimate
from it.

`kept.schema.json` is the description's schema. The sample is in DIR/sample.json: times drawn in advance for each UTC day, and their
outcomes. From it, the accuracy in the field is estimated, using only numpy.
"""

import contextlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from edgecnn.boards import SAMPLE_FILE
from edgecnn.device.stream.pictures import stamp
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import PRIVATE_FILE, open_regular, output_errors, private_folder, sha256, sync_folder, write_atomic
from edgecnn.images import MAX_SIDE, read_file
from edgecnn.labels import plural, utf8
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


def documents(facts: Facts, data: bytes) -> dict[str, bytes]:
    """Return a kept picture's files by suffix, in writing order: the JPEG, then the JSON, which marks it as complete."""
    text = utf8(json.dumps(to_json(facts), ensure_ascii=False, indent=1), r"\\")
    return {".jpg": data, ".json": text.encode() + b"\n"}


def write_files(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write a picture's files by suffix, all or none. OutputError if one cannot be written."""
    for missing in (folder, (folder / name).parent):
        private_folder(missing)
    with contextlib.ExitStack() as undo:
        for suffix, data in files.items():
            write_atomic(folder / f"{name}{suffix}", data, PRIVATE_FILE)
            undo.callback((folder / f"{name}{suffix}").unlink, missing_ok=True)
        undo.pop_all()


def append(path: Path, text: str, mode: int = PRIVATE_FILE) -> None:
    """Append whole lines to a file and wait until they are on disk. OutputError if that fails; the file is then unchanged."""
    new = not path.exists()
    with output_errors(path), open(path, "ab+", 0, opener=lambda name, flags: os.open(name, flags, mode)) as file:
        size = file.tell()
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a power cut left a line unfinished
            size = os.pread(file.fileno(), size, 0).rfind(b"\n") + 1
            file.truncate(size)
        try:
            data = text.encode()
            while data:  # unbuffered: what a full disk did not take must not follow later
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    if new:
        sync_folder(path.parent)


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


SAMPLE_SCHEMA = "edgecnn.sample/1"

DAY_S = 86400

LATE_S = 60.0
"""A time is missed if no frame arrives this long after it. Waiting longer would favour the first frames after an outage."""

MOST_DAYS = 400  # that the file holds


class Counts(NamedTuple):
    """How many times of the sample have passed, and how many of them have a picture; at the others there was no frame."""

    planned: int
    kept: int


def read_counts(folder: Path) -> Counts:
    """Return the counts of a folder's sample; zeros if it has no sample, or the file is damaged."""
    try:
        days = _read(folder / SAMPLE_FILE).values()
    except OutputError:
        return Counts(0, 0)
    return Counts(sum(day["kept"] + day["missed"] for day in days), sum(day["kept"] for day in days))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != SAMPLE_SCHEMA:
            raise ValueError(f"its schema is not {SAMPLE_SCHEMA}")
        return {
            str(day): {"kept": int(of["kept"]), "missed": int(of["missed"]), "due": sorted(map(float, of["due"]))}
            for day, of in sorted(table["days"].items())
        }
    except FileNotFoundError:
        return {}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(f"cannot read {path}: {error}. Remove it to begin a new sample.") from None


def uniform() -> float:
    """Return an unpredictable random number in [0, 1). The module `random` takes longer to import."""
    return int.from_bytes(os.urandom(6), "big") / 2**48


class Sample:
    """Decides when a frame is due. Plan and counts outlive the process, so that no time is due twice."""

    def __init__(self, folder: Path, per_day: int, draw: Callable[[], float] = uniform) -> None:
        """Read the plan of earlier runs, or raise OutputError. A changed `per_day` applies from the next day; 0 plans nothing."""
        self._path = folder / SAMPLE_FILE
        self._per_day = per_day
        self._draw = draw
        self._days = _read(self._path)
        self._day = ""
        self._since = self._next = 0.0

    def is_due(self, ts: float) -> bool:
        """Return whether to keep the frame at this time. Times without a frame are counted as missed."""
        if not self._per_day or self._since <= ts < self._next:
            return False
        self._since = ts
        self._day = time.strftime("%Y-%m-%d", time.gmtime(ts))
        start = ts // DAY_S * DAY_S
        if self._day not in self._days:
            self._plan(start, ts)
        day = self._days[self._day]
        due: list[float] = day["due"]
        while due and due[0] < ts - LATE_S:
            due.pop(0)
            day["missed"] += 1
        self._next = due[0] if due else start + DAY_S
        return bool(due) and due[0] <= ts

    def take(self) -> None:
        """Count the due time as kept before its picture is written, so that no time is due twice. OutputError if that fails."""
        self._days[self._day]["due"].pop(0)
        self._days[self._day]["kept"] += 1
        self._next = 0.0
        self._write()

    def fail(self) -> None:
        """Count the time that was taken last as missed, because its picture could not be written."""
        self._days[self._day]["kept"] -= 1
        self._days[self._day]["missed"] += 1

    def _plan(self, start: float, ts: float) -> None:
        """Draw a day's times. On the first day they start now; on a later day the board may already have missed some."""
        for name, day in self._days.items():
            if name < self._day:  # not later days: a clock may be wrong until it is set
                day["missed"] += len(day["due"])
                day["due"] = []
        times = sorted(start + DAY_S * self._draw() for _ in range(self._per_day))
        due = times if self._days else [one for one in times if one >= ts]
        self._days = {name: self._days[name] for name in sorted(self._days)[-MOST_DAYS:]}
        self._days[self._day] = {"kept": 0, "missed": 0, "due": due}
        self._write()

    def _write(self) -> None:
        private_folder(self._path.parent)
        write_atomic(
            self._path, json.dumps({"schema": SAMPLE_SCHEMA, "days": self._days}, indent=1) + "\n", PRIVATE_FILE
        )


HOUR_S = 3600

BLOCKS = 7
"""How many blocks the sample's time span is divided into, for scenes that last longer than an hour."""

Z = 1.959964
"""The normal distribution's 97.5th percentile."""


class Estimate(Struct):
    """Accuracy in the field: a fraction with its 95 % interval, from `n` pictures in `hours` different hours.

    `skipped` pictures have no answer; `bounds` is the accuracy if the model was wrong on all of them, or right. Of the sample's `planned`
    times that have passed, `kept` have a picture; at the others there was no frame.
    """

    accuracy: float
    low: float
    high: float
    n: int
    hours: int
    skipped: int
    bounds: tuple[float, float]
    planned: int
    kept: int

    @property
    def text(self) -> str:
        """The estimate as a line, such as "in the field 84.0 % right: 212 random pictures from 60 hours, 95 % interval 77 to 89 %"."""
        low, high = (100 * end for end in self.bounds)
        skipped = f"; with the {self.skipped} skipped, between {low:.1f} and {high:.1f} %" if self.skipped else ""
        sample = f"{plural(self.n, 'random picture')} from {plural(self.hours, 'hour')}"
        interval = f"95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %"
        return f"in the field {100 * self.accuracy:.1f} % right: {sample}, {interval}{skipped}"


def field_accuracy(sample: Sequence[tuple[float, bool | None]], planned: int, kept: int) -> Estimate | None:
    """Estimate accuracy from the answers on the random sample; None if none of them is right or wrong.

    `sample` has for each picture the time of its frame, and whether the model's best class was right; None if nobody can say, because it
    was skipped or shows none of the classes. `planned` and `kept` are the sample's counts (`read_counts`).
    """
    known = [(ts, right) for ts, right in sample if right is not None]
    if not known:
        return None
    times, right = np.array(known, float).T
    low, high = clustered_interval(right, times)
    n, skipped, total = len(known), len(sample) - len(known), right.sum()
    return Estimate(
        accuracy=float(right.mean()), low=low, high=high, n=n, hours=len(np.unique(times // HOUR_S)), skipped=skipped,
        bounds=(float(total / len(sample)), float((total + skipped) / len(sample))), planned=planned, kept=kept,
    )  # fmt: skip


def clustered_interval(right: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a share of answers that are correlated while a scene persists: Wilson's, with fewer answers.

    Args:
        right: float (n,) of 0 and 1.
        times: float (n,), seconds.

    Answers are clustered by hour, and by longer blocks: BLOCKS over the whole time, each at most a day. The wider interval counts. The
    design effect is the clustered variance of the mean divided by that of independent answers, at least 1. Wilson's interval uses n
    divided by it, and Student's t with clusters - 1 degrees of freedom instead of the normal distribution.

    Source: Kish 1965, "Survey Sampling"; Dean & Pagano 2015, "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered
    Surveys".
    """
    n, mean, start = len(right), float(right.mean()), float(times.min())
    span = float(times.max()) - start
    block = min(max(span / BLOCKS, HOUR_S), DAY_S)
    last = max(math.ceil(span / block) - 1, 0)  # the newest answer begins no block of its own
    by_hour, by_block = (
        np.unique(number, return_inverse=True)[1]
        for number in (times // HOUR_S, np.minimum((times - start) // block, last))
    )
    unknown = n / (by_hour.max() + 1)  # if all answers are the same, they may depend entirely on their hour
    ends = [
        _wilson(mean, n / _design_effect(right, clusters, unknown), student(int(clusters.max())))
        for clusters in ((by_hour, by_block) if by_block.max() >= BLOCKS - 1 else (by_hour,))
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _design_effect(right: np.ndarray, clusters: np.ndarray, unknown: float) -> float:
    n, count, mean = len(right), int(clusters.max()) + 1, float(right.mean())
    if count == 1 or mean in (0, 1):
        return float(n) if count == 1 else unknown
    sums = np.bincount(clusters, right - mean)
    return max(1.0, float(count / (count - 1) * (sums**2).sum() / (n * mean * (1 - mean))))


def _wilson(mean: float, n: float, t: float) -> tuple[float, float]:
    middle = (mean + t * t / (2 * n)) / (1 + t * t / n)
    half = t / (1 + t * t / n) * (mean * (1 - mean) / n + t * t / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def student(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t, accurate to 1 % from 3 degrees of freedom. Source: Abramowitz & Stegun 26.7.5."""
    if freedom < 3:
        return (Z, 12.706, 4.303)[freedom]
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
