"""The loop over a stream of frames: it classifies the newest one and reports results and events."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgecnn.device.stream.feed import Damaged, Ended, Feed, SourceBack, SourceLost, SourceOpened, Taken
from edgecnn.device.stream.results import Event, FrameResult
from edgecnn.errors import CameraError, ImageError, OutputError
from edgecnn.runtime.classifier import Result
from edgecnn.runtime.decision import Smoother

TICK_S = 0.1
"""Longest wait for a frame between checks of signals, commands and time limits."""

DAMAGED_EVERY_S = 1.0
SAVE_FAILED_EVERY_S = 10.0
"""Least seconds between two events of a kind that may come with each frame; the next one has the count of those left out."""

MANY_DAMAGED = 30
"""After this many frames in a row that cannot be decoded, a live source counts as lost."""

END_OF_SOURCE, DURATION, CAMERA_LOST, SIGNAL = "end_of_source", "duration", "camera_lost", "signal"
"""Reasons of the event `ended`."""


class Sink(Protocol):
    """Receives results and events. `idle` is called at least every TICK_S while nothing comes."""

    def result(self, result: FrameResult) -> None: ...
    def event(self, event: Event) -> None: ...
    def idle(self) -> None: ...


class Keeper(Protocol):
    """Keeps frames on which the classifier is unsure."""

    def offer(self, taken: Taken, result: Result) -> None:
        """Keep the frame if its result is unsure. Raises OutputError."""


class ChangeCommand(Protocol):
    """Runs a command when the state changes."""

    def change(self, state: str | None, previous: str | None, score: float | None) -> None: ...
    def poll(self) -> list[str]: ...
    def finish(self, wait_s: float) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How fast and how long a stream is classified.

    Attributes:
        max_age_s: older frames of a live source are dropped.
        max_fps: the most results per second; 0 for no limit.
        duration_s: seconds after which the loop ends; 0 for no limit.
    """

    max_age_s: float = 1.0
    max_fps: float = 0.0
    duration_s: float = 0.0


COMMAND_WAIT_S = 5.0
"""How long commands may take to finish after the end of the source or of the duration."""


