"""`edgecnn capture`: pictures for training, from a camera."""

import contextlib
import json as json_module
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.options import Fps, RetryFor, Rotate, Size, WarmUp

if TYPE_CHECKING:
    from edgecnn.device.stream.capture import Shot
    from edgecnn.device.stream.feed import Back, Lost, Opened


def capture(
    label: Annotated[str, typer.Option(metavar="NAME", help="The class of the pictures, and their folder's name.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="/dev/video0, rtsp://…, clip.mp4, exec:COMMAND, watch:DIR, synthetic:.",
            show_default="none",
        ),
    ] = None,
    camera: Annotated[bool, typer.Option("--camera", help="Find a camera by itself.", show_default="off")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Pictures go to DIR/NAME/.")] = Path("photos"),
    interval: Annotated[
        float,
        typer.Option(min=0.0, metavar="S", help="A picture each S seconds; of a file, each frame. 0: a key for each."),
    ] = 0.0,
    count: Annotated[int, typer.Option(min=0, metavar="N", help="End after N pictures; 0 for no end.")] = 0,
    min_sharpness: Annotated[
        float, typer.Option(min=0.0, metavar="X", help="Skip what is blurred more: the variance of the Laplacian.")
    ] = 10.0,
    min_change: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="X", help="Skip what differs less from the last one, in mean grey levels of 256."
        ),
    ] = 2.0,
    size: Size = "640x480",
    fps: Fps = 0.0,
    rotate: Rotate = 0,
    warm_up: WarmUp = None,
    retry_for: RetryFor = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line a picture.", show_default="off")] = False,
) -> None:
    """Take pictures for training with a camera.

    Space or enter takes one, q ends. They become DIR/NAME/*, which `edgecnn train --data DIR` reads once there are two
    classes. Nothing is overwritten. Blurred pictures, and those like the last one, are skipped, and said.

    \b
    Examples:
      edgecnn capture --camera --label cat --out photos
      edgecnn capture /dev/video0 --label none --interval 2 --count 100
    """
    from edgecnn.cli.stream import make_feed, open_text, stopping_output
    from edgecnn.device.cameras import is_stream
    from edgecnn.device.stream.capture import Capture, CaptureSettings, Shot
    from edgecnn.device.stream.ends import Ends
    from edgecnn.device.stream.pictures import why_no_folder

    if camera == (source is not None):
        raise typer.BadParameter("name one stream, or give --camera.", param_hint="SOURCE")
    if source is not None and not is_stream(source):
        raise typer.BadParameter(f"{source!r} names no camera or stream.", param_hint="SOURCE")
    if why := why_no_folder(label):
        raise typer.BadParameter(f"{label!r} cannot be a class folder: {why}.", param_hint="--label")
    if not interval and not sys.stdin.isatty():
        raise typer.BadParameter(
            "standard input is no terminal, so no key can be pressed: give a time.", param_hint="--interval"
        )
    settings = CaptureSettings(
        label=label, folder=out, interval_s=interval, count=count, min_sharpness=min_sharpness, min_change=min_change,
        rotation=rotate,
    )  # fmt: skip
    feed = make_feed(source, size, fps, rotate, warm_up=warm_up, retry_for=retry_for)

    def tell(item: "Shot | Opened | Lost | Back") -> None:
        with ends.interruptible:
            if isinstance(item, Shot):
                show(item, json)
            else:
                note(open_text(item))

    with Ends() as ends, keyboard(interval) as key, stopping_output():
        taking = Capture(feed, settings, key=key, check=ends.check)
        try:
            taking.run(tell)
        finally:
            note(f"{taking.kept} pictures kept in {out / label}, {taking.skipped} skipped")


def show(shot: "Shot", json: bool) -> None:
    """Print a picture: its path on standard output, or as a note why it was skipped; all of it as a JSON line."""
    if json:
        line = {
            "path": None if shot.path is None else str(shot.path),
            "reason": shot.reason,
            "sharpness": None if shot.sharpness is None else round(shot.sharpness, 2),
            "change": None if shot.change is None else round(shot.change, 2),
        }
        emit_line(json_module.dumps(line))
    elif shot.path is not None:
        emit_line(str(shot.path))
    elif shot.sharpness is None:
        note("skipped: damaged")
    elif shot.change is None:
        note(f"skipped: blurred, sharpness {shot.sharpness:.1f} (see --min-sharpness)")
    else:
        note(f"skipped: as the last one, change {shot.change:.2f} (see --min-change)")


@contextlib.contextmanager
def keyboard(interval: float) -> Iterator[Callable[[], str | None] | None]:
    """Read single keys while entered, if standard input is a terminal; the terminal is set back whatever happens.

    Yields:
        The function that returns what was pressed, without waiting; None where there is no terminal.
    """
    from edgecnn.device.stream.capture import QUIT, TAKE

    if not sys.stdin.isatty():
        yield None
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
        note("q ends" if interval else "space or enter takes a picture, q ends")
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
