"""`edgecnn classify` for a stream: options to the loop's parts, and lines to standard output."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.options import check_choice, read_camera_secret, read_size
from edgecnn.cli.stream import event_text, state_text, stopping_output
from edgecnn.device.stream.ends import Ends, Stopped, reader_gone, takes_output
from edgecnn.device.stream.events import SIGNAL, Event, StateChangedEvent
from edgecnn.device.stream.loop import Item, open_stream
from edgecnn.device.stream.results import FrameResult, event_line, result_line, rfc3339
from edgecnn.pixels import ROTATIONS
from edgecnn.region import WHOLE, Region
from edgecnn.runtime.decision import Smoother

if TYPE_CHECKING:
    from edgecnn.cli.mqtt import MqttOptions
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.keep import UncertainFrames
    from edgecnn.device.stream.onchange import OnChange
    from edgecnn.runtime.classifier import Classifier

READER_EVERY_S = 1.0
"""How often a command that seldom prints checks whether its reader is still there."""


class Sink(Protocol):
    """Prints results and events. `idle` is called at least every `loop.TICK_S` while nothing comes."""

    def result(self, result: FrameResult) -> None: ...
    def event(self, event: Event) -> None: ...
    def idle(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The options of `edgecnn classify` for a stream, as typed; `source` is None for --camera."""

    source: str | None
    fit: str | None
    size: str
    fps: float
    rotate: int
    warm_up: int | None
    retry_for: float | None
    password_file: Path | None
    top_k: int
    threshold: float | None
    margin: float
    json: bool
    max_age: float
    max_fps: float
    duration: float
    smooth: str
    on_change: str | None
    save_uncertain: Path | None
    save_margin: float
    save_cap: float
    explain: Path | None
    mqtt: "MqttOptions | None"


def classify_stream(options: StreamOptions, load: Callable[[], "Classifier"]) -> None:
    """Classify a stream until it ends, its time is over or a signal comes.

    Args:
        options: see there.
        load: loads the classifier.

    Raises:
        typer.BadParameter: for an option with a value that is not valid.
        CameraError: if the source cannot be opened, or was away for too long.
        Stopped: after a signal; its code is the exit code.
    """
    check_choice("--rotate", options.rotate, ROTATIONS)
    size = read_size(options.size)
    try:
        Smoother.parse(options.smooth)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--smooth") from None
    maps, frames = options.explain, options.save_uncertain
    if maps and frames and maps.resolve().is_relative_to(frames.resolve()):
        raise typer.BadParameter(
            "name a folder outside that of --save-uncertain: maps are not images to train on.", param_hint="--explain"
        )
    command = make_command(options.on_change)
    broker = read_broker(options)
    read_camera_secret(options.password_file)
    with Ends() as ends:
        classifier = load()
        keepers = make_keepers(options, classifier, ends)
        publisher = make_publisher(broker, classifier) if broker else None
        stream = open_stream(
            options.source,
            classifier,
            size=size,
            fps=options.fps,
            rotation=options.rotate,
            warm_up=options.warm_up,
            retry_for_s=options.retry_for,
            password_file=options.password_file,
            top_k=options.top_k,
            threshold=options.threshold,
            margin=options.margin,
            fit=options.fit,
            smooth=options.smooth,
            max_age_s=options.max_age / 1000,
            max_fps=options.max_fps,
            duration_s=options.duration,
            consumers=[*keepers, *(part for part in (command, publisher) if part)],
        )
        with make_sink(options.json, classifier) as sink, stopping_output(), stream:
            try:
                for item in stream.ticks():
                    ends.check()
                    with ends.interruptible:
                        show(item, sink)
            except Stopped:
                if takes_output():
                    sink.event(stream.ended(SIGNAL))
                raise


def show(item: Item | None, sink: Sink) -> None:
    """Give an item of a stream, or None, to a sink."""
    if item is None:
        sink.idle()
    elif isinstance(item, FrameResult):
        sink.result(item)
    else:
        sink.event(item)


@contextlib.contextmanager
def make_sink(json: bool, classifier: "Classifier") -> Iterator[Sink]:
    """Yield where results go: JSON lines, a drawing in a terminal, or plain lines."""
    if json:
        yield JsonLines((classifier.name, classifier.model_sha256), classifier.region)
    elif sys.stdout.isatty():
        from edgecnn.cli.view import View

        with View(model=classifier.name) as view:
            yield view
    else:
        yield TextLines()


def make_command(command: str | None) -> "OnChange | None":
    """Make what runs a command on a change.

    Raises:
        typer.BadParameter: for a command that cannot be run.
    """
    if command is None:
        return None
    from edgecnn.device.stream.onchange import OnChange

    try:
        return OnChange(command)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--on-change") from None


def make_keepers(options: StreamOptions, classifier: "Classifier", ends: Ends) -> "list[UncertainFrames]":
    """Make what keeps unsure frames and their maps: one for each of --save-uncertain and --explain.

    Raises:
        OutputError: if what earlier runs kept cannot be read.
    """
    if options.save_uncertain is None and options.explain is None:
        return []
    from edgecnn.device.stream.keep import UncertainFrames

    make = functools.partial(
        UncertainFrames,
        margin=options.save_margin,
        cap_bytes=round(options.save_cap * 2**20),
        rotation=options.rotate,
        interruptible=ends.interruptible,
    )
    keepers = [make(options.save_uncertain)] if options.save_uncertain else []
    if options.explain:
        from edgecnn.device.explain import frame_pictures

        keepers.append(make(options.explain, write=frame_pictures(classifier, options.fit)))
    return keepers


def read_broker(options: StreamOptions) -> "MqttSettings | None":
    """Read the MQTT options; None without --mqtt.

    Raises:
        typer.BadParameter: for one that is not valid.
        ModuleNotFoundError: if paho-mqtt is not installed.
    """
    if options.mqtt is None:
        return None
    from edgecnn.cli.mqtt import read_settings

    return read_settings(options.mqtt, options.rotate)


def make_publisher(broker: "MqttSettings", classifier: "Classifier") -> "Publisher":
    """Make what publishes the state.

    Raises:
        typer.BadParameter: for an option that is not valid.
    """
    from edgecnn.cli import mqtt

    return mqtt.make_publisher(broker, classifier)


class Reader:
    """Checks now and then whether anyone still reads standard output."""

    def __init__(self) -> None:
        self._next = 0.0

    def check(self) -> None:
        """Raise BrokenPipeError if nobody does."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + READER_EVERY_S
            if reader_gone():
                raise BrokenPipeError


class JsonLines:
    """A JSON line for each frame and event."""

    def __init__(self, model: tuple[str, str], region: Region = WHOLE) -> None:
        self._model = model
        self._region = region
        self._reader = Reader()

    def result(self, result: FrameResult) -> None:
        """Print a frame's result."""
        emit_line(result_line(result, self._model, self._region))

    def event(self, event: Event) -> None:
        """Print an event."""
        emit_line(event_line(event))

    def idle(self) -> None:
        """Check the reader."""
        self._reader.check()


class TextLines:
    """A line on standard output for each change of the state; other events are notes."""

    def __init__(self) -> None:
        self._reader = Reader()

    def result(self, result: FrameResult) -> None:
        """Check the reader."""
        self._reader.check()

    def event(self, event: Event) -> None:
        """Print a change of the state, or a note."""
        if isinstance(event, StateChangedEvent):
            emit_line(f"{rfc3339(event.ts)} {state_text(event)}")
        else:
            note(event_text(event))

    def idle(self) -> None:
        """Check the reader."""
        self._reader.check()
