"""A source kept open: a thread drains it into one slot, reports its losses and opens it again."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Source, Stalled
from edgecnn.device.secrets import CAMERA, masked, read_secret
from edgecnn.device.stream.settings import Camera
from edgecnn.errors import CameraError

POLL_S = 0.2
"""Longest single read, so that the thread soon notices that it has to stop."""

BACKOFF_S = (0.5, 1, 2, 4, 8, 16, 30)
"""Waits before opening a lost source again; the last one repeats."""

HEALTHY_S = 10.0
"""A source that gave frames for this long starts again with the shortest wait when it is lost."""

CLOSE_S = 0.25
"""How long `Feed.close` waits for the thread, and then for the source."""


@dataclass(frozen=True, kw_only=True)
class FeedSettings:
    """How a source is kept open.

    Attributes:
        stall_s: longest silence of an open source.
        first_frame_s: longest silence before its first frame.
        retry_for_s: how long it may be without a frame before that is an error. None: a source that has given a frame is retried
            forever; one that cannot be opened at the start is an error at once.
        warm_up: frames discarded after each opening. None: `LIVE_WARM_UP` of a live source, none of another.
    """

    stall_s: float = 5.0
    first_frame_s: float = 15.0
    retry_for_s: float | None = None
    warm_up: int | None = None


LIVE_WARM_UP = 5
"""A camera's first frames, in which exposure and white balance settle."""


class SourceOpened(NamedTuple):
    """The source gives frames for the first time."""

    name: str
    about: str
    live: bool


class SourceLost(NamedTuple):
    """The source has stopped giving frames. `reason` is one of `cameras.source.REASONS`, or "unavailable" where it could not be opened."""

    name: str
    reason: str
    text: str


class SourceBack(NamedTuple):
    """The source gives frames again, after `after_s` seconds and `attempts` openings."""

    name: str
    about: str
    after_s: float
    attempts: int


class Damaged(NamedTuple):
    """Frames that the source has skipped since the last such notice: they were cut short or flagged by a driver."""

    name: str
    frames: int


class Ended(NamedTuple):
    """The source has ended."""


class Taken(NamedTuple):
    """A frame with its number since the start, discarded and dropped ones included, and its source's name."""

    seq: int
    frame: Frame
    source: str
    live: bool


Item = SourceOpened | SourceLost | SourceBack | Damaged | Ended | Taken


