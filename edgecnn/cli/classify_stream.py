"""A stream on the command line: its consumers, wired once for edgecnn classify and for the service, and its results and state in a
terminal.
"""

import contextlib
import functools
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

import typer

from edgecnn.cli import drop_output
from edgecnn.cli.options import checked, emit_line, note, note_if_shared, secret
from edgecnn.device.address import Listener, VisiblePasswordError, open_listener, parse_address
from edgecnn.device.stream import events
from edgecnn.device.stream.loop import Consumer, Ends, Item, Stopped, open_stream, reader_gone, takes_output
from edgecnn.device.system import CAMERA, MQTT
from edgecnn.labels import plural, printable

if TYPE_CHECKING:
    from edgecnn.device.http.board import MetricsFile
    from edgecnn.device.http.live import Live
    from edgecnn.device.keep.keeper import Keeper
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.settings import Http, Mqtt, Settings
    from edgecnn.runtime.classifier import Classifier


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
        self._last: events.FrameResult | None = None
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
        if isinstance(item, events.StateChangedEvent):
            self._state = state_text(item)
        elif isinstance(item, events.Event):
            self._lost = isinstance(item, events.CameraLostEvent)
            if isinstance(item, events.CameraLostEvent | events.EndedEvent):
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


def listen(options: "Http", say: Callable[[str], object] = note, warn: Callable[[str], object] = note) -> Listener:
    """Open the port and print the page's address; a usage error for invalid options, MissingExtraError without the packages."""
    require_packages("starlette", "uvicorn", "prometheus_client")
    if options.token_file is not None:
        note_if_shared(options.token_file)
    door = checked("--http", open_listener, options)
    say(f"page: {door.url}")
    if door.is_wide_open:
        warn("warning: anyone who can reach this port sees what the camera sees (--http-open)")
    return door


def require_packages(*names: str) -> None:
    """Raise ModuleNotFoundError if a package of the server is missing, without importing it."""
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def make_live(
    door: Listener,
    settings: "Settings",
    classifier: "Classifier",
    choice: Mapping[str, Any],
    source: str | None,
    keepers: "Sequence[Keeper]" = (),
) -> "Live":
    """Start the server of a stream.

    `choice` has the arguments that loaded the classifier, except its path; the first of `keepers` keeps frames, if the settings name a
    folder for them.
    """
    from edgecnn.device.http.link import UNSURES
    from edgecnn.device.http.live import Live, make_opening

    keeper = keepers[0] if settings.reaction.keep and keepers else None
    kept = keeper.newest(UNSURES) if keeper else ()
    opening = make_opening(door, settings, classifier, choice, camera=source or "", kept=kept)
    live = Live(opening, door.listener, (classifier.name, classifier.model_sha256), classifier.region)
    if keeper:
        keeper.on_kept = live.kept
    return live


def make_metrics_file(settings: "Settings", classifier: "Classifier", source: str | None) -> "MetricsFile":
    """Return the writer of --metrics-file for a stream that is not served; MissingExtraError without the package."""
    require_packages("prometheus_client")
    from edgecnn.device.http.board import MetricsFile
    from edgecnn.device.http.live import make_opening

    opening = make_opening(None, settings, classifier, {}, camera=source or "")
    return MetricsFile(opening, (classifier.name, classifier.model_sha256), classifier.region)


def serve_api(settings: "Settings", load: "functools.partial[Classifier]") -> None:
    """Serve without a camera until a signal arrives (Stopped)."""
    import asyncio

    from edgecnn.device.http.live import make_opening
    from edgecnn.device.http.serve import serve_api as serve_without_camera

    door = listen(settings.http)
    classifier = load()
    opening = make_opening(door, settings, classifier, load.keywords)
    asyncio.run(serve_without_camera(opening, door.listener, classifier))


def read_settings(options: "Mqtt", rotation: int = 0) -> "MqttSettings":
    """Read the address, the user and the password from their options; an invalid one is a usage error."""
    import ssl

    from edgecnn.device.mqtt.publisher import MqttSettings

    try:
        broker, name = parse_address(options.address or "")
    except ValueError as error:
        has_one = isinstance(error, VisiblePasswordError)
        advice = f"; the password goes into --mqtt-password-file or {MQTT}PASSWORD" if has_one else ""
        raise typer.BadParameter(f"{error}{advice}.", param_hint="--mqtt") from None
    if options.ca is not None and not broker.tls:
        raise typer.BadParameter("is for mqtts:// addresses, which are encrypted.", param_hint="--mqtt-ca")
    if not options.prefix or set("+#\0") & set(options.prefix) or options.prefix.strip("/") != options.prefix:
        message = f"received {options.prefix!r}, expected a topic, such as homeassistant."
        raise typer.BadParameter(message, param_hint="--mqtt-prefix")
    user, password = secret("--mqtt-password-file", MQTT, options.password_file)
    broker = replace(broker, user=broker.user or user, password=password)
    if password is not None and broker.user is None:
        raise typer.BadParameter(
            f"a password needs a user; expected mqtt://USER@HOST/NAME, {MQTT}USER, or the user as the first line of the file.",
            param_hint="--mqtt",
        )
    try:
        return MqttSettings(broker=broker, name=name, options=options, rotation=rotation)
    except OSError as error:
        why = "it contains no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise typer.BadParameter(f"{options.ca}: {why}.", param_hint="--mqtt-ca") from None


