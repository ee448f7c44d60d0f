"""edgecnn cameras and edgecnn capture."""

import contextlib
import json as json_module
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.options import Json, emit_json, emit_line, note, secret, with_flags
from edgecnn.device.stream.settings import Camera, Pictures
from edgecnn.device.system import CAMERA
from edgecnn.labels import plural

if TYPE_CHECKING:
    from edgecnn.device.stream.events import Event
    from edgecnn.device.stream.pictures import Shot


def cameras(json: Json = False) -> None:
    """List this machine's cameras and what each can do.

    If a camera cannot be used, the list gives the reason. `edgecnn classify --camera` tries them in this order. The first word of each line
    is the SOURCE.

    \b
    Examples:
      edgecnn cameras
      edgecnn cameras --json
    """
    from edgecnn.device.cameras.listing import camera_lines, list_cameras

    listing = list_cameras()
    if json:
        emit_json(listing.to_json())
        return
    for camera in listing.cameras:
        print("\n".join(camera_lines(camera)))
    for text in listing.notes:
        note(text)


@with_flags
def capture(
    *,
    label: str = typer.Option(
        ...,
        metavar="NAME",
        help="The class of the pictures, which also names their folder.",
        rich_help_panel=Pictures.heading,
    ),
    source: str | None = typer.Argument(
        None,
        metavar="[SOURCE]",
        help="/dev/video0, rtsp://…, clip.mp4, exec:COMMAND, watch:DIR, folder:DIR, synthetic:.",
        show_default="none",
    ),
    camera: bool = typer.Option(
        False, "--camera", help="Find a camera and use it.", show_default="off", rich_help_panel=Camera.heading
    ),
    out: Path = typer.Option(
        Path("photos"), metavar="DIR", help="Write the pictures to DIR/NAME/.", rich_help_panel=Pictures.heading
    ),
    pictures: Pictures,
    frames: Camera,
    json: bool = typer.Option(False, "--json", help="Print one JSON line for each picture.", show_default="off"),
) -> None:
    """Take pictures for training with a camera.

    Space or enter takes a picture, q quits. Pictures go to DIR/NAME/, which `edgecnn train --data DIR` can read once there are two classes.
    Nothing is overwritten. Pictures that are blurred, or too similar to the last one, are skipped with a note.

    \b
    Examples:
      edgecnn capture --camera --label cat --out photos
      edgecnn capture /dev/video0 --label none --interval 2 --count 100
      edgecnn capture --camera --label open --region 0.4,0.2,0.3,0.5
    """
    from edgecnn.cli.classify_stream import event_text, stopping_output
    from edgecnn.device.cameras import is_stream
    from edgecnn.device.stream.feed import open_feed
    from edgecnn.device.stream.loop import Ends
    from edgecnn.device.stream.pictures import Capture, Shot, why_no_folder
    from edgecnn.device.system import masked

    if camera == (source is not None):
        raise typer.BadParameter("give one stream, or --camera.", param_hint="SOURCE")
    if source is not None and not is_stream(source):
        raise typer.BadParameter(f"{masked(source)!r} is not a camera or a stream.", param_hint="SOURCE")
    if why := why_no_folder(label):
        raise typer.BadParameter(f"{label!r} cannot be a class folder: {why}.", param_hint="--label")
    if not pictures.interval_s and not sys.stdin.isatty():
        raise typer.BadParameter(
            "standard input is not a terminal, so no key can be pressed: give a number of seconds.",
            param_hint="--interval",
        )
    secret("--camera-password-file", CAMERA, frames.password_file)
    feed = open_feed(source, frames)

    def report(item: "Shot | Event") -> None:
        with ends.interruptible:
            show(item, json) if isinstance(item, Shot) else note(event_text(item))

    with Ends() as ends, keyboard(bool(pictures.interval_s)) as key, stopping_output():
        taking = Capture(feed, out / label, pictures, frames.rotation, key=key, check=ends.check)
        try:
            taking.run(report)
        finally:
            note(f"{plural(taking.kept, 'picture')} kept in {out / label}, {taking.skipped} skipped")


def show(shot: "Shot", json: bool) -> None:
    if json:
        measured = {"sharpness": shot.sharpness, "change": shot.change}
        rounded = {name: None if value is None else round(value, 2) for name, value in measured.items()}
        line = {"path": None if shot.path is None else str(shot.path), "reason": shot.reason, **rounded}
        emit_line(json_module.dumps(line))
    elif shot.path is not None:
        emit_line(str(shot.path))
    elif shot.sharpness is None:
        note("skipped: damaged")
    elif shot.change is None:
        note(f"skipped: blurred, sharpness {shot.sharpness:.1f} (see --min-sharpness)")
    else:
        note(f"skipped: too similar to the last one, change {shot.change:.2f} (see --min-change)")


@contextlib.contextmanager
def keyboard(timed: bool) -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns the key pressed, or None, without waiting; at the end, restore the terminal, if there is one."""
    from edgecnn.device.stream.pictures import QUIT, TAKE

    if not sys.stdin.isatty():
        yield lambda: None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()

    def pressed() -> str | None:
        if not select.select([descriptor], [], [], 0)[0]:
            return None
        keys = os.read(descriptor, 64)
        if not keys or any(key in b"qQ\x04" for key in keys):
            return QUIT
        return TAKE if any(key in b" \r\n" for key in keys) else None

    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        note("q quits" if timed else "space or enter takes a picture, q quits")
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
