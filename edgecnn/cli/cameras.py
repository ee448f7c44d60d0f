"""The command that lists cameras."""

from typing import Annotated

import typer

from edgecnn.cli.console import emit_json, note


def cameras(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")] = False,
) -> None:
    """List the cameras that are there, what they can do, and why one cannot be used.

    They stand in the order in which `edgecnn classify --camera` tries them. The first word of each is what to give as SOURCE.

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
