"""Video files, network streams and cameras through ffmpeg.

Frames arrive as PPM: a header with the size, then RGB bytes. PPM is lossless, does not need the size in advance and costs less than Motion
JPEG. Streams are opened with low delay. Recordings and playlists are not, because a short H.264 clip whose pictures refer to later ones
then gave no frames. RTSP uses TCP if the server accepts it, else UDP.
"""

import os
import re
from urllib.parse import quote, urlsplit

from edgecnn.device.cameras.frames import PpmSplitter
from edgecnn.device.cameras.process import ProcessSource
from edgecnn.device.cameras.source import CameraSettings
from edgecnn.device.secrets import masked
from edgecnn.errors import CameraError

PROGRAM = "ffmpeg"
MISSING = "Install it: `sudo apt install ffmpeg`."
RECORDED = (".mjpeg", ".mjpg")  # suffixes of video files; a web address that ends in one is still a stream

MEMORY, THREAD_MEMORY = 512 << 20, 32 << 20
"""Bytes of data that ffmpeg may allocate, plus those per processor. An HTTP camera with an endless picture made it grow to 1.28 GB."""
MOST_THREADS = 16

WEB = "http,https,httpproxy,tcp,tls"
PROTOCOLS = {
    "": "file",
    "rtsp": "rtp,rtsp,srtp,tcp,udp",
    "rtsps": "rtp,rtsps,srtp,tcp,tls,udp",
    "http": WEB,
    "https": WEB,
    "rtmp": "rtmp,tcp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt",
}
"""The protocols that ffmpeg may use for each scheme, "" for a file. The content must not be able to choose others."""

FORMATS = (
    "3gp,asf,av1,avi,dhav,dv,flv,gif,h264,hevc,ivf,jpeg_pipe,live_flv,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mpjpeg,"
    "nut,obu,ogg,png_pipe,rtp,rtsp,sdp,webm,yuv4mpegpipe"
)  # fmt: skip
"""Formats that name no other address. A supposed video must not be a playlist, which would make ffmpeg contact the hosts in it."""

PLAYLISTS = {".m3u8": "hls", ".mpd": "dash"}
"""Suffixes and formats of playlists. A user who names a playlist wants the addresses in it."""


class Ffmpeg(ProcessSource):
    """A video file (not live), stream or camera, decoded by ffmpeg and scaled down to just cover the requested size."""

    memory = MEMORY + THREAD_MEMORY * min(os.cpu_count() or 1, MOST_THREADS)

    def __init__(self, text: str, settings: CameraSettings) -> None:
        device, address = text.startswith("/dev/") and not os.path.isfile(text), "://" in text  # /dev/shm holds files
        if not (device or address):
            if not os.path.exists(text):
                expected = "Give the path of a video, an address such as rtsp://…, or /dev/videoN."
                raise CameraError(f"{text}: no such video file. {expected}")
            if not os.access(text, os.R_OK):
                raise CameraError(f"{text}: no permission to read it. `chmod +r` it, or run as its owner.")
        if address and re.search(r"\s", text):
            raise CameraError("the stream's address contains a space; write it as %20.")
        live = device or (address and not is_recording(text))
        kind = "camera" if device else "stream" if live else "video file"
        command = [PROGRAM, *arguments(text, settings, device)]
        super().__init__(text, f"{kind} through ffmpeg", command, PpmSplitter(), live=live, missing=MISSING)


def is_recording(address: str) -> bool:
    """Return whether an address names a video file on a web server, rather than an endless stream."""
    from edgecnn.device.cameras import VIDEOS

    suffix = os.path.splitext(address.split("?")[0])[1].lower()
    return address.lower().startswith("http") and suffix in VIDEOS and suffix not in RECORDED


def playlist_format(address: str) -> str | None:
    return PLAYLISTS.get(os.path.splitext(address.split("?")[0])[1].lower())


def with_secret(address: str, settings: CameraSettings) -> str:
    """Add the settings' user and password to an address that has no password; CameraError if the address is not valid."""
    try:
        parts = urlsplit(address)
        if settings.password is None or parts.password is not None or not parts.hostname:
            return address
    except ValueError as error:  # for bad brackets
        raise CameraError(f"{masked(address)}: not a valid address: {error}.") from None
    user = parts.username or quote(settings.user or "", safe="")
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{quote(settings.password, safe='')}@{host}").geturl()


def arguments(text: str, settings: CameraSettings, device: bool) -> list[str]:
    before = ["-nostdin", "-hide_banner", "-loglevel", "error"]
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if device:
        before += ["-f", "v4l2"]
        if settings.width and settings.height:
            before += ["-video_size", f"{settings.width}x{settings.height}"]
        if settings.fps:
            before += ["-framerate", f"{settings.fps:g}"]
    else:
        before += limits(text, scheme)
    if device or (scheme and not is_recording(text) and not playlist_format(text)):
        before += ["-fflags", "nobuffer", "-flags", "low_delay"]
    if scheme in ("rtsp", "rtsps"):
        before += ["-rtsp_flags", "prefer_tcp", "-analyzeduration", "1000000"]
    # ffmpeg might read part of a path as a protocol or, with a leading dash, as an option.
    source = with_secret(text, settings) if scheme else text if device else f"file:{text}"
    after = ["-map", "0:v:0", "-vf", filters(settings), "-r", "25", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    return [*before, "-i", source, *after]


def limits(text: str, scheme: str) -> list[str]:
    """Return the arguments that limit ffmpeg's protocols and formats; `scheme` is "" for a file."""
    protocols, formats = PROTOCOLS.get(scheme, f"{scheme},tcp,tls,udp"), FORMATS
    playlist = playlist_format(text) if scheme else None
    if playlist:
        protocols, formats = f"{protocols},crypto,data", f"{formats},{playlist}"
    return ["-protocol_whitelist", protocols, "-format_whitelist", formats]


def filters(settings: CameraSettings) -> str:
    """Return filters that lower the rate, shrink the frames and number them in 25ths of a second, as a clip's unit may be too coarse."""
    chain = []
    if settings.fps:
        chain.append(f"select='isnan(prev_selected_t)+gte(t-prev_selected_t,{0.999 / settings.fps:.6f})'")
    ratios = [f"i{side}/{size}" for side, size in (("w", settings.width), ("h", settings.height)) if size]
    if ratios:
        smallest = f"min({ratios[0]},{ratios[1]})" if len(ratios) == 2 else ratios[0]
        chain.append(f"scale=w='round(iw/max(1,{smallest}))':h='round(ih/max(1,{smallest}))':flags=bilinear")
    return ",".join([*chain, "settb=1/25", "setpts=N"])
