"""Keep a source open: a thread drains it into one slot, reports its losses and reopens it."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Source, Stalled
from edgecnn.device.stream.events import CameraBackEvent, CameraLostEvent, CameraOpenedEvent, Event
from edgecnn.device.stream.settings import Camera
from edgecnn.device.system import CAMERA, masked, read_secret
from edgecnn.errors import CameraError
from edgecnn.labels import plural

POLL_S = 0.2  # longest single read, so that the thread soon notices when it has to stop

BACKOFF_S = (0.5, 1, 2, 4, 8, 16, 30)  # waits before reopening a lost source; the last one repeats

FIRST_FRAME_S, STALL_S = 15.0, 5.0  # longest silence of a source before its first frame, and after one

HEALTHY_S = 10.0  # after delivering frames for this long, a lost source is retried from the shortest wait again

CLOSE_S = 0.25  # how long `Feed.close` waits for the thread, and then for the source

LIVE_WARM_UP = 5  # a camera's first frames, while exposure and white balance settle


class Damaged(NamedTuple):
    """The number of frames that the source has skipped since the last such notice, because the frames were cut short or flagged."""

    name: str
    frames: int


class Ended(NamedTuple):
    """The source has ended."""


class Taken(NamedTuple):
    """A frame with its number since the start, which counts discarded and dropped frames too, and its source's name."""

    seq: int
    frame: Frame
    source: str
    live: bool


Item = Event | Damaged | Ended | Taken


class Feed:
    """Frames from a source, which is reopened when it is lost. A new frame of a live source replaces one not taken; other sources wait."""

    def __init__(
        self,
        open_source: Callable[[], Source],
        camera: Camera = Camera(),
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """`open_source` is called in the feed's thread; `clock` returns monotonic seconds."""
        self.replaced = 0
        self.name = name
        self._open_source = open_source
        self._camera = camera
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._changed = threading.Condition()
        self._notices: deque[Event] = deque()
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

    def start(self) -> None:
        self._silent_since = self._clock()
        self._thread.start()

    def take(self, timeout: float, frames: bool = True) -> Item | None:
        """Return the next notice or the newest frame, or None after `timeout` s. CameraError once the feed has given up on the source."""
        with self._changed:
            waiting = self._slot is not None or self._over is not None
            if not self._notices and not self._damaged and not (frames and waiting):
                self._changed.wait(timeout)
            if self._notices:
                return self._notices.popleft()
            if self._damaged:
                damaged, self._damaged = self._damaged, 0
                return Damaged(self.name, damaged)
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
        """Reject the source's output: close the source and open it again. `text` is the reason."""
        self._refused = text

    def close(self) -> None:
        """Stop the thread and close the source, within a second. A thread that is stuck in a driver is left behind, as a daemon."""
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
            while (source := self._open()) is not None:
                self._source = source
                try:
                    lost = self._drain(source)
                finally:
                    source.close()
                    self._source = None
                if lost is None:
                    break
                if lost.reason == "ended" and self._had_frame and not source.live:
                    raise CameraError(str(lost))  # opened again, a file would begin anew
                self._lose(lost)
            over = Ended()
        except CameraError as error:
            over = error
        finally:  # whatever ended the thread, no reader may wait for it forever
            with self._changed:
                self._over = over
                self._changed.notify_all()

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
                    self._notify_lost("unavailable", str(error))
        return None

    def _drain(self, source: Source) -> CameraLost | None:
        """Read frames until the source is lost; None if it ended or the feed was closed."""
        self.name = source.name
        self._refused = ""
        warm_up = self._camera.warm_up
        if warm_up is None:
            warm_up = LIVE_WARM_UP if source.live else 0
        base = self._next_seq
        opened = last = self._clock()
        slow = 2 / self._camera.fps if self._camera.fps else 0.0  # two frames at a low rate
        limit = max(FIRST_FRAME_S, slow)
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
            limit = max(STALL_S, slow)
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
        if not self._attempts:
            return
        ts, after_s = time.time(), round(now - self._silent_since, 3)
        self._notify(
            CameraBackEvent(ts=ts, source=source.name, about=source.about, after_s=after_s, attempts=self._attempts)
            if self._had_frame
            else CameraOpenedEvent(ts=ts, source=source.name, about=source.about, live=source.live)
        )
        self._had_frame = True
        self._attempts = 0

    def _lose(self, lost: CameraLost) -> None:
        if not self._attempts:
            self._silent_since = self._clock()
        if not self._attempts or (self._attempts == 1 and not self._had_frame):
            self._notify_lost(lost.reason, str(lost))
        self._give_up_late(str(lost))

    def _give_up_late(self, text: str) -> None:
        allowed = self._camera.retry_for_s
        if allowed is None:
            if self._had_frame:
                return
            raise CameraError(text)
        away = self._clock() - self._silent_since
        if away >= allowed:
            tried = f"Gave up after {away:.0f} s and {plural(self._attempts, 'attempt')}."
            raise CameraError(f"{text} {tried} To wait longer, use --retry-for.")

    def _notify_lost(self, reason: str, message: str) -> None:
        with self._changed:
            if self._slot is not None:  # a frame must not follow the notice that its camera was lost
                if self._slot.live:
                    self._slot = None
                    self.replaced += 1
                self._until_taken()
            self._notify(CameraLostEvent(ts=time.time(), source=self.name, reason=reason, message=message))

    def _notify(self, notice: Event) -> None:
        with self._changed:
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


def open_feed(source: str | None, camera: Camera) -> Feed:
    """Return a feed from a SOURCE, or from the first working camera if it is None; ValueError for a bad password file."""
    (width, height), (user, password) = camera.size, read_secret(CAMERA, camera.password_file)
    requested = CameraSettings(width=width, height=height, fps=camera.fps, user=user, password=password)

    def open_it() -> Source:
        from edgecnn.device import cameras

        return cameras.find_camera(requested) if source is None else cameras.open_source(source, requested)

    return Feed(open_it, camera, name=masked(source or "camera"))
