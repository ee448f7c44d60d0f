"""Shared by the commands that read a stream: the end of the output, and events as text."""

import contextlib
from collections.abc import Iterator

from edgecnn.cli import drop_output
from edgecnn.device.stream import events
from edgecnn.device.stream.ends import Stopped, takes_output
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
