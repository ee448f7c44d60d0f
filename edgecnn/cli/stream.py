"""What the commands that read a stream share: the feed, the end of the output, and what happened in words."""

import contextlib
from collections.abc import Iterator

from edgecnn.cli import drop_output
from edgecnn.cli.options import check_choice, read_size
from edgecnn.device.cameras.source import CameraSettings, Source
from edgecnn.device.stream.ends import Stopped, takes_output
from edgecnn.device.stream.feed import Feed, FeedSettings, SourceBack, SourceLost, SourceOpened
from edgecnn.device.stream.results import Event
from edgecnn.labels import ABSTAIN, printable
from edgecnn.pixels import ROTATIONS


def make_feed(
    source: str | None, size: str, fps: float, rotate: int, *, warm_up: int | None, retry_for: float | None
) -> Feed:
    """Make the feed of a SOURCE, or of any camera if it is None; nothing is opened yet.

    Raises:
        typer.BadParameter: for a size or a rotation that is not valid.
    """
    check_choice("--rotate", rotate, ROTATIONS)
    width, height = read_size(size)
    camera = CameraSettings(width=width, height=height, fps=fps)

    def open_it() -> Source:
        from edgecnn.device import cameras

        return cameras.find_camera(camera) if source is None else cameras.open_source(source, camera)

    settings = FeedSettings(warm_up=warm_up, retry_for_s=retry_for)
    return Feed(open_it, settings, name=source or "camera")


@contextlib.contextmanager
def stopping_output() -> Iterator[None]:
    """Drop what standard output holds if a signal comes while nobody reads it; the process would wait for a reader at its end."""
    try:
        yield
    except Stopped:
        if not takes_output():
            drop_output()
        raise


def state_text(event: Event) -> str:
    """Return a change of the state for people: the label and its score, or why there is none."""
    state, score = event.details["state"], event.details["score"]
    if state is None or state == ABSTAIN:
        return f"{state or '-'} ({event.details['reason']})"
    return f"{printable(state)} {score:.2%}"


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
    details = event.details
    match event.kind:
        case "camera_opened":
            return f"camera: {named(event.source, details['about'])}"
        case "camera_lost":
            return f"camera lost ({details['reason']}): {named(event.source, details['message'])}"
        case "camera_back":
            return f"camera back after {details['after_s']:.1f} s: {named(event.source, details['about'])}"
        case "ended":
            counts = f"{details['frames']:,} frames, {details['dropped']:,} dropped, {details['damaged']:,} damaged"
            return f"ended ({details['reason'].replace('_', ' ')}): {counts}"
    times = f" ({details['count']} times)" if details.get("count", 1) > 1 else ""
    return f"{event.kind.replace('_', ' ')}: {details.get('message', '')}{times}"
