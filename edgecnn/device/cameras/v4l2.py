"""A USB camera, or any other V4L2 capture node: memory-mapped streaming with our own ioctls, without a thread."""

import contextlib
import errno
import functools
import math
import mmap
import select
import time
from typing import NoReturn

import numpy as np

from edgecnn.device.cameras import v4l2_abi as abi
from edgecnn.device.cameras.colour import to_rgb
from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled, UnreadableFormatError
from edgecnn.device.cameras.v4l2_device import READABLE, Device, Mode, PixelFormat, SystemCalls, why_not_opened
from edgecnn.errors import CameraError

BUFFERS = 4  # frames that the driver may fill while we process one

USUAL_FPS = (
    30.0  # the target if no rate is requested: many cameras deliver large YUYV frames at only 5 frames per second
)

SOI, EOI = b"\xff\xd8", b"\xff\xd9"


class RawFrame(Frame):
    """A frame converted to RGB on the first access to `image`, since most frames may never be classified."""

    _pixels: abi.PixFormat

    @classmethod
    def of(cls, sequence: int, monotonic: float, data: np.ndarray, pixels: abi.PixFormat) -> "RawFrame":
        frame = cls(sequence, monotonic, data)
        frame._pixels = pixels
        return frame

    @functools.cached_property
    def image(self) -> np.ndarray:
        """The frame as RGB, uint8 (height, width, 3)."""
        return to_rgb(np.asarray(self[2]), self._pixels)


class V4L2Camera:
    """A streaming V4L2 capture node. `read` returns the newest whole frame, RGB or MJPEG. CameraError if it has no readable format."""

    live = True
    patient = False

    def __init__(self, path: str, settings: CameraSettings, kernel: SystemCalls | None = None) -> None:
        self.name = path
        self.damaged = 0
        self._last = -1
        self._buffers: list[tuple[mmap.mmap, np.ndarray]] = []
        self._device = Device(path, kernel)
        try:
            if problem := self._device.unusable():
                raise CameraError(f"{path}: {problem}")
            self._configure(settings)
            self._start()
        except OSError as error:
            self.close()
            if isinstance(error, CameraError):
                raise
            raise CameraError(f"{path}: {why_not_opened(path, error)}") from None

    def _configure(self, settings: CameraSettings) -> None:
        device = self._device
        current = device.current()
        width, height = settings.width or current.width, settings.height or current.height
        available = device.formats()
        pixelformat, mode = choose(available, width, height, settings.fps)
        instead = f"Use ffmpeg:{self.name}, which reads more."
        if not pixelformat:
            offered = ", ".join(abi.fourcc(item.pixelformat) for item in available) or "none"
            readable = ", ".join(abi.fourcc(item) for item in READABLE)
            raise UnreadableFormatError(f"{self.name}: its formats are {offered}; edgecnn reads {readable}. {instead}")
        self.format = device.set_format(mode.width, mode.height, pixelformat)
        if self.format.pixelformat not in READABLE:
            got, requested = abi.fourcc(self.format.pixelformat), abi.fourcc(pixelformat)
            why = f"the driver set {got} instead of {requested}, and edgecnn cannot read that"
            raise UnreadableFormatError(f"{self.name}: {why}. {instead}")
        self._encoded = self.format.pixelformat in (abi.MJPG, abi.JPEG)
        if not self._encoded:  # a driver may leave the stride at 0 for rows without padding
            stride = max(self.format.bytesperline, row_bytes(self.format))
            self.format = self.format._replace(bytesperline=stride)
        self.fps = device.set_rate(settings.fps)
        self.about = describe(self.name, device.capability.card, self.format, self.fps, settings, device.signal())

    def _start(self) -> None:
        device = self._device
        count = device.request_buffers(BUFFERS)
        if count < 2:
            what = f"the driver provided {count} of at least 2 buffers"
            raise CameraError(f"{self.name}: {what}. Free memory, or request a smaller size.")
        for index in range(count):
            buffer = abi.unpack_buffer(device.request(abi.VIDIOC_QUERYBUF, abi.pack_buffer(abi.Buffer(index))))
            mapped = device.kernel.map(device.descriptor, buffer.length, buffer.offset)
            self._buffers.append((mapped, np.frombuffer(mapped, np.uint8)))
        for index in range(count):
            self._give(index)
        self._started = time.monotonic()
        device.request(abi.VIDIOC_STREAMON, abi.INT.pack(abi.BUF_TYPE_VIDEO_CAPTURE))

    def read(self, timeout: float) -> Frame:
        """Return a copy of the newest whole frame, with the driver's time if it uses the same clock. Raises CameraLost."""
        deadline = time.monotonic() + timeout
        device = self._device
        if device.descriptor < 0:
            raise CameraLost("ended", f"{self.name} was closed.")
        while True:
            try:
                events = device.kernel.wait(device.descriptor, deadline - time.monotonic())
                newest = self._newest()
                if newest is not None:
                    return self._frame(newest)
            except OSError as error:
                self._lose(error)
            if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                raise CameraLost("io_error", f"{self.name}: the driver {device.capability.driver} stopped streaming.")
            if time.monotonic() >= deadline:
                damaged = f", {self.damaged} damaged" if self.damaged else ""
                raise Stalled(self.name, "no complete frame", timeout, damaged)

    def _newest(self) -> abi.Buffer | None:
        """Take the buffers that the driver has filled, hand back all but the last whole frame's, and return that one."""
        newest = None
        for _ in range(len(self._buffers)):
            try:
                buffer = abi.unpack_buffer(self._device.request(abi.VIDIOC_DQBUF, abi.pack_buffer(abi.Buffer(0))))
            except BlockingIOError:
                break
            if self._whole(buffer):
                if newest is not None:
                    self._give(newest.number)
                newest = buffer
            else:
                self.damaged += 1
                self._give(buffer.number)
        return newest

    def _whole(self, buffer: abi.Buffer) -> bool:
        if buffer.flags & abi.BUF_FLAG_ERROR:
            return False
        if self._encoded:
            data = self._buffers[buffer.number][1][: buffer.bytesused].tobytes()
            return data.startswith(SOI) and data.rfind(EOI) > 0
        return buffer.bytesused >= self.format.bytesperline * (self.format.height - 1) + row_bytes(self.format)

    def _frame(self, buffer: abi.Buffer) -> Frame:
        data = self._buffers[buffer.number][1][: buffer.bytesused].copy()
        self._give(buffer.number)
        self._last = max(self._last + 1, buffer.sequence)  # some drivers do not count frames
        if self._encoded:
            return Frame(self._last, self._time(buffer), data.tobytes())
        return RawFrame.of(self._last, self._time(buffer), data, self.format)

    def _time(self, buffer: abi.Buffer) -> float:
        now = time.monotonic()
        stamp = buffer.seconds + buffer.microseconds / 1e6
        ours = buffer.flags & abi.BUF_FLAG_TIMESTAMP_MASK == abi.BUF_FLAG_TIMESTAMP_MONOTONIC
        return stamp if ours and self._started <= stamp <= now else now

    def _give(self, index: int) -> None:
        self._device.request(abi.VIDIOC_QBUF, abi.pack_buffer(abi.Buffer(index)))

    def _lose(self, error: OSError) -> NoReturn:
        what = error.strerror or str(error)
        if error.errno in (errno.ENODEV, errno.ENXIO, errno.EBADF):
            raise CameraLost("unplugged", f"{self.name}: the device went away ({what}).") from None
        if error.errno == errno.EPIPE:
            raise CameraLost("ended", f"{self.name}: the driver ended the stream ({what}).") from None
        raise CameraLost("io_error", f"{self.name}: reading failed ({what}).") from None

    def close(self) -> None:
        device = self._device
        if device.descriptor < 0:
            return
        with contextlib.suppress(OSError):  # a device that went away has nothing left to stop
            device.request(abi.VIDIOC_STREAMOFF, abi.INT.pack(abi.BUF_TYPE_VIDEO_CAPTURE))
        mapped = [item for item, _ in self._buffers]
        self._buffers = []  # drop the arrays first: a map cannot close while a view of it exists
        for item in mapped:
            with contextlib.suppress(BufferError):  # a stored traceback may hold an array, and frees the map later
                item.close()
        with contextlib.suppress(OSError):
            device.request_buffers(0)
        device.close()


