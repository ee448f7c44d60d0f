"""`edgecnn classify` for a stream: builds the loop from its settings, and prints its results."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.options import checked, emit_line, note, secret
from edgecnn.cli.stream import event_text, state_text, stopping_output
from edgecnn.device.secrets import CAMERA
from edgecnn.device.stream.ends import Ends, Stopped, reader_gone, takes_output
from edgecnn.device.stream.events import (
    SIGNAL,
    FrameResult,
    RateLimiter,
    StateChangedEvent,
    event_line,
    result_line,
    rfc3339,
)
from edgecnn.device.stream.loop import Consumer, Item, open_stream

if TYPE_CHECKING:
    from edgecnn.device.keep.keeper import Keeper
    from edgecnn.device.stream.settings import Settings
    from edgecnn.runtime.classifier import Classifier

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
        from edgecnn.device.stream.onchange import OnChange

        consumers.append(checked("--on-change", OnChange, chosen.on_change))
    door = None
    if settings.http.address is not None:
        from edgecnn.cli.consumers import listen

        door = listen(settings.http)
    broker = None
    if settings.mqtt.address is not None:
        from edgecnn.cli.consumers import make_publisher, read_settings

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
            from edgecnn.cli.consumers import make_live

            consumers.append(make_live(door, settings, classifier, load.keywords, source, keepers))
        elif settings.metrics.file is not None:
            from edgecnn.cli.consumers import make_metrics_file

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
                    show(stream.ended(SIGNAL))
                raise


@contextlib.contextmanager
def make_sink(json: bool, classifier: "Classifier") -> Iterator[Sink]:
    """Yield the sink for results: JSON lines, a drawing in a terminal, or plain lines."""
    if not json and sys.stdout.isatty():
        from edgecnn.cli.stream import View

        with View(model=classifier.name) as view:
            yield view.show
    elif json:
        yield functools.partial(show_json, classifier, RateLimiter(READER_EVERY_S))
    else:
        yield functools.partial(show_text, RateLimiter(READER_EVERY_S))


def check_reader(due: RateLimiter) -> None:
    """Raise BrokenPipeError if nobody reads standard output any more; check only now and then."""
    if due.count() and reader_gone():
        raise BrokenPipeError


def show_json(classifier: "Classifier", due: RateLimiter, item: Item | None) -> None:
    if item is None:
        check_reader(due)
    elif isinstance(item, FrameResult):
        emit_line(result_line(item, (classifier.name, classifier.model_sha256), classifier.region))
    else:
        emit_line(event_line(item))


def show_text(due: RateLimiter, item: Item | None) -> None:
    if item is None or isinstance(item, FrameResult):
        check_reader(due)
    elif isinstance(item, StateChangedEvent):
        emit_line(f"{rfc3339(item.ts)} {state_text(item)}")
    else:
        note(event_text(item))