def make_publisher(settings: "MqttSettings", classifier: "Classifier") -> "Publisher":
    from edgecnn.device.mqtt.publisher import Publisher

    strangers = classifier.strangers is not None
    make = functools.partial(Publisher, labels=classifier.labels, model=classifier.name, strangers=strangers)
    return checked("--mqtt-binary", make, settings)


def forget_device(options: "Mqtt") -> None:
    from edgecnn.device.mqtt.publisher import forget

    settings = read_settings(options)
    forget(settings)
    note(f"{settings.broker.address}: {settings.name} is removed")


READER_EVERY_S = 1.0

Sink = Callable[[Item | None], None]
"""Prints results and events. It is called with None at least every `loop.TICK_S` while nothing happens."""


def classify_stream(
    source: str | None, settings: "Settings", load: "functools.partial[Classifier]", json: bool
) -> None:
    """Classify a stream, or a camera if `source` is None, until it ends, its time is up or a signal arrives (Stopped)."""
    consumers: list[Consumer] = []
    chosen = settings.reaction
    maps, frames = chosen.explain, chosen.keep
    if maps and frames and maps.resolve().is_relative_to(frames.resolve()):
        raise typer.BadParameter(
            "name a folder outside the --keep folder: maps are not training images.", param_hint="--explain"
        )
    if chosen.on_change is not None:
        from edgecnn.device.stream.loop import OnChange

        consumers.append(checked("--on-change", OnChange, chosen.on_change))
    door = None
    if settings.http.address is not None:
        door = listen(settings.http)
    broker = None
    if settings.mqtt.address is not None:
        broker = read_settings(settings.mqtt, settings.camera.rotation)
    secret("--camera-password-file", CAMERA, settings.camera.password_file)
    with Ends() as ends:
        classifier = load()
        keepers: list[Keeper] = []
        if maps or frames:
            from edgecnn.device.keep.keeper import make_keepers

            keepers = make_keepers(settings, classifier, ends.interruptible)
        consumers = [*keepers, *consumers]
        if broker:
            consumers.append(make_publisher(broker, classifier))
        if door:
            consumers.append(make_live(door, settings, classifier, load.keywords, source, keepers))
        elif settings.metrics.file is not None:
            consumers.append(make_metrics_file(settings, classifier, source))
        stream = open_stream(source, classifier, settings, consumers=consumers)
        with make_sink(json, classifier) as show, stopping_output(), stream:
            try:
                for item in stream.ticks():
                    ends.check()
                    with ends.interruptible:
                        show(item)
            except Stopped:
                if takes_output():
                    show(stream.ended(events.SIGNAL))
                raise


@contextlib.contextmanager
def make_sink(json: bool, classifier: "Classifier") -> Iterator[Sink]:
    """Yield the sink for results: JSON lines, a drawing in a terminal, or plain lines."""
    if not json and sys.stdout.isatty():
        with View(model=classifier.name) as view:
            yield view.show
    elif json:
        yield functools.partial(show_json, classifier, events.RateLimiter(READER_EVERY_S))
    else:
        yield functools.partial(show_text, events.RateLimiter(READER_EVERY_S))


def check_reader(due: events.RateLimiter) -> None:
    """Raise BrokenPipeError if nobody reads standard output any more; check only now and then."""
    if due.count() and reader_gone():
        raise BrokenPipeError


def show_json(classifier: "Classifier", due: events.RateLimiter, item: Item | None) -> None:
    if item is None:
        check_reader(due)
    elif isinstance(item, events.FrameResult):
        emit_line(events.result_line(item, (classifier.name, classifier.model_sha256), classifier.region))
    else:
        emit_line(events.event_line(item))


def show_text(due: events.RateLimiter, item: Item | None) -> None:
    if item is None or isinstance(item, events.FrameResult):
        check_reader(due)
    elif isinstance(item, events.StateChangedEvent):
        emit_line(f"{events.rfc3339(item.ts)} {state_text(item)}")
    else:
        note(event_text(item))
