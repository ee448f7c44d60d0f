"""What the commands that read a stream share: the end of the output, and what happened in words."""

import contextlib
from collections.abc import Iterator

from edgecnn.cli import drop_output
from edgecnn.device.stream.ends import Stopped, takes_output
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    CommandFailedEvent,
    EndedEvent,
    Event,
    FrameDamagedEvent,
    MqttConflictEvent,
    MqttConnectedEvent,
    MqttLostEvent,
    MqttRefusedEvent,
    ProblemEvent,
    ReleaseEvent,
    SaveFailedEvent,
    StateChangedEvent,
)
from edgecnn.device.stream.feed import SourceBack, SourceLost, SourceOpened
from edgecnn.labels import printable


@contextlib.contextmanager
def stopping_output() -> Iterator[None]:
    """Drop what standard output holds if a signal comes while nobody reads it; the process would wait for a reader at its end."""
    try:
        yield
    except Stopped:
        if not takes_output():
            drop_output()
        raise


def state_text(event: StateChangedEvent) -> str:
    """Return a change of the state for people: the label and its score, or why there is none."""
    if event.state is None or event.reason is not None:
        return f"{event.state or '-'} ({event.reason})"
    return f"{printable(event.state)} {event.score:.2%}"


def named(source: str, text: str) -> str:
    """Return a text for people that begins with its source's name, once."""
    return text if not source or text.startswith(source) else f"{source.removesuffix(':')}: {text}"


def open_text(item: SourceOpened | SourceLost | SourceBack) -> str:
    """Return what happened to a source for people."""
    if isinstance(item, SourceLost):
        return f"camera lost ({item.reason}): {named(item.name, item.text)}"
    if isinstance(item, SourceBack):
        return f"camera back after {item.after_s:.1f} s: {named(item.name, item.about)}"
    return f"camera: {named(item.name, item.about)}"


def event_text(event: Event) -> str:
    """Return an event for people."""
    match event:
        case CameraOpenedEvent():
            return f"camera: {named(event.source, event.about)}"
        case CameraLostEvent():
            return f"camera lost ({event.reason}): {named(event.source, event.message)}"
        case CameraBackEvent():
            return f"camera back after {event.after_s:.1f} s: {named(event.source, event.about)}"
        case StateChangedEvent():
            return f"state: {state_text(event)}"
        case FrameDamagedEvent() | SaveFailedEvent():
            times = f" ({event.count} times)" if event.count > 1 else ""
            return f"{event.kind.replace('_', ' ')}: {event.message}{times}"
        case CommandFailedEvent():
            return f"command failed: {event.message}"
        case MqttConnectedEvent():
            states = f"; states not sent meanwhile: {event.dropped:,}" if event.dropped else ""
            return f"mqtt connected to {event.broker} after {event.after_s:.1f} s{states}"
        case MqttLostEvent():
            return f"mqtt lost ({event.reason}): {event.broker}: {event.message}"
        case MqttRefusedEvent():
            times = f" ({event.count} times)" if event.count > 1 else ""
            return f"mqtt refused ({event.reason}): {event.broker}: {event.message}{times}"
        case MqttConflictEvent():
            return f"mqtt conflict: {event.broker}: {event.message}"
        case ReleaseEvent():
            why = f": {event.reason}" if event.reason else ""
            return f"release {(event.release or 'that ships')[:12]} ({event.name}) is {event.state}{why}"
        case ProblemEvent():
            return f"{event.about}: {event.message}"
        case EndedEvent():
            counts = f"{event.frames:,} frames, {event.dropped:,} dropped, {event.damaged:,} damaged"
            return f"ended ({event.reason.replace('_', ' ')}): {counts}"
    raise TypeError(event)
