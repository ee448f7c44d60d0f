"""A Raspberry Pi's CSI camera through `rpicam-vid` (called `libcamera-vid` before 2023), which writes Motion JPEG."""

import shutil

from edgecnn.device.cameras.mjpeg import MjpegSplitter
from edgecnn.device.cameras.process import ProcessSource
from edgecnn.device.cameras.source import CameraSettings
from edgecnn.errors import CameraError

PROGRAMS = ("rpicam-vid", "libcamera-vid")
MISSING = "Install it: `sudo apt install rpicam-apps` (Raspberry Pi OS)."
QUALITY = 90


def program() -> str | None:
    return next((name for name in PROGRAMS if shutil.which(name)), None)


class Rpicam(ProcessSource):
    """The CSI camera with a given number, 0 if the text is empty."""

    def __init__(self, text: str, settings: CameraSettings) -> None:
        if not (text or "0").isdecimal():
            raise CameraError(f"csi:{text}: expected a camera's number, such as csi:0. `edgecnn cameras` lists them.")
        name = f"csi:{text or 0}"
        installed = program()
        if installed is None:
            raise CameraError(f"{name}: neither {' nor '.join(PROGRAMS)} is installed. {MISSING}")
        super().__init__(name, "", [installed, *arguments(text, settings)], MjpegSplitter(), live=True, missing=MISSING)
        self.about = f"CSI camera {text or 0} through {installed}, MJPEG"


def arguments(camera: str, settings: CameraSettings) -> list[str]:
    result = ["-t", "0", "-n", "--codec", "mjpeg", "-q", str(QUALITY), "--flush", "-o", "-"]
    if camera:
        result += ["--camera", camera]
    for option, value in (("--width", settings.width), ("--height", settings.height), ("--framerate", settings.fps)):
        if value:
            result += [option, f"{value:g}"]
    return result