def choose(available: list[PixelFormat], width: int, height: int, fps: float) -> tuple[int, Mode]:
    """Return the (pixel format, mode) to request, by nearest size, then rate, then best format; format 0 if none is readable."""
    target = fps or USUAL_FPS
    best: tuple[tuple[float, ...], int, Mode] | None = None
    for item in available:
        if item.pixelformat not in READABLE:
            continue
        for mode in item.within(width, height):
            covers = mode.width >= width and mode.height >= height
            area = mode.width * mode.height
            missing = max(0.0, target - mode.rates[0]) if mode.rates else 0.0
            key = (not covers, area if covers else -area, missing, READABLE.index(item.pixelformat))
            if best is None or key < best[0]:
                best = (key, item.pixelformat, mode)
    return (best[1], best[2]) if best else (0, Mode(width, height))


def row_bytes(pixels: abi.PixFormat) -> int:
    """Return the bytes in a row of a raw frame without padding, which the last row may lack."""
    return 2 * (pixels.width + pixels.width % 2) if pixels.pixelformat == abi.YUYV else 3 * pixels.width


def describe(path: str, card: str, got: abi.PixFormat, fps: float, requested: CameraSettings, signal: str) -> str:
    text = f"{path} ({card}) through V4L2: {abi.fourcc(got.pixelformat)} {got.width}x{got.height}"
    if fps:
        text += f" at {fps:g} frames/s"
    differs = []
    if (requested.width or got.width, requested.height or got.height) != (got.width, got.height):
        differs.append(f"{requested.width or got.width}x{requested.height or got.height}")
    if requested.fps and not math.isclose(requested.fps, fps, rel_tol=0.01):
        differs.append(f"{requested.fps:g} frames/s")
    if differs:
        text += f"; requested {' at '.join(differs)}"
    return f"{text}; the driver reports: {signal}" if signal else text
