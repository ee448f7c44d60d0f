"""A stream in a terminal: the end of the output, events as text, and the state and the class bars, drawn in place."""

import contextlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from edgecnn.cli import drop_output
from edgecnn.device.stream import events
from edgecnn.device.stream.ends import Stopped, takes_output
from edgecnn.device.stream.events import CameraLostEvent, EndedEvent, Event, FrameResult, StateChangedEvent
from edgecnn.device.stream.loop import Item
from edgecnn.labels import plural, printable


@contextlib.contextmanager
def stopping_output() -> Iterator[None]:
    """Discard buffered output if a signal arrives while nobody reads it; at exit the process would wait for a reader."""
    try:
        yield
    except Stopped:
        if not takes_output():
            drop_output()
        raise


def state_text(event: events.StateChangedEvent) -> str:
    """Return a change of the state as text: the label and its score, or why there is no label."""
    if event.state is None or event.reason is not None:
        return f"{event.state or '-'} ({event.reason})"
    return f"{printable(event.state)} {event.score:.2%}"


def event_text(event: events.Event) -> str:
    """Return an event as text. The source's name appears once, even if the message begins with it."""

    def named(text: str) -> str:
        source = event.source
        return text if not source or text.startswith(source) else f"{source.removesuffix(':')}: {text}"

    count = getattr(event, "count", 1)
    times = f" ({count} times)" if count > 1 else ""
    match event:
        case events.CameraOpenedEvent():
            return f"camera: {named(event.about)}"
        case events.CameraLostEvent():
            return f"camera lost ({event.reason}): {named(event.message)}"
        case events.CameraBackEvent():
            return f"camera back after {event.after_s:.1f} s: {named(event.about)}"
        case events.StateChangedEvent():
            return f"state: {state_text(event)}"
        case events.FrameDamagedEvent() | events.SaveFailedEvent():
            return f"{event.kind.replace('_', ' ')}: {event.message}{times}"
        case events.CommandFailedEvent():
            return f"command failed: {event.message}"
        case events.MqttConnectedEvent():
            states = f"; states not sent meanwhile: {event.dropped:,}" if event.dropped else ""
            return f"mqtt connected to {event.broker} after {event.after_s:.1f} s{states}"
        case events.MqttLostEvent():
            return f"mqtt lost ({event.reason}): {event.broker}: {event.message}"
        case events.MqttRefusedEvent():
            return f"mqtt refused ({event.reason}): {event.broker}: {event.message}{times}"
        case events.MqttConflictEvent():
            return f"mqtt conflict: {event.broker}: {event.message}"
        case events.ReleaseEvent():
            why = f": {event.reason}" if event.reason else ""
            return f"release {event.release[:12]} ({event.name}) is {event.state}{why}"
        case events.ProblemEvent():
            return f"{event.about}: {event.message}"
        case events.EndedEvent():
            counts = f"{plural(event.frames, 'frame')}, {event.dropped:,} dropped, {event.damaged:,} damaged"
            return f"ended ({event.reason.replace('_', ' ')}): {counts}"
    raise TypeError(event)


DRAW_EVERY_S = 0.1

RATE_OVER_S = 2.0

HIDE, SHOW, CLEAR_BELOW, CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[J", "\x1b[K"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
WHOLE_SCREEN = "\x1b[2J\x1b[H"


class View:
    """Draws results and events; `size` gives columns and lines. Use as a context manager, which always shows the cursor again."""

    def __init__(
        self,
        out: TextIO | None = None,
        *,
        model: str,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], tuple[int, int]] = lambda: tuple(shutil.get_terminal_size()),  # type: ignore[assignment,return-value]
    ) -> None:
        self._out = out or sys.stdout
        self._model = model
        self._clock = clock
        self._size = size
        self._last: FrameResult | None = None
        self._state = ""
        self._lost = False
        self._times: deque[float] = deque()
        self._drawn_at = float("-inf")
        self._drawn_lines = 0
        self._drawn_size = size()
        self._encoding = self._out.encoding or "utf-8"
        self._bar = "█" if "█".encode(self._encoding, "ignore") else "#"

    def __enter__(self) -> "View":
        self._write(HIDE)
        return self

    def __exit__(self, *_: object) -> None:
        self._write(SHOW)

    def show(self, item: Item | None) -> None:
        """Take a result or an event, and draw if it is time. Events appear above the drawing, a change of the state in it."""
        if isinstance(item, StateChangedEvent):
            self._state = state_text(item)
        elif isinstance(item, Event):
            self._lost = isinstance(item, CameraLostEvent)
            if isinstance(item, CameraLostEvent | EndedEvent):
                self._times.clear()
            self._write(self._erase() + self._fitted(event_text(item)) + "\n")
            self._drawn_lines = 0
            self._draw(now=True)
        else:
            if item is not None:
                self._last = item
                self._times.append(self._clock())
            self._draw()

    def lines(self) -> list[str]:
        columns, _ = self._size()
        result = self._last
        if self._lost:
            return [self._fitted("waiting for the camera")]
        if result is None:
            return []
        now = self._clock()
        while self._times and now - self._times[0] > RATE_OVER_S:
            self._times.popleft()
        latency = sum(result.latency_ms.values())
        text = [BOLD + self._fitted(self._state or "…") + PLAIN]
        width = max(0, min(40, columns - 32))
        for item in result.top:
            bar = self._bar * round(item.score * width)
            text.append(self._fitted(f"{item.label[:20]:20} {item.score:7.2%}  {bar}"))
        rate = len(self._times) / RATE_OVER_S
        figures = f"{rate:.1f} frames/s  {latency:.1f} ms  {result.dropped:,} dropped  model {self._model}"
        return [*text, self._fitted(figures)]

    def _draw(self, now: bool = False) -> None:
        time_ = self._clock()
        if not now and time_ - self._drawn_at < DRAW_EVERY_S:
            return
        self._drawn_at = time_
        start = self._erase()
        _, rows = self._size()
        lines = self.lines()[: max(1, rows - 1)]
        self._write(start + "".join(f"{line}{CLEAR_LINE}\n" for line in lines))
        self._drawn_lines = len(lines)

    def _erase(self) -> str:
        """Return the codes that clear the drawing from its start; after a resize, which wraps lines, the whole screen."""
        size = self._size()
        if size != self._drawn_size:
            self._drawn_size = size
            return WHOLE_SCREEN
        return (f"\x1b[{self._drawn_lines}A" if self._drawn_lines else "") + "\r" + CLEAR_BELOW

    def _fitted(self, text: str) -> str:
        columns, _ = self._size()
        return "".join(char if char.isprintable() else "?" for char in text)[: max(1, columns - 1)]

    def _write(self, text: str) -> None:
        self._out.write(text.encode(self._encoding, "replace").decode(self._encoding))
        self._out.flush()
