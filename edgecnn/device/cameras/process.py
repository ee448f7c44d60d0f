"""Programs that write frames to their standard output: rpicam-vid, any command, and ffmpeg for files, network streams and cameras.

`rpicam-vid` (called `libcamera-vid` before 2023) reads a Raspberry Pi's CSI camera, and `exec:COMMAND` is any program that writes Motion
JPEG.

Frames arrive as PPM: a header with the size, then RGB bytes. PPM is lossless, does not need the size in advance and costs less than Motion
JPEG. Streams are opened with low delay. Recordings and playlists are not, because a short H.264 clip whose pictures refer to later ones
then gave no frames. RTSP uses TCP if the server accepts it, else UDP.
"""

import contextlib
import os
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import numpy as np

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, MjpegSplitter, PpmSplitter, Stalled
from edgecnn.device.system import environment, masked
from edgecnn.errors import CameraError, ImageError
from edgecnn.images import probe
from edgecnn.runtime.child import how_ended

CHUNK_BYTES = 1 << 16  # per read: the default capacity of a pipe

TAIL_BYTES = 2048

LAST_WORDS = 16

TERMINATE_S, KILL_S = 0.5, 0.3  # how long a process may take to end after SIGTERM, and after SIGKILL


class Process:
    """A command in its own process group, without our passwords. Its output is read without blocking. OSError if it cannot start."""

    def __init__(self, command: Sequence[str], memory: int | None = None) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, process_group=0,
            env=environment(),
        )  # fmt: skip
        if memory is not None:
            with contextlib.suppress(ProcessLookupError):  # it has already ended
                resource.prlimit(self._child.pid, resource.RLIMIT_DATA, (memory, memory))
        self._pipes = [pipe for pipe in (self._child.stdout, self._child.stderr) if pipe is not None]
        self._out, self._err = (pipe.fileno() for pipe in self._pipes)
        self._poll = select.poll()
        for descriptor in (self._out, self._err):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._tail = b""
        self._silent = False  # standard error has ended
        self._closed = False

    def read(self, deadline: float) -> bytes | None:
        """Return its next output, at most CHUNK_BYTES; b"" if it closed its output, None if it wrote nothing before `deadline`."""
        while True:
            ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            descriptors = [descriptor for descriptor, _ in ready]
            if self._err in descriptors:
                self._listen()
            if self._out in descriptors:
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._out, CHUNK_BYTES)
            if time.monotonic() >= deadline:
                return None

    def _listen(self) -> bool:
        """Read its standard error once, so that a flood cannot hold us up; return False if it was empty."""
        if self._silent:
            return False
        try:
            said = os.read(self._err, CHUNK_BYTES)
        except BlockingIOError:
            return False
        self._tail = (self._tail + said)[-TAIL_BYTES:]
        if not said:
            self._silent = True
            self._poll.unregister(self._err)
        return bool(said)

    def said(self) -> str:
        """Return the last line that it wrote to standard error, without passwords and control characters."""
        text = self._tail.decode("utf-8", "replace").replace("\r", "\n")
        if len(self._tail) == TAIL_BYTES:  # drop the first word, which may be part of an address with a password
            text = re.sub(r"^\S+", "", text)
        lines = text.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return "".join(character if character.isprintable() else " " for character in masked(last))[-300:]

    def exit_code(self, timeout: float) -> int | None:
        """Return its exit code, negative for a signal, or None if it does not end within `timeout` seconds. `close` reaps it."""
        deadline = time.monotonic() + timeout
        while True:
            if self._child.returncode is not None:
                return self._child.returncode
            try:
                status = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            except ChildProcessError:  # reaped elsewhere, as when SIGCHLD is ignored
                return self._child.poll()
            if status is not None:
                return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.005)

    def ended(self) -> tuple[int | None, str]:
        """Return the exit code of a process that has closed its output, and how it ended, in words."""
        code = self.exit_code(TERMINATE_S)
        for _ in range(LAST_WORDS):
            if not self._listen():
                break
        how = "closed its output" if code is None else f"ended: {how_ended(code)}"
        said = self.said()
        return code, f"{how}: {said}" if said else how

    def close(self) -> None:
        """End all processes of its group with SIGTERM, then SIGKILL, within TERMINATE_S + KILL_S seconds. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGTERM)
            self.exit_code(TERMINATE_S)
            os.killpg(self._child.pid, signal.SIGKILL)  # before it is reaped and its number reused
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(KILL_S)


class ProcessSource:
    """Frames from a process. `name` is `text` without passwords. If it is `live`, its end is a loss. `missing` says what to install."""

    patient = False
    memory: int | None = None

    def __init__(
        self,
        text: str,
        kind: str,
        command: Sequence[str],
        splitter: MjpegSplitter | PpmSplitter,
        *,
        live: bool,
        missing: str,
    ) -> None:
        self.name, self.live = masked(text), live
        self.about = f"{self.name}, {kind}"
        self._splitter = splitter
        self._ready: deque[Frame] = deque()
        self._count = 0
        try:
            self._process: Process | None = Process(command, self.memory)
        except FileNotFoundError:
            raise CameraError(f"{self.name}: program {command[0]!r} not found. {missing}") from None
        except OSError as error:
            why = error.strerror or error
            raise CameraError(f"{self.name}: {command[0]!r} cannot be run: {why}. {missing}") from None

    @property
    def damaged(self) -> int:
        return self._splitter.damaged

    def read(self, timeout: float) -> Frame | None:
        """Return the next frame; None if a source that is not live ended with exit code 0. CameraLost quotes the process's last output."""
        deadline = time.monotonic() + timeout
        while not self._ready:
            if self._process is None:
                raise CameraLost("ended", f"{self.name} was closed.")
            chunk = self._process.read(deadline)
            if chunk is None:
                said = self._process.said()
                raise Stalled(self.name, "no frame", timeout, f"; its last message: {said.rstrip('.')}" if said else "")
            if not chunk:
                code, how = self._process.ended()
                if code == 0 and not self.live:
                    return None
                raise CameraLost("ended", f"{self.name} {how}{'' if self._count else ', before its first frame'}.")
            self._take(chunk)
            if not self._ready and time.monotonic() >= deadline:  # bytes arrive but no frame
                raise Stalled(self.name, "no complete frame", timeout)
        return self._ready.popleft()

    def _take(self, chunk: bytes) -> None:
        try:
            images = self._splitter.feed(chunk)
        except CameraLost as lost:
            raise CameraLost(lost.reason, f"{self.name}: {lost}.") from None
        now = time.monotonic()
        for image in images:
            if not self._count:
                self.about += f", {size_of(image)}"
            self._ready.append(Frame(self._count, now, image))
            self._count += 1

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        self._ready.clear()


def size_of(image: bytes | np.ndarray) -> str:
    try:
        height, width, _ = probe(image) if isinstance(image, bytes) else image.shape
    except ImageError:
        return "size unknown"
    return f"{width}x{height}"


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


PROGRAM = "ffmpeg"
FFMPEG_MISSING = "Install it: `sudo apt install ffmpeg`."
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
        command = [PROGRAM, *ffmpeg_arguments(text, settings, device)]
        super().__init__(text, f"{kind} through ffmpeg", command, PpmSplitter(), live=live, missing=FFMPEG_MISSING)


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


def ffmpeg_arguments(text: str, settings: CameraSettings, device: bool) -> list[str]:
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
