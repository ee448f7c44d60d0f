"""`edgecnn classify` for a stream: options to the loop's parts, and lines to standard output."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.stream import event_text, make_feed, state_text, stopping_output
from edgecnn.device.stream.ends import Ends, Stopped, reader_gone, takes_output
from edgecnn.device.stream.loop import SIGNAL, Sink, Stream, StreamSettings
from edgecnn.device.stream.results import Event, FrameResult, event_line, result_line, rfc3339
from edgecnn.runtime.decision import Smoother

if TYPE_CHECKING:
    from edgecnn.device.stream.keep import UncertainFrames
    from edgecnn.device.stream.onchange import OnChange
    from edgecnn.runtime.classifier import Classifier

READER_EVERY_S = 1.0
"""How often a command that seldom prints checks whether its reader is still there."""


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
    try:
        smoother = Smoother.parse(options.smooth)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--smooth") from None
    command = make_command(options.on_change)
    feed = make_feed(
        options.source, options.size, options.fps, options.rotate, warm_up=options.warm_up, retry_for=options.retry_for
    )
    with Ends() as ends:
        classifier = load()
        settings = StreamSettings(
            max_age_s=options.max_age / 1000,
            max_fps=options.max_fps,
            duration_s=options.duration,
        )
        stream = Stream(
            feed,
            functools.partial(
                classifier.classify,
                top_k=options.top_k,
                threshold=options.threshold,
                margin=options.margin,
                fit=options.fit,
                rotation=options.rotate,
            ),
            settings,
            smoother,
            keeper=make_keeper(options),
            command=command,
            check=ends.check,
            interruptible=ends.interruptible,
        )
        with make_sink(options.json, classifier) as sink, stopping_output():
            try:
                stream.run(sink)
            except Stopped:
                if takes_output():
                    sink.event(stream.ended(SIGNAL))
                raise


@contextlib.contextmanager
def make_sink(json: bool, classifier: "Classifier") -> Iterator[Sink]:
    """Yield where results go: JSON lines, a drawing in a terminal, or plain lines."""
    if json:
        yield JsonLines((classifier.name, classifier.model_sha256))
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


def make_keeper(options: StreamOptions) -> "UncertainFrames | None":
    """Make what keeps unsure frames; None without --save-uncertain.

    Raises:
        OutputError: if what earlier runs kept cannot be read.
    """
    if options.save_uncertain is None:
        return None
    from edgecnn.device.stream.keep import UncertainFrames

    return UncertainFrames(
        options.save_uncertain,
        margin=options.save_margin,
        cap_bytes=round(options.save_cap * 2**20),
        rotation=options.rotate,
    )


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

    def __init__(self, model: tuple[str, str]) -> None:
        self._model = model
        self._reader = Reader()

    def result(self, result: FrameResult) -> None:
        """Print a frame's result."""
        emit_line(result_line(result, self._model))

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
        if event.kind == "state_changed":
            emit_line(f"{rfc3339(event.ts)} {state_text(event)}")
        else:
            note(event_text(event))

    def idle(self) -> None:
        """Check the reader."""
        self._reader.check()
