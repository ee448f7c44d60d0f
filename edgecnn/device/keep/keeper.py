"""Keeps frames of a stream in a folder of limited size: unsure frames, strangers, and the random sample.

A kept picture is only the part that the model saw, in a file that `edgecnn train` reads the same way. Whether two frames show almost the
same thing follows from the model's features if it has any, else from thumbnails.
"""

import contextlib
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.boards import SAMPLE_FILE
from edgecnn.device.keep.folder import (
    DAY,
    DAY_S,
    NAME,
    RANDOM,
    STRANGER,
    UNSURE,
    Facts,
    KeptModel,
    KeptPicture,
    KeptScore,
    Sample,
    Why,
    append,
    documents,
    name_of,
    write_files,
)
from edgecnn.device.stream.events import Event, FrameResult, RateLimiter, SaveFailedEvent
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.pictures import encode, part, stamp, thumbnail
from edgecnn.device.stream.settings import Reaction, Settings
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import PRIVATE_FILE, output_errors, private_folder, sha256, write_atomic
from edgecnn.images import probe, suffix_of
from edgecnn.region import WHOLE, Region, pixel_box
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import UNFAMILIAR, unit_rows

GREY = 128


class View(NamedTuple):
    """The part of a stream's frames that a model sees.

    `rotation` turns a frame upright, clockwise. `seen` is the region that is classified, `own` the region that the model was trained with.
    """

    rotation: int
    seen: Region
    own: Region

    def jpeg(self, image: bytes | np.ndarray) -> tuple[bytes, int, int]:
        """Return a frame as JPEG bytes with its width and height: the model's own region with what it saw, and grey around it.

        Training cuts the region out of each photo, so the picture has to be a whole one. For a model without a region, the picture is just
        what the model saw. A JPEG that the model saw in full is not changed.
        """
        whole = not self.rotation and self.seen == self.own == WHOLE
        if whole and isinstance(image, bytes) and suffix_of(image) == ".jpg":
            height, width, _ = probe(image)
            return image, width, height
        pixels = part(image, self.rotation, WHOLE if self.seen == self.own else self.seen)
        if self.own != WHOLE:
            pixels = grey_around(pixels, self.own) if self.seen == self.own else on_grey(pixels, self.own)
        return encode(pixels)[0], pixels.shape[1], pixels.shape[0]


def grey_around(whole: np.ndarray, region: Region) -> np.ndarray:
    """Return an upright frame, uint8 (height, width, 3), with grey around a region."""
    left, top, right, bottom = pixel_box((whole.shape[1], whole.shape[0]), region)
    grey = np.full_like(whole, GREY)
    grey[top:bottom, left:right] = whole[top:bottom, left:right]
    return grey


def on_grey(pixels: np.ndarray, region: Region) -> np.ndarray:
    """Return a grey picture with these pixels, uint8 (height, width, 3), as a region, to within a row or column."""
    height, width = pixels.shape[:2]
    whole = np.full((round(height / region[3]), round(width / region[2]), pixels.shape[2]), GREY, np.uint8)
    left, top, right, bottom = pixel_box((whole.shape[1], whole.shape[0]), region)
    place = whole[top:bottom, left:right]
    place[:height, :width] = pixels[: place.shape[0], : place.shape[1]]
    return whole


def pictures_of(classifier: "Classifier", view: View) -> Callable[[FrameResult, Why], dict[str, bytes]]:
    """Return a function that makes a frame's JPEG and JSON."""
    model = KeptModel(name=classifier.name, sha256=classifier.model_sha256)
    region = None if view.own == WHOLE else view.own

    def make(result: FrameResult, why: Why) -> dict[str, bytes]:
        data, width, height = view.jpeg(result.image)
        facts = Facts(
            ts=result.ts, why=why, source=result.source, seq=result.seq, model=model,
            scores=tuple(KeptScore(label=score.label, score=round(float(score.score), 6)) for score in result.top),
            label=None if result.reason else result.decision, reason=result.reason,
            region=region, picture=KeptPicture(sha256=sha256(data), width=width, height=height),
        )  # fmt: skip
        return documents(facts, data)

    return make


