"""`edgecnn classify` for a stream: settings to the loop's parts, and lines to standard output."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.options import checked
from edgecnn.cli.stream import event_text, state_text, stopping_output
from edgecnn.device.stream.ends import Ends, Stopped, reader_gone, takes_output
from edgecnn.device.stream.events import SIGNAL, Event, StateChangedEvent
from edgecnn.device.stream.feed import camera_secret
from edgecnn.device.stream.loop import Item, open_stream
from edgecnn.device.stream.results import FrameResult, event_line, result_line, rfc3339
from edgecnn.region import WHOLE, Region

if TYPE_CHECKING:
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.keep import UncertainFrames
    from edgecnn.device.stream.onchange import OnChange
    from edgecnn.device.stream.settings import Settings
    from edgecnn.runtime.classifier import Classifier

READER_EVERY_S = 1.0
"""How often a command that seldom prints checks whether its reader is still there."""


class Sink(Protocol):
    """Prints results and events. `idle` is called at least every `loop.TICK_S` while nothing comes."""

    def result(self, result: FrameResult) -> None: ...
    def event(self, event: Event) -> None: ...
    def idle(self) -> None: ...


def classify_stream(source: str | None, settings: "Settings", load: Callable[[], "Classifier"], json: bool) -> None:
    """Classify a stream until it ends, its time is over or a signal comes.

    Args:
        source: the stream; None finds a camera.
        settings: of the stream.
        load: loads the classifier.
        json: whether to print JSON lines.

    Raises:
        typer.BadParameter: for an option with a value that is not valid.
        CameraError: if the source cannot be opened, or was away for too long.
        Stopped: after a signal; its code is the exit code.
    """
    maps, frames = settings.reaction.explain, settings.reaction.save_uncertain
    if maps and frames and maps.resolve().is_relative_to(frames.resolve()):
        raise typer.BadParameter(
            "name a folder outside that of --save-uncertain: maps are not images to train on.", param_hint="--explain"
        )
    command = make_command(settings.reaction.on_change)
    broker = read_broker(settings)
    checked("--camera-password-file", camera_secret, settings.camera)
    with Ends() as ends:
        classifier = load()
        keepers = make_keepers(settings, classifier, ends)
        publisher = make_publisher(broker, classifier) if broker else None
        consumers = [*keepers, *(part for part in (command, publisher) if part)]
        stream = open_stream(source, classifier, settings, consumers=consumers)
        with make_sink(json, classifier) as sink, stopping_output(), stream:
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

    return checked("--on-change", OnChange, command)


def make_keepers(settings: "Settings", classifier: "Classifier", ends: Ends) -> "list[UncertainFrames]":
    """Make what keeps unsure frames and their maps: one for each of --save-uncertain and --explain.

    Raises:
        OutputError: if what earlier runs kept cannot be read.
    """
    chosen = settings.reaction
    if chosen.save_uncertain is None and chosen.explain is None:
        return []
    from edgecnn.device.stream.keep import UncertainFrames

    make = functools.partial(
        UncertainFrames,
        margin=chosen.save_margin,
        cap_bytes=round(chosen.save_cap * 2**20),
        rotation=settings.camera.rotation,
        interruptible=ends.interruptible,
    )
    keepers = [make(chosen.save_uncertain)] if chosen.save_uncertain else []
    if chosen.explain:
        from edgecnn.device.explain import frame_pictures

        keepers.append(make(chosen.explain, write=frame_pictures(classifier, settings.decision.fit)))
    return keepers


def read_broker(settings: "Settings") -> "MqttSettings | None":
    """Read the MQTT options; None without --mqtt.

    Raises:
        typer.BadParameter: for one that is not valid.
        ModuleNotFoundError: if paho-mqtt is not installed.
    """
    if settings.mqtt.address is None:
        return None
    from edgecnn.cli.mqtt import read_settings

    return read_settings(settings.mqtt, settings.camera.rotation)


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
