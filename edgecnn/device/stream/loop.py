"""The loop over a stream of frames. It classifies the newest frame and yields results and events; how it ends, and a command on changes."""

import contextlib
import functools
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np

from edgecnn.device.stream.events import (
    CAMERA_LOST,
    DURATION,
    END_OF_SOURCE,
    CameraLostEvent,
    CameraOpenedEvent,
    CommandFailedEvent,
    EndedEvent,
    Event,
    FrameDamagedEvent,
    FrameResult,
    RateLimiter,
    StateChangedEvent,
)
from edgecnn.device.stream.feed import Damaged, Ended, Feed, Taken, open_feed
from edgecnn.device.stream.settings import Camera, Decision, Pace, Settings, State, gather
from edgecnn.device.system import environment
from edgecnn.errors import CameraError, ImageError
from edgecnn.region import WHOLE, Region
from edgecnn.runtime.child import how_ended
from edgecnn.runtime.classifier import Classifier, Result
from edgecnn.runtime.decision import Smoother

TICK_S = 0.1  # longest wait for a frame: `Stream.ticks` returns to its caller at least this often

DAMAGED_EVERY_S = 1.0

MANY_DAMAGED = 30  # after this many undecodable frames in a row, a live source counts as lost

Item = FrameResult | Event

OPTIONS = (Camera, Pace, Decision, State)  # the settings that `open_stream` takes as arguments

CONSUMER_WAIT_S = 5.0  # how long consumers may take to finish after the end of the source or of the duration

E = TypeVar("E", bound=Event)


class Consumer(Protocol):
    """Acts on each item of a stream, for example by running a command, and may report events. It never blocks for long."""

    def take(self, item: Item) -> Iterable[Event]:
        """Receive an item of the stream. Events of other consumers go to `hear`."""

    def hear(self, event: Event) -> None:
        """Receive an event from a consumer."""
        return

    def poll(self) -> Iterable[Event]:
        """Do what is due; called after each item, and at least every TICK_S."""
        return ()

    def finish(self, wait_s: float) -> Iterable[Event]:
        """Finish within `wait_s` seconds; 0, after an interruption, means immediately."""
        return ()


