"""Any program that writes Motion JPEG to its standard output: `exec:COMMAND`."""

import shlex

from edgecnn.device.cameras.mjpeg import MjpegSplitter
from edgecnn.device.cameras.process import ProcessSource
from edgecnn.device.cameras.source import CameraSettings
from edgecnn.device.secrets import masked
from edgecnn.errors import CameraError


class CommandSource(ProcessSource):
    """Frames from a command, split as a shell would but run without one. It is live: its end is a loss, whatever the exit code."""

    def __init__(self, text: str, settings: CameraSettings) -> None:
        try:
            command = shlex.split(text)
        except ValueError as error:
            text = masked(text)
            raise CameraError(f"exec:{text}: cannot be split into words: {error}. Close the quotes.") from None
        if not command:
            raise CameraError(
                "exec: has no command; expected a program that writes MJPEG, such as 'exec:rpicam-vid -t 0 --codec mjpeg -o -'."
            )
        missing = "The command runs without a shell; for pipes and variables, write exec:sh -c '…'."
        super().__init__(f"exec:{text}", "MJPEG", command, MjpegSplitter(), live=True, missing=missing)