class Feed:
    """Frames of a source that is opened again when it is lost, newest first.

    A live source never waits: a frame that was not taken is replaced by the next, and counted in `replaced`. Any other source waits until
    its frame has been taken. Use `start`, `take` until it returns Ended or raises, then `close`.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        settings: FeedSettings,
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            open_source: opens the source; raises CameraError. Called in the feed's thread.
            settings: see there.
            name: the source's name before it is opened.
            clock: monotonic seconds, that of `Frame.monotonic`.
            sleep: waits that many seconds; by default it returns early when the feed is closed.
        """
        self.replaced = 0
        self._open_source = open_source
        self._settings = settings
        self._name = name
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._changed = threading.Condition()
        self._notices: deque[Item] = deque()
        self._slot: Taken | None = None
        self._over: CameraError | Ended | None = None
        self._source: Source | None = None
        self._refused = ""
        self._damaged = 0
        self._skipped = 0
        self._next_seq = 0
        self._had_frame = False
        self._silent_since = 0.0
        self._attempts = 0
        self._waits = 0
        self._thread = threading.Thread(target=self._run, name="edgecnn-feed", daemon=True)

    @property
    def name(self) -> str:
        """The name of the source that was opened last."""
        return self._name

    def start(self) -> None:
        """Open the source, in a thread of its own."""
        self._silent_since = self._clock()
        self._thread.start()

    def take(self, timeout: float, frames: bool = True) -> Item | None:
        """Return the next notice about the source, or its newest frame; None if neither comes within `timeout` seconds.

        Args:
            timeout: seconds.
            frames: False to return notices only; None may then come early.

        Raises:
            CameraError: if the source cannot be opened, or was away for longer than the settings allow.
        """
        with self._changed:
            waiting = self._slot is not None or self._over is not None
            if not self._notices and not self._damaged and not (frames and waiting):
                self._changed.wait(timeout)
            if self._notices:
                return self._notices.popleft()
            if self._damaged:
                damaged, self._damaged = self._damaged, 0
                return Damaged(self._name, damaged)
            if not frames:
                return None
            if self._slot is not None:
                taken, self._slot = self._slot, None
                self._changed.notify_all()
                return taken
            if isinstance(self._over, CameraError):
                raise self._over
            return self._over

    def refuse(self, text: str) -> None:
        """Reject what the source gives: close it and open it again. `text` says why."""
        self._refused = text

    def close(self) -> None:
        """Stop the thread and close the source, within a second. A thread stuck in a driver is a daemon and is left behind."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is None:
            return
        self._thread.join(CLOSE_S)
        source = self._source
        if source is not None:  # the thread is stuck in it
            closing = threading.Thread(target=source.close, name="edgecnn-close", daemon=True)
            closing.start()
            closing.join(CLOSE_S)

    def _run(self) -> None:
        over: CameraError | Ended = CameraError("the thread that reads the camera failed with an internal error.")
        try:
            over = self._keep_open()
        except CameraError as error:
            over = error
        finally:  # whatever ended the thread, no reader may wait for it
            with self._changed:
                self._over = over
                self._changed.notify_all()

    def _keep_open(self) -> Ended:
        while not self._stop.is_set():
            source = self._open()
            if source is None:
                break
            self._source = source
            try:
                lost = self._drain(source)
            finally:
                source.close()
                self._source = None
            if lost is None:
                break
            self._lose(lost)
        return Ended()

    def _open(self) -> Source | None:
        """Open the source, waiting longer and longer between attempts; None if the feed was closed."""
        while not self._stop.is_set():
            if self._attempts or self._had_frame:
                self._sleep(BACKOFF_S[min(self._waits, len(BACKOFF_S) - 1)])
                self._waits += 1
                if self._stop.is_set():
                    break
            self._attempts += 1
            try:
                return self._open_source()
            except CameraError as error:
                self._give_up_late(str(error))
                if self._attempts == 1 and not self._had_frame:
                    self._notify(SourceLost(self._name, "unavailable", str(error)))
        return None

    def _drain(self, source: Source) -> CameraLost | None:
        """Read frames until the source is lost; None if it ended or the feed was closed."""
        self._name = source.name
        self._refused = ""
        warm_up = self._settings.warm_up
        if warm_up is None:
            warm_up = LIVE_WARM_UP if source.live else 0
        base = self._next_seq
        opened = last = self._clock()
        limit = max(self._settings.first_frame_s, self._settings.stall_s)
        self._skipped = 0
        while not self._stop.is_set():
            try:
                frame = source.read(POLL_S)
            except Stalled as stalled:
                silent = self._clock() - last
                if source.patient or silent < limit:
                    continue
                return stalled.lasting(round(silent, 1))
            except CameraLost as lost:
                return lost
            except OSError as error:
                return CameraLost("io_error", f"{source.name}: {error.strerror or error}")
            finally:
                self._count_damaged(source)
            if frame is None:
                return None
            if self._refused:
                return CameraLost("garbage", self._refused)
            last = self._clock()
            limit = self._settings.stall_s
            if last - opened > HEALTHY_S:
                self._waits = 0
            self._next_seq = base + frame.sequence + 1
            if warm_up:
                warm_up -= 1
                continue
            self._report_open(source, last)
            self._put(Taken(self._next_seq - 1, frame, source.name, source.live))
        return None

    def _count_damaged(self, source: Source) -> None:
        if source.damaged > self._skipped:
            with self._changed:
                self._damaged += source.damaged - self._skipped
                self._changed.notify_all()
            self._skipped = source.damaged

    def _report_open(self, source: Source, now: float) -> None:
        """Report, at the first frame after an opening, that the source is open or back."""
        if not self._attempts:
            return
        if not self._had_frame:
            self._notify(SourceOpened(source.name, source.about, source.live))
        else:
            self._notify(SourceBack(source.name, source.about, now - self._silent_since, self._attempts))
        self._had_frame = True
        self._attempts = 0

    def _lose(self, lost: CameraLost) -> None:
        if not self._attempts or (
            self._attempts == 1 and not self._had_frame
        ):  # reported once, however often it is tried again
            if not self._attempts:
                self._silent_since = self._clock()
            self._notify(SourceLost(self._name, lost.reason, str(lost)))
        self._give_up_late(str(lost))

    def _give_up_late(self, text: str) -> None:
        """Raise CameraError if the source was away for too long."""
        allowed = self._settings.retry_for_s
        if allowed is None:
            if self._had_frame:
                return
            raise CameraError(text)
        away = self._clock() - self._silent_since
        if away >= allowed:
            raise CameraError(f"{text} Gave up after {away:.0f} s and {self._attempts} attempts.", advice="wait_longer")

    def _notify(self, notice: Item) -> None:
        with self._changed:
            if (
                isinstance(notice, SourceLost) and self._slot is not None
            ):  # a frame must not follow the notice that its camera is lost
                if self._slot.live:
                    self._slot = None
                    self.replaced += 1
                self._until_taken()
            self._notices.append(notice)
            self._changed.notify_all()

    def _put(self, taken: Taken) -> None:
        with self._changed:
            if taken.live:
                self.replaced += self._slot is not None
            else:
                self._until_taken()
            self._slot = taken
            self._changed.notify_all()

    def _until_taken(self) -> None:
        while self._slot is not None and not self._stop.is_set():
            self._changed.wait()


def camera_secret(camera: Camera) -> tuple[str | None, str | None]:
    """Return user and password for a network camera: see `edgecnn.device.secrets.read_secret`."""
    return read_secret(CAMERA, camera.password_file)


def open_feed(source: str | None, camera: Camera) -> Feed:
    """Return the feed of a SOURCE, or of the first camera that gives frames if it is None; `Feed.start` opens it.

    Raises:
        ValueError: if the password's file cannot be read.
    """
    (width, height), (user, password) = camera.size, camera_secret(camera)
    requested = CameraSettings(width=width, height=height, fps=camera.fps, user=user, password=password)

    def open_it() -> Source:
        from edgecnn.device import cameras

        return cameras.find_camera(requested) if source is None else cameras.open_source(source, requested)

    kept = FeedSettings(warm_up=camera.warm_up, retry_for_s=camera.retry_for_s)
    return Feed(open_it, kept, name=masked(source or "camera"))