REMEMBERED = 200  # pictures to compare a new one with

NEAR = 0.3
"""Two frames are alike if their features are closer than this share of a validation image's usual distance to the known images. Nine in ten
photos that were moved by two pixels, made 7 % brighter and noisy stay below it; so does one in twenty different photos of a class."""

LEAST_CHANGE = 5.0
"""Without features: the least `pictures.change` between two thumbnails, in grey levels. Light changes by itself, so `capture` uses less."""


class Alike:
    """Remembers the newest pictures of this process."""

    def __init__(self, view: View, usual: float | None) -> None:
        """`usual` is a validation image's distance (1 - cosine) to the known images; None compares thumbnails of the seen region."""
        self._view, self._usual = view, usual
        self._seen: deque[np.ndarray] = deque(maxlen=REMEMBERED)

    def look(self, result: FrameResult) -> np.ndarray:
        """Return a frame's values for comparison, float32: its features at length 1, or its thumbnail as a row."""
        if self._usual is not None and result.features is not None:
            return unit_rows(result.features[np.newaxis])[0]
        image = result.image
        return thumbnail(image if self._view.seen == WHOLE else part(image, *self._view[:2])).ravel()

    def seen(self, look: np.ndarray) -> bool:
        if not self._seen:
            return False
        known = np.stack(self._seen)
        if self._usual is None:
            return bool((np.abs(known - look).mean(axis=1) < LEAST_CHANGE).any())
        return bool((known @ look > 1 - NEAR * self._usual).any())

    def remember(self, look: np.ndarray) -> None:
        self._seen.append(look)


INDEX = ".edgecnn-saved"
"""In the folder: size, reason and path of each written file, oldest first. No other file is ever removed."""

LEFT_OVER = re.compile(rf"\.({NAME.pattern}\.\w+|{re.escape(INDEX)}|{re.escape(SAMPLE_FILE)})\.[0-9a-f]{{16}}\.tmp")
"""The names that `write_atomic` gives to files of the folder until they are complete."""

LEAST_INTERVAL_S = 1.0  # between two unsure frames that are considered: frames within a second are almost the same

FAILED_EVERY_S = 10.0  # how long unsure frames are ignored after a failure

PER_HOUR, STRANGE = 6, 10
"""An hour gets at most a sixth of a day's unsure frames, and strangers at most a tenth: the others teach more (docs/second-day.md)."""

EXPIRE_EVERY_S = 3600.0

MOST_STALE = 64  # the index is never rewritten for fewer stale lines than this


class Written(NamedTuple):
    """A written file: its size, the reason, and its path in the folder."""

    size: int
    why: str
    name: str