class Stream:
    """One stream's loop. `frames` counts the classified frames, `dropped` and `damaged` the others."""

    def __init__(
        self,
        feed: Feed,
        classify: Callable[[bytes | np.ndarray], Result],
        settings: StreamSettings,
        smoother: Smoother,
        *,
        keeper: Keeper | None = None,
        command: ChangeCommand | None = None,
        check: Callable[[], object] = bool,
        interruptible: contextlib.AbstractContextManager[Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            feed: where frames come from; the loop starts and closes it.
            classify: classifies an image, as `Classifier.classify` does.
            settings: see there.
            smoother: turns the decisions into a state.
            keeper: receives each result with its frame.
            command: receives changes of the state.
            check: called often; raises to end the loop.
            interruptible: entered around what may block: reporting, saving.
            clock, wall: monotonic seconds, and seconds since the epoch.
        """
        self.frames = 0
        self.damaged = 0
        self._feed = feed
        self._classify = classify
        self._settings = settings
        self._smoother = smoother
        self._keeper = keeper
        self._command = command
        self._check = check
        self._interruptible = interruptible or contextlib.nullcontext()
        self._clock = clock
        self._wall = wall
        self._source = feed.name
        self._state_since: float | None = None
        self._too_old = 0
        self._passed_over = 0
        self._damaged_in_a_row = 0
        self._quiet: dict[str, tuple[float, int]] = {}

    @property
    def dropped(self) -> int:
        """Frames that were replaced by newer ones while another was classified, or were too old."""
        return self._feed.replaced - self._passed_over + self._too_old

    def run(self, sink: Sink) -> None:
        """Classify until the source ends, the time is up, or `check` or the sink raises; then close the source.

        Raises:
            CameraError: if the source cannot be opened, or was away for too long.
        """
        wait_s = 0.0
        try:
            self._feed.start()
            reason = self._loop(sink)
            wait_s = COMMAND_WAIT_S
        except CameraError:
            self._report(sink, self.ended(CAMERA_LOST))
            raise
        finally:
            self._feed.close()
            failures = self._command.finish(wait_s) if self._command else []
        for failure in failures:
            self._report(sink, self._event("command_failed", message=failure))
        self._report(sink, self.ended(reason))

    def ended(self, reason: str) -> Event:
        """Return the event that ends a stream."""
        counts = {"frames": self.frames, "dropped": self.dropped, "damaged": self.damaged}
        return self._event("ended", reason=reason, **counts)

    def _loop(self, sink: Sink) -> str:
        start = due = self._clock()
        duration, max_fps = self._settings.duration_s, self._settings.max_fps
        while True:
            self._check()
            self._poll_command(sink)
            now = self._clock()
            if duration and now - start >= duration:
                return DURATION
            wait = min(TICK_S, start + duration - now) if duration else TICK_S
            if now < due:
                replaced = self._feed.replaced
                item = self._feed.take(min(wait, due - now), frames=False)
                self._passed_over += self._feed.replaced - replaced
            else:
                item = self._feed.take(wait)
            if isinstance(item, Taken):
                if self._handle(item, sink) and max_fps:
                    due = max(due + 1 / max_fps, now)
            elif isinstance(item, Ended):
                return END_OF_SOURCE
            elif isinstance(item, Damaged):
                self.damaged += item.frames
                message = f"{item.name}: cut short, or flagged by the driver"
                self._report_limited(sink, "frame_damaged", DAMAGED_EVERY_S, item.frames, message=message, seq=None)
            elif item is None:
                with self._interruptible:
                    sink.idle()
            else:
                self._source_changed(item, sink)

    def _handle(self, taken: Taken, sink: Sink) -> bool:
        """Classify a frame and report the result; False if it was too old or damaged."""
        if taken.live and self._clock() - taken.frame.monotonic > self._settings.max_age_s:
            self._too_old += 1
            return False
        self._source = taken.frame.name or taken.source
        start = time.perf_counter()
        try:
            image = taken.frame.image  # a camera's pixels may be converted now
            converted_ms = (time.perf_counter() - start) * 1000
            result = self._classify(image)
        except ImageError as error:
            self._count_damaged(taken, str(error), sink)
            return False
        self._damaged_in_a_row = 0
        self.frames += 1
        age = max(0.0, self._clock() - taken.frame.monotonic)
        ts = self._wall() - age
        previous = self._smoother.state
        changed = self._smoother.update(result.decision)
        if changed:
            self._state_since = ts
        frame_result = FrameResult(
            seq=taken.seq,
            ts=ts,
            age_ms=age * 1000,
            source=self._source,
            top=result.top,
            decision=result.decision,
            reason=result.reason,
            state=self._smoother.state,
            state_since=self._state_since,
            latency_ms={**result.latency_ms, "decode": result.latency_ms["decode"] + converted_ms},
            dropped=self.dropped,
        )
        with self._interruptible:
            sink.result(frame_result)
        if changed:
            self._state_changed(sink, previous, result.top[0].score if result.top else None, result.reason, taken.seq)
        if self._keeper:
            self._keep(self._keeper, taken, result, sink)
        return True

    def _count_damaged(self, taken: Taken, text: str, sink: Sink) -> None:
        self.damaged += 1
        self._damaged_in_a_row += 1
        self._report_limited(sink, "frame_damaged", DAMAGED_EVERY_S, message=text, seq=taken.seq)
        if taken.live and self._damaged_in_a_row >= MANY_DAMAGED:
            self._feed.refuse(f"{self._damaged_in_a_row} frames in a row cannot be decoded; the last: {text}.")
            self._damaged_in_a_row = 0

    def _keep(self, keeper: Keeper, taken: Taken, result: Result, sink: Sink) -> None:
        try:
            with self._interruptible:
                keeper.offer(taken, result)
        except OutputError as error:
            self._report_limited(sink, "save_failed", SAVE_FAILED_EVERY_S, message=str(error), seq=taken.seq)

    def _source_changed(self, item: SourceOpened | SourceLost | SourceBack, sink: Sink) -> None:
        self._source = item.name
        if isinstance(item, SourceOpened):
            self._report(sink, self._event("camera_opened", about=item.about, live=item.live))
        elif isinstance(item, SourceBack):
            after_s = round(item.after_s, 3)
            self._report(sink, self._event("camera_back", about=item.about, after_s=after_s, attempts=item.attempts))
        else:
            self._damaged_in_a_row = 0
            self._report(sink, self._event("camera_lost", reason=item.reason, message=item.text))
            previous = self._smoother.state
            if self._smoother.reset():  # the state is unknown while the camera is gone
                self._state_since = None
                self._state_changed(sink, previous, None, CAMERA_LOST, None)

    def _state_changed(
        self, sink: Sink, previous: str | None, score: float | None, reason: str | None, seq: int | None
    ) -> None:
        state = self._smoother.state
        rounded = None if score is None else round(score, 6)
        details = {"state": state, "previous": previous, "score": rounded, "reason": reason, "seq": seq}
        self._report(sink, self._event("state_changed", **details))
        if self._command:
            self._command.change(state, previous, score)

    def _poll_command(self, sink: Sink) -> None:
        for failure in self._command.poll() if self._command else ():
            self._report(sink, self._event("command_failed", message=failure))

    def _event(self, kind: str, **details: Any) -> Event:
        return Event(kind=kind, ts=self._wall(), source=self._source, details=details)

    def _report(self, sink: Sink, event: Event) -> None:
        with self._interruptible:
            sink.event(event)

    def _report_limited(self, sink: Sink, kind: str, every_s: float, times: int = 1, **details: Any) -> None:
        """Report an event at most once in `every_s` seconds, with the count of those since the last report."""
        last, left_out = self._quiet.get(kind, (-math.inf, 0))
        now = self._clock()
        if now - last < every_s:
            self._quiet[kind] = last, left_out + times
        else:
            self._report(sink, self._event(kind, **details, count=left_out + times))
            self._quiet[kind] = now, 0
