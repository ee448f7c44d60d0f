"""A USB camera, or any other V4L2 capture node: memory-mapped streaming with our own ioctls, without a thread, and its pixels as RGB.

YUYV is Y'CbCr 4:2:2: two pixels in four bytes (Y0 Cb Y1 Cr); chroma is repeated, not interpolated. Limited range is Y' 16..235 and chroma
16..240; full range is 0..255. V4L2's default for YUYV is BT.601 with limited range; a driver may report another.
"""

import contextlib
import errno
import functools
import math
import mmap
import select
import time
from typing import NoReturn

import numpy as np

from edgecnn.device.cameras import v4l2_device
from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled, UnreadableFormatError
from edgecnn.errors import CameraError

BUFFERS = 4  # frames that the driver may fill while we process one

USUAL_FPS = 30.0
"""The target if no rate is requested: many cameras deliver large YUYV frames at only 5 frames per second."""

SOI, EOI = b"\xff\xd8", b"\xff\xd9"


class RawFrame(Frame):
    """A frame converted to RGB on the first access to `image`, since most frames may never be classified."""

    _pixels: v4l2_device.PixFormat

    @classmethod
    def of(cls, sequence: int, monotonic: float, data: np.ndarray, pixels: v4l2_device.PixFormat) -> "RawFrame":
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

    def __init__(self, path: str, settings: CameraSettings, kernel: v4l2_device.SystemCalls | None = None) -> None:
        self.name = path
        self.damaged = 0
        self._last = -1
        self._buffers: list[tuple[mmap.mmap, np.ndarray]] = []
        self._device = v4l2_device.Device(path, kernel)
        try:
            if problem := self._device.unusable():
                raise CameraError(f"{path}: {problem}")
            self._configure(settings)
            self._start()
        except OSError as error:
            self.close()
            if isinstance(error, CameraError):
                raise
            raise CameraError(f"{path}: {v4l2_device.why_not_opened(path, error)}") from None

    def _configure(self, settings: CameraSettings) -> None:
        device = self._device
        current = device.current()
        width, height = settings.width or current.width, settings.height or current.height
        available = device.formats()
        pixelformat, mode = choose_format(available, width, height, settings.fps)
        instead = f"Use ffmpeg:{self.name}, which reads more."
        if not pixelformat:
            offered = ", ".join(v4l2_device.fourcc(item.pixelformat) for item in available) or "none"
            readable = ", ".join(v4l2_device.fourcc(item) for item in v4l2_device.READABLE)
            raise UnreadableFormatError(f"{self.name}: its formats are {offered}; edgecnn reads {readable}. {instead}")
        self.format = device.set_format(mode.width, mode.height, pixelformat)
        if self.format.pixelformat not in v4l2_device.READABLE:
            got, requested = v4l2_device.fourcc(self.format.pixelformat), v4l2_device.fourcc(pixelformat)
            why = f"the driver set {got} instead of {requested}, and edgecnn cannot read that"
            raise UnreadableFormatError(f"{self.name}: {why}. {instead}")
        self._encoded = self.format.pixelformat in (v4l2_device.MJPG, v4l2_device.JPEG)
        if not self._encoded:  # a driver may leave the stride at 0 for rows without padding
            stride = max(self.format.bytesperline, row_bytes(self.format))
            self.format = self.format._replace(bytesperline=stride)
        self.fps = device.set_rate(settings.fps)
        self.about = describe(self.name, device.card, self.format, self.fps, settings, device.signal())

    def _start(self) -> None:
        device = self._device
        count = device.request_buffers(BUFFERS)
        if count < 2:
            what = f"the driver provided {count} of at least 2 buffers"
            raise CameraError(f"{self.name}: {what}. Free memory, or request a smaller size.")
        for index in range(count):
            buffer = device.request_buffer(v4l2_device.VIDIOC_QUERYBUF, index)
            mapped = device.kernel.map(device.descriptor, buffer.length, buffer.offset)
            self._buffers.append((mapped, np.frombuffer(mapped, np.uint8)))
            self._give(index)
        self._started = time.monotonic()
        device.request(v4l2_device.VIDIOC_STREAMON, v4l2_device.INT.pack(v4l2_device.BUF_TYPE_VIDEO_CAPTURE))

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
                raise CameraLost("io_error", f"{self.name}: the driver {device.driver} stopped streaming.")
            if time.monotonic() >= deadline:
                damaged = f", {self.damaged} damaged" if self.damaged else ""
                raise Stalled(self.name, "no complete frame", timeout, damaged)

    def _newest(self) -> v4l2_device.Buffer | None:
        """Take the buffers that the driver has filled, hand back all but the last whole frame's, and return that one."""
        newest = None
        for _ in range(len(self._buffers)):
            try:
                buffer = self._device.request_buffer(v4l2_device.VIDIOC_DQBUF, 0)
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

    def _whole(self, buffer: v4l2_device.Buffer) -> bool:
        if buffer.flags & v4l2_device.BUF_FLAG_ERROR:
            return False
        if self._encoded:
            data = self._buffers[buffer.number][1][: buffer.bytesused].tobytes()
            return data.startswith(SOI) and data.rfind(EOI) > 0
        return buffer.bytesused >= self.format.bytesperline * (self.format.height - 1) + row_bytes(self.format)

    def _frame(self, buffer: v4l2_device.Buffer) -> Frame:
        data = self._buffers[buffer.number][1][: buffer.bytesused].copy()
        self._give(buffer.number)
        self._last = max(self._last + 1, buffer.sequence)  # some drivers do not count frames
        if self._encoded:
            return Frame(self._last, self._time(buffer), data.tobytes())
        return RawFrame.of(self._last, self._time(buffer), data, self.format)

    def _time(self, buffer: v4l2_device.Buffer) -> float:
        now = time.monotonic()
        stamp = buffer.seconds + buffer.microseconds / 1e6
        ours = buffer.flags & v4l2_device.BUF_FLAG_TIMESTAMP_MASK == v4l2_device.BUF_FLAG_TIMESTAMP_MONOTONIC
        return stamp if ours and self._started <= stamp <= now else now

    def _give(self, index: int) -> None:
        self._device.request_buffer(v4l2_device.VIDIOC_QBUF, index)

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
            device.request(v4l2_device.VIDIOC_STREAMOFF, v4l2_device.INT.pack(v4l2_device.BUF_TYPE_VIDEO_CAPTURE))
        mapped = [item for item, _ in self._buffers]
        self._buffers = []  # drop the arrays first: a map cannot close while a view of it exists
        for item in mapped:
            with contextlib.suppress(BufferError):  # a stored traceback may hold an array, and frees the map later
                item.close()
        with contextlib.suppress(OSError):
            device.request_buffers(0)
        device.close()