class Keeper(Consumer):
    """Keeps a limited number of frames per day as DIR/DAY/NAME.*, and removes the oldest above a total size and after some days."""

    def __init__(
        self,
        folder: Path,
        settings: Reaction,
        make: Callable[[FrameResult, Why], Mapping[str, bytes]],
        *,
        alike: Alike,
        interruptible: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Read the index of earlier runs, or raise OutputError.

        `make` returns a frame's files by suffix, in writing order. Making and writing both run within `interruptible`.
        """
        self._folder, self._settings, self._make = folder, settings, make
        self._cap_bytes = round(settings.keep_cap * 2**20)
        self._interruptible = interruptible
        self._clock, self._wall = clock, wall
        self._failed = RateLimiter(FAILED_EVERY_S, clock)
        self._expiry = RateLimiter(EXPIRE_EVERY_S, clock)
        self._not_before = -math.inf
        self._stale = 0
        self.on_kept: Callable[[str, FrameResult], object] = lambda name, result: None
        """Called with the path in the folder of each picture that is not part of the random sample."""
        self._alike = alike
        self._sweep()
        self._sample = Sample(folder, settings.keep_random)
        self._files: deque[Written] = deque(self._read_index())
        self._bytes = sum(file.size for file in self._files)
        self._counts: Counter[tuple[str, str]] = Counter()
        for name, why in dict.fromkeys((file.name.rpartition(".")[0], file.why) for file in self._files):
            self._count(name, why)

    def take(self, item: Item) -> Iterable[Event]:
        """Keep a frame that is due or unsure; return an event if it cannot be written."""
        if not isinstance(item, FrameResult):
            return ()
        try:
            with self._interruptible:
                self.offer(item)
        except (ImageError, OutputError) as error:
            self._not_before = self._clock() + FAILED_EVERY_S
            return self._failure(item.source, str(error), item.seq)
        return ()

    def poll(self) -> Iterable[Event]:
        """Remove old files from time to time."""
        if self._expiry.count():
            oldest = stamp(max(0.0, self._wall() - self._settings.keep_days * DAY_S), 6)
            try:
                # all files, not only the first: a wrong clock may have given an old one a new time
                for file in [file for file in self._files if os.path.basename(file.name) < oldest]:
                    self._remove(file)
                self._tidy()
            except OutputError as error:
                return self._failure("", str(error), 0)
        return ()

    def offer(self, result: FrameResult) -> None:
        """Keep a frame that is due or unsure. OutputError if it cannot be written completely; ImageError if `make` raises it."""
        if self._sample.is_due(result.ts):
            try:
                self._sample.take()
                self._keep(result, RANDOM, self._alike.look(result))
            except (ImageError, OutputError):
                self._sample.fail()
                raise
        elif why := self._why(result):
            look = self._alike.look(result)
            if not self._alike.seen(look):
                self._keep(result, why, look)

    def newest(self, count: int) -> list[str]:
        """Return the paths in the folder of the newest pictures outside the random sample, oldest first."""
        return [file.name for file in self._files if file.why != RANDOM and not file.name.endswith(".json")][-count:]

    def _why(self, result: FrameResult) -> Why | None:
        """Return why to keep a frame that the random sample does not need; None to drop it."""
        if result.reason is None and result.lead >= self._settings.keep_margin:
            return None
        now = self._clock()
        if now < self._not_before:
            return None
        self._not_before = now + LEAST_INTERVAL_S
        most, name = self._settings.keep_unsure, name_of(result.ts, 0)
        why = STRANGER if result.reason == UNFAMILIAR else UNSURE
        if self._counts[day_of(name), ""] >= most or self._counts[hour_of(name), ""] >= -(-most // PER_HOUR):
            return None
        return None if why == STRANGER and self._counts[day_of(name), STRANGER] >= -(-most // STRANGE) else why

    def _count(self, name: str, why: str) -> None:
        if why == RANDOM:
            return
        for key in ((day_of(name), ""), (hour_of(name), ""), (day_of(name), why)):
            self._counts[key] += 1

    def _keep(self, result: FrameResult, why: Why, look: np.ndarray) -> None:
        files = self._make(result, why)
        size = sum(map(len, files.values()))
        if size > self._cap_bytes:
            raise OutputError(
                f"a frame of {size:,} bytes is larger than the limit for all kept frames, {self._cap_bytes:,} bytes. "
                "Allow more with --keep-cap."
            )
        while self._files and self._bytes + size > self._cap_bytes:
            self._remove_oldest()
        name = name_of(result.ts, result.seq)
        written = [Written(len(data), why, name + suffix) for suffix, data in files.items()]
        private_folder(self._folder)
        # first, so that files left by a power cut are removed in due time
        append(self._folder / INDEX, index_text(written))
        self._stale += len(written)
        write_files(self._folder, name, files)
        self._stale -= len(written)
        self._files += written
        self._bytes += size
        self._count(name, why)
        self._alike.remember(look)
        if why != RANDOM:
            self.on_kept(written[0].name, result)

    def _remove_oldest(self) -> None:
        """Remove all files of the oldest picture."""
        stem = self._files[0].name.rpartition(".")[0]
        while self._files and self._files[0].name.rpartition(".")[0] == stem:
            self._remove(self._files[0])
        self._tidy()

    def _tidy(self) -> None:
        """Rewrite the index if the files of most of its lines are gone."""
        if self._stale > max(MOST_STALE, len(self._files)):
            self._stale = 0
            write_atomic(self._folder / INDEX, index_text(self._files), PRIVATE_FILE)

    def _remove(self, file: Written) -> None:
        """Remove a file if its size is unchanged, and its day's folder if that is then empty."""
        path = self._folder / file.name
        with output_errors(path), contextlib.suppress(FileNotFoundError):
            if path.lstat().st_size == file.size:
                path.unlink()
        self._files.remove(file)
        self._bytes -= file.size
        self._stale += 1
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def _sweep(self) -> None:
        """Remove the temporary files of a process that was killed while writing."""
        for path in (*self._folder.glob(".*.tmp"), *self._folder.glob("*/.*.tmp")):
            if LEFT_OVER.fullmatch(path.name) and (path.parent == self._folder or DAY.fullmatch(path.parent.name)):
                with output_errors(path):
                    path.unlink()

    def _read_index(self) -> list[Written]:
        """Return the files of earlier runs that still exist, oldest first."""
        try:
            lines = (self._folder / INDEX).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot read {self._folder / INDEX}: {error}. Remove it to start over.") from None
        files = []
        for line in lines:
            size, _, rest = line.partition(" ")
            why, _, name = rest.partition(" ")
            day, _, file = name.partition("/")
            # skips a line that was cut short by a power cut, or edited
            if size.isdecimal() and DAY.fullmatch(day) and NAME.fullmatch(file.rpartition(".")[0]):
                with contextlib.suppress(OSError):
                    if os.lstat(self._folder / name).st_size == int(size):
                        files.append(Written(int(size), why, name))
        self._stale = len(lines) - len(files)
        return files

    def _failure(self, source: str, message: str, seq: int) -> Iterable[Event]:
        count = self._failed.count()
        return (
            (SaveFailedEvent(ts=self._wall(), source=source, message=message, seq=seq, count=count),) if count else ()
        )


def index_text(files: Iterable[Written]) -> str:
    return "".join(f"{file.size} {file.why} {file.name}\n" for file in files)


def day_of(name: str) -> str:
    return name[:10]


def hour_of(name: str) -> str:
    """Return the hour of a kept picture's path below the folder: 20261128T10."""
    return name[11:22]


def make_keepers(
    settings: Settings,
    classifier: "Classifier",
    interruptible: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),
) -> list[Keeper]:
    """Return the keepers of frames and of their explanations, if the settings name folders for them.

    From now on the classifier returns features with its results, if its model has any. Raises OutputError like `Keeper`.
    """
    chosen, rotation = settings.reaction, settings.camera.rotation
    if not (chosen.keep or chosen.explain):
        return []
    limit = classifier.bundle.manifest.stranger
    classifier.gives_features = limit is not None and classifier.model.engine.features is not None
    usual = 1 - float(np.median(limit.similarities)) if limit and classifier.gives_features else None
    view = View(rotation, classifier.region, classifier.bundle.manifest.input.region)
    keepers = []
    if chosen.keep:
        make = pictures_of(classifier, view)
        keepers.append(Keeper(chosen.keep, chosen, make, alike=Alike(view, usual), interruptible=interruptible))
    if chosen.explain:
        from edgecnn.device.explain import frame_pictures

        explained, only_unsure = frame_pictures(classifier, settings.decision.fit), replace(chosen, keep_random=0)

        def maps(result: FrameResult, why: Why) -> dict[str, bytes]:
            return {".png": explained(result.image, rotation)}

        alike = Alike(view, usual)
        keepers.append(Keeper(chosen.explain, only_unsure, maps, alike=alike, interruptible=interruptible))
    return keepers