class Stream:
    """The results for a source's frames, and events, in order. `frames` counts the classified frames, `dropped` and `damaged` the others.

    Iterate over it once, in one thread, and close it, or use it as a context manager. The first step opens the source, in a separate
    thread, and the source is reopened whenever it is lost. The last item is an EndedEvent. CameraError follows it if the source could not
    be opened or was away for longer than the settings allow.
    """

    def __init__(
        self,
        feed: Feed,
        classify: Callable[[bytes | np.ndarray], Result],
        pace: Pace,
        smoother: Smoother,
        *,
        consumers: Sequence[Consumer] = (),
        region: Region = WHOLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Usually called by `open_stream`. The stream starts and closes the feed; `clock` returns monotonic seconds."""
        self.frames = 0
        self.damaged = 0
        self._feed = feed
        self._classify = classify
        self._pace = pace
        self._smoother = smoother
        self._consumers = consumers
        self._region = None if region == WHOLE else region
        self._clock = clock
        self._source = feed.name
        self._state_since: float | None = None
        self._too_old = 0
        self._passed_over = 0
        self._damaged_in_a_row = 0
        self._damaged_notices = RateLimiter(DAMAGED_EVERY_S, clock)
        self._ticks = self._run()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source and stop the consumers. A second call does nothing. A call from another thread ends the iteration."""
        self._feed.close()
        with contextlib.suppress(ValueError):  # another thread is iterating, and now reaches the end of the source
            self._ticks.close()

    def __iter__(self) -> Iterator[Item]:
        """Yield results and events; CameraError as in `ticks`."""
        return (item for item in self.ticks() if item is not None)

    @property
    def dropped(self) -> int:
        """Frames that were replaced by newer ones while another was classified, or were too old."""
        return self._feed.replaced - self._passed_over + self._too_old

    def ended(self, reason: str) -> EndedEvent:
        return self._event(EndedEvent, reason=reason, frames=self.frames, dropped=self.dropped, damaged=self.damaged)

    def ticks(self) -> Iterator[Item | None]:
        """Yield results and events, and None at least every TICK_S in between, for a caller with other work.

        Raises CameraError if the source cannot be opened or was away for too long.
        """
        return self._ticks

    def _run(self) -> Generator[Item | None, None, None]:
        wait_s = 0.0
        late: list[Event] = []
        try:
            self._feed.start()
            reason = yield from self._shared(self._loop())
            wait_s = CONSUMER_WAIT_S
        except CameraError:
            yield self.ended(CAMERA_LOST)
            raise
        finally:
            self._feed.close()
            for consumer in self._consumers:
                late += consumer.finish(wait_s)
        yield from late
        yield self.ended(reason)

    def _shared(self, items: Generator[Item | None, None, str]) -> Generator[Item | None, None, str]:
        """Yield items, pass them to the consumers and yield the consumers' events; return why the items ended."""
        while True:
            try:
                item = next(items)
            except StopIteration as stop:
                return str(stop.value)
            yield item
            for consumer in self._consumers:
                for event in (*(consumer.take(item) if item is not None else ()), *consumer.poll()):
                    yield event
                    for other in self._consumers:
                        other.hear(event)

    def _loop(self) -> Generator[Item | None, None, str]:
        start = due = self._clock()
        duration, max_fps = self._pace.duration_s, self._pace.max_fps
        while True:
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
                classified = self.frames
                yield from self._handle(item)
                if self.frames > classified and max_fps:
                    due = max(due + 1 / max_fps, now)
            elif isinstance(item, Ended):
                return END_OF_SOURCE
            elif isinstance(item, Damaged):
                self.damaged += item.frames
                yield self._damaged_event(f"{item.name}: cut short, or flagged by the driver", None, item.frames)
            elif item is None:
                yield None
            else:
                yield from self._source_changed(item)

    def _handle(self, taken: Taken) -> Iterator[Item | None]:
        """Classify a frame and yield its result, or yield None or an event if it was too old or damaged."""
        if taken.live and self._clock() - taken.frame.monotonic > self._pace.max_age_s:
            self._too_old += 1
            yield None
            return
        self._source = taken.frame.name or taken.source
        start = time.perf_counter()
        try:
            image = taken.frame.image  # this may convert a camera's pixels
            converted_ms = (time.perf_counter() - start) * 1000
            result = self._classify(image)
        except ImageError as error:
            yield self._count_damaged(taken, str(error))
            return
        self._damaged_in_a_row = 0
        self.frames += 1
        age = max(0.0, self._clock() - taken.frame.monotonic)
        ts = time.time() - age
        previous = self._smoother.state
        changed = self._smoother.update(result.decision)
        if changed:
            self._state_since = ts
        latency_ms = {**result.latency_ms, "decode": result.latency_ms["decode"] + converted_ms}
        yield FrameResult(
            **result._replace(latency_ms=latency_ms)._asdict(), seq=taken.seq, ts=ts, age_ms=age * 1000, source=self._source,
            image=image, state=self._smoother.state, state_since=self._state_since, dropped=self.dropped,
        )  # fmt: skip
        if changed:
            score = round(result.top[0].score, 6) if result.top else None
            yield self._state_changed(previous, score, result.reason, taken.seq)

    def _count_damaged(self, taken: Taken, text: str) -> FrameDamagedEvent | None:
        self.damaged += 1
        self._damaged_in_a_row += 1
        if taken.live and self._damaged_in_a_row >= MANY_DAMAGED:
            self._feed.refuse(f"{self._damaged_in_a_row} frames in a row could not be decoded; the last one: {text}.")
            self._damaged_in_a_row = 0
        return self._damaged_event(text, taken.seq)

    def _damaged_event(self, message: str, seq: int | None, frames: int = 1) -> FrameDamagedEvent | None:
        count = self._damaged_notices.count(frames)
        return self._event(FrameDamagedEvent, message=message, seq=seq, count=count) if count else None

    def _source_changed(self, event: Event) -> Iterator[Event]:
        self._source = event.source
        yield replace(event, region=self._region) if isinstance(event, CameraOpenedEvent) else event
        if isinstance(event, CameraLostEvent):
            self._damaged_in_a_row = 0
            previous = self._smoother.state
            if self._smoother.reset():  # the state is unknown while the camera is gone
                self._state_since = None
                yield self._state_changed(previous, None, CAMERA_LOST, None)

    def _state_changed(self, previous: str | None, score: float | None, reason: str | None, seq: int | None) -> Event:
        state = self._smoother.state
        return self._event(StateChangedEvent, state=state, previous=previous, score=score, reason=reason, seq=seq)

    def _event(self, kind: Callable[..., E], **fields: object) -> E:
        return kind(ts=time.time(), source=self._source, **fields)


def open_stream(
    source: str | None = None,
    classifier: "Classifier | None" = None,
    settings: Settings | None = None,
    *,
    consumers: Sequence[Consumer] = (),
    **options: Any,
) -> Stream:
    """Prepare to classify the frames of a camera or another stream; the first step of the iteration opens it.

    Several streams may share one classifier, each in its own thread.

    Args:
        source: "/dev/video0", "rtsp://…", "clip.mp4", "exec:COMMAND", "watch:DIR", "folder:DIR" or "synthetic:"; None finds a camera.
        classifier: None loads the default bundle, as `Classifier.load()` does. Its region is the part of each frame that is classified.
        settings: a full set of settings, of which `camera`, `pace`, `decision` and `state` are used.
        consumers: each receives every item; their events are yielded too.
        options: single settings instead of `settings`: the fields of OPTIONS, such as `smooth="3"` or `size=(1280, 720)`.

    Raises:
        TypeError: for an unknown option, or an option together with `settings`.
        ValueError: for an invalid `smooth` or password file. Other values are checked with the first frame.
        BundleError, EngineError: if `classifier` is None and none can be loaded.
    """
    if settings is not None and options:
        raise TypeError(f"received settings as well as {', '.join(options)}; pass one or the other.")
    chosen = settings or Settings(**gather(options, *OPTIONS))
    smoother = Smoother.parse(chosen.state.smooth)
    feed = open_feed(source, chosen.camera)
    classifier = classifier or Classifier.load()
    classify = functools.partial(classifier.classify, rotation=chosen.camera.rotation, **vars(chosen.decision))
    return Stream(feed, classify, chosen.pace, smoother, consumers=consumers, region=classifier.region)


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal stopped the command. The exit code is 128 plus its number: 143 for SIGTERM, 130 for Ctrl-C, 129 for a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Ends:
    """While entered, turns a signal into Stopped, raised only by `check` or within `interruptible`, never while a file is written."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interruptible = _Interruptible(self)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Ends":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self.signal is not None:
            raise Stopped(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        if first and self.interruptible.inside:
            self.interruptible.inside = False
            raise Stopped(number)


class _Interruptible:
    def __init__(self, ends: Ends) -> None:
        self.inside = False
        self._ends = ends

    def __enter__(self) -> None:
        self.inside = True
        self._ends.check()

    def __exit__(self, *_: object) -> None:
        self.inside = False


def reader_gone() -> bool:
    """Return whether standard output is a pipe or terminal whose other end is closed."""
    return bool(_poll(select.POLLERR) & (select.POLLERR | select.POLLHUP | select.POLLNVAL))


def takes_output() -> bool:
    """Return whether standard output accepts a line without waiting for its reader."""
    return bool(_poll(select.POLLOUT) & select.POLLOUT) and not reader_gone()


def _poll(events: int) -> int:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), events)
    return next((result for _, result in poll.poll(0)), 0)


LIMIT_S = 60.0

GRACE_S = 0.1


class OnChange(Consumer):
    """Runs a user's command, without a shell, for each change of the state. While one runs, only the newest change is kept."""

    def __init__(self, command: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Split the command as a shell would; ValueError if it is empty, its quotes are not closed or its program does not exist."""
        import shutil

        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"{command!r} cannot be split into words: {error}") from None
        if not self.arguments or shutil.which(self.arguments[0]) is None:
            program = self.arguments[0] if self.arguments else command
            raise ValueError(f"program {program!r} not found; for shell syntax, write sh -c '…'")
        self._clock = clock
        self._source = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._next: dict[str, str] | None = None

    def take(self, item: Item) -> Iterable[Event]:
        self._source = item.source
        if isinstance(item, StateChangedEvent):
            self._next = {
                "EDGECNN_STATE": item.state or "",
                "EDGECNN_PREVIOUS": item.previous or "",
                "EDGECNN_SCORE": "" if item.score is None else f"{item.score:.6f}",
            }
        return ()

    def poll(self) -> list[Event]:
        """Reap a finished command and start a waiting one; return the failures."""
        failures: list[Event] = []
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                if self._clock() - self._started < LIMIT_S:
                    return []
                self._end()
                failures.append(self._failed(f"still running after {LIMIT_S:.0f} s, terminated"))
            elif code:
                failures.append(self._failed(how_ended(code)))
            self._process = None
        if self._next is not None:
            variables, self._next = self._next, None
            try:
                variables = {**environment(), **variables}
                self._process = subprocess.Popen(
                    self.arguments, env=variables, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
                )
            except (OSError, ValueError) as error:  # ValueError: a zero in a label, which no environment can hold
                failures.append(self._failed(getattr(error, "strerror", None) or str(error)))
            self._started = self._clock()
        return failures

    def finish(self, wait_s: float) -> list[Event]:
        """Let the running and the waiting command finish within `wait_s` seconds (neither if 0), then terminate any that still runs."""
        failures: list[Event] = []
        deadline = time.monotonic() + wait_s
        if not wait_s:
            self._next = None
        while wait_s:
            failures += self.poll()
            if self._process is None:
                break
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                failures.append(self._failed("still running at the end, terminated"))
                break
        self._end()
        return failures

    def _failed(self, what: str) -> CommandFailedEvent:
        return CommandFailedEvent(ts=time.time(), source=self._source, message=f"{self.arguments[0]}: {what}")

    def _end(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
                break
        self._process = None