def choose_format(
    available: list[v4l2_device.PixelFormat], width: int, height: int, fps: float
) -> tuple[int, v4l2_device.Mode]:
    """Return the (pixel format, mode) to request, by nearest size, then rate, then best format; format 0 if none is readable."""
    target = fps or USUAL_FPS
    best: tuple[tuple[float, ...], int, v4l2_device.Mode] | None = None
    for item in available:
        if item.pixelformat not in v4l2_device.READABLE:
            continue
        for mode in item.within(width, height):
            covers = mode.width >= width and mode.height >= height
            area = mode.width * mode.height
            missing = max(0.0, target - mode.rates[0]) if mode.rates else 0.0
            key = (not covers, area if covers else -area, missing, v4l2_device.READABLE.index(item.pixelformat))
            if best is None or key < best[0]:
                best = (key, item.pixelformat, mode)
    return (best[1], best[2]) if best else (0, v4l2_device.Mode(width, height))


def row_bytes(pixels: v4l2_device.PixFormat) -> int:
    """Return the bytes in a row of a raw frame without padding, which the last row may lack."""
    return 2 * (pixels.width + pixels.width % 2) if pixels.pixelformat == v4l2_device.YUYV else 3 * pixels.width


def describe(
    path: str, card: str, got: v4l2_device.PixFormat, fps: float, requested: CameraSettings, signal: str
) -> str:
    text = f"{path} ({card}) through V4L2: {v4l2_device.fourcc(got.pixelformat)} {got.width}x{got.height}"
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


LUMA_WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
"""Kr and Kb of each Y'CbCr encoding of cameras. Source: ITU-R BT.601 and BT.709."""

ENCODINGS = {v4l2_device.YCBCR_ENC_601: "601", v4l2_device.YCBCR_ENC_709: "709"}
DEFAULT_ENCODINGS = {v4l2_device.COLORSPACE_REC709: "709"}
"""The meaning of encoding 0 in each colour space; BT.601 in the others. Source: V4L2_MAP_YCBCR_ENC_DEFAULT in linux/videodev2.h."""

