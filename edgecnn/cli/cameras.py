"""`edgecnn cameras`."""

from edgecnn.cli.options import Json, emit_json, note


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
