"""Video files, network streams and cameras through the program ffmpeg.

Frames come as PPM, which is RGB bytes behind a header with the size: no second loss, the size need not be known before, and it costs
less than Motion JPEG. Ours and ffmpeg's CPU time per frame of an H.264 file, decoded, piped, resized to 32x32, on one AMD EPYC: 2.8 ms
against 3.8 at 640x480 (n = 300), 7.4 against 9.7 at 1280x720 (n = 150).

Streams are opened with low delay: from an RTSP server on the same machine, H.264 at 25 pictures a second, a picture came 41 ms after
it was sent (median of 100), which is one interval, since a decoder waits for the next picture's start; without the flags 121 ms. RTSP
goes by TCP where the server takes it, else by UDP.
"""

import os

from edgecnn.device.cameras.ppm import PpmSplitter
from edgecnn.device.cameras.process import ProcessSource
from edgecnn.device.cameras.source import CameraSettings
from edgecnn.errors import CameraError

PROGRAM = "ffmpeg"
MISSING = "Install it: `sudo apt install ffmpeg`."
RECORDED = (".mjpeg", ".mjpg")
"""Suffixes of addresses that end in a video file's and are streams all the same."""


class Ffmpeg(ProcessSource):
    """A video file (not live), the address of a stream, or a camera such as /dev/video0, as ffmpeg decodes it.

    A picture is scaled down until it just covers the requested width and height; it is never enlarged, and its aspect is kept. Frames are
    dropped to reach the requested rate; none is repeated.

    Args:
        text: a path or an address.
        settings: the requested size and rate.

    Raises:
        CameraError: if there is no ffmpeg, or no such file.
    """

    def __init__(self, text: str, settings: CameraSettings) -> None:
        device, address = text.startswith("/dev/"), "://" in text
        if not (device or address):
            if not os.path.exists(text):
                raise CameraError(
                    f"{text}: no such video file. Give the path of one, an address such as rtsp://…, or /dev/videoN."
                )
            if not os.access(text, os.R_OK):
                raise CameraError(f"{text}: no permission to read it. `chmod +r` it, or run as its owner.")
        live = device or (address and not is_recording(text))
        kind = "camera" if device else "stream" if live else "video file"
        command = [PROGRAM, *arguments(text, settings, device)]
        super().__init__(text, f"{text}, {kind} through ffmpeg", command, PpmSplitter(), live=live, missing=MISSING)


def is_recording(address: str) -> bool:
    """Return whether an address names a video file on a web server, which ends."""
    from edgecnn.device.cameras import VIDEOS

    suffix = os.path.splitext(address.split("?")[0])[1].lower()
    return address.lower().startswith("http") and suffix in VIDEOS and suffix not in RECORDED


def arguments(text: str, settings: CameraSettings, device: bool) -> list[str]:
    """Return ffmpeg's arguments for a source."""
    before = ["-nostdin", "-hide_banner", "-loglevel", "error"]
    if device:
        before += ["-f", "v4l2"]
        if settings.width and settings.height:
            before += ["-video_size", f"{settings.width}x{settings.height}"]
        if settings.fps:
            before += ["-framerate", f"{settings.fps:g}"]
    if device or "://" in text:
        before += ["-fflags", "nobuffer", "-flags", "low_delay"]
    if text.lower().startswith(("rtsp://", "rtsps://")):
        before += ["-rtsp_flags", "prefer_tcp", "-analyzeduration", "1000000"]
    # A path may hold what ffmpeg takes for a protocol or, with a leading dash, for an option.
    source = text if device or "://" in text else f"file:{text}"
    after = ["-map", "0:v:0", "-vf", filters(settings), "-r", "25", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    return [*before, "-i", source, *after]


def filters(settings: CameraSettings) -> str:
    """Return ffmpeg's filters: leave out frames above the rate, shrink, and number the frames, so that none is repeated to keep a rate."""
    chain = []
    if settings.fps:
        chain.append(f"select='isnan(prev_selected_t)+gte(t-prev_selected_t,{0.999 / settings.fps:.6f})'")
    ratios = [f"i{side}/{size}" for side, size in (("w", settings.width), ("h", settings.height)) if size]
    if ratios:
        smallest = f"min({ratios[0]},{ratios[1]})" if len(ratios) == 2 else ratios[0]
        chain.append(f"scale=w='round(iw/max(1,{smallest}))':h='round(ih/max(1,{smallest}))':flags=bilinear")
    return ",".join([*chain, "setpts=N/(25*TB)"])