STRETCHED = np.rint(np.clip((np.arange(256.0) - 16) * 255 / 219, 0, 255)).astype(np.uint8)
"""The full-range level for each limited-range level (16..235)."""

FRACTION_BITS = 5  # fixed point of the conversion: the largest sum stays within int16


def encoding_of(pixels: v4l2_device.PixFormat) -> tuple[str, bool]:
    """Return (key of LUMA_WEIGHTS, whether full range) for the Y'CbCr format that a driver reports."""
    encoding = ENCODINGS.get(pixels.ycbcr_enc) or DEFAULT_ENCODINGS.get(pixels.colorspace, "601")
    full = pixels.quantization == v4l2_device.QUANTIZATION_FULL_RANGE or (
        pixels.quantization != v4l2_device.QUANTIZATION_LIM_RANGE and pixels.colorspace == v4l2_device.COLORSPACE_JPEG
    )
    return encoding, full


@functools.cache
def yuv_tables(encoding: str, full: bool) -> tuple[np.ndarray, ...]:
    """Return the conversion as int16 tables of 256 entries: Y', Cr to red, Cb to green, Cr to green, Cb to blue."""
    red, blue = LUMA_WEIGHTS[encoding]
    green = 1 - red - blue
    levels = np.arange(256.0)
    luma = levels if full else (levels - 16) * 255 / 219
    chroma = (levels - 128) * (1 if full else 255 / 224)
    parts = (
        luma + 0.5,  # makes the final shift round to nearest
        chroma * 2 * (1 - red),
        -chroma * 2 * (1 - blue) * blue / green,
        -chroma * 2 * (1 - red) * red / green,
        chroma * 2 * (1 - blue),
    )
    return tuple(np.rint(part * (1 << FRACTION_BITS)).astype(np.int16) for part in parts)


def rows(data: np.ndarray, height: int, row_bytes: int, stride: int) -> np.ndarray:
    """Return a view, shape (height, row_bytes), of a buffer whose rows begin `stride` bytes apart."""
    return np.lib.stride_tricks.as_strided(data, (height, row_bytes), (stride, 1))


def yuyv_to_rgb(packed: np.ndarray, encoding: str = "601", full: bool = False) -> np.ndarray:
    """Convert YUYV, uint8 (height, 2 * width), width even, to uint8 RGB (height, width, 3), within one level of the exact value."""
    luma_table, cr_red, cb_green, cr_green, cb_blue = yuv_tables(encoding, full)
    height, pairs = packed.shape[0], packed.shape[1] // 4
    even, odd = luma_table.take(packed[:, 0::4]), luma_table.take(packed[:, 2::4])
    cb, cr = packed[:, 1::4], packed[:, 3::4]
    result = np.empty((height, pairs, 6), np.uint8)
    levels = np.empty((height, pairs), np.int16)
    for channel, chroma in enumerate((cr_red.take(cr), cb_green.take(cb) + cr_green.take(cr), cb_blue.take(cb))):
        for position, luma in ((channel, even), (channel + 3, odd)):
            np.add(luma, chroma, out=levels)
            np.right_shift(levels, FRACTION_BITS, out=levels)
            result[:, :, position] = np.clip(levels, 0, 255, out=levels)
    return result.reshape(height, 2 * pairs, 3)


def to_rgb(data: np.ndarray, pixels: v4l2_device.PixFormat) -> np.ndarray:
    """Convert a driver's one-dimensional uint8 buffer (YUYV, RGB3 or BGR3) to uint8 RGB (height, width, 3), which may be a view."""
    if pixels.pixelformat == v4l2_device.YUYV:
        width = pixels.width + pixels.width % 2
        packed = rows(data, pixels.height, 2 * width, pixels.bytesperline)
        return yuyv_to_rgb(packed, *encoding_of(pixels))[:, : pixels.width]
    view = rows(data, pixels.height, 3 * pixels.width, pixels.bytesperline).reshape(pixels.height, pixels.width, 3)
    if pixels.quantization == v4l2_device.QUANTIZATION_LIM_RANGE:
        view = STRETCHED[view]
    if pixels.pixelformat == v4l2_device.BGR3:  # three planes, which is faster than one reversal
        return np.stack([view[:, :, channel] for channel in (2, 1, 0)], axis=2)
    return np.ascontiguousarray(view)
