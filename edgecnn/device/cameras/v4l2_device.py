"""A V4L2 node: its identity, capabilities and settings. All access to the kernel goes through `SystemCalls`."""

import errno
import fcntl
import mmap
import os
import select
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from edgecnn.device.cameras import v4l2_abi as abi
from edgecnn.device.cameras.holders import advice_on_permission, holders_of
from edgecnn.device.cameras.source import UnreadableFormatError
from edgecnn.errors import CameraError

READABLE = (abi.RGB3, abi.BGR3, abi.YUYV, abi.MJPG, abi.JPEG)
"""Readable pixel formats, the best first: no conversion, a channel swap, an arithmetic conversion, lossy compression."""

PIPELINE_DRIVERS = ("unicam", "rp1-cfe", "bcm2835-isp", "bcm2835-codec", "pispbe", "rpivid", "rpi-hevc-dec")
"""Drivers of Raspberry Pi nodes that are codecs or parts of a camera's pipeline. None delivers pictures by itself."""

UNSUPPORTED = (errno.EINVAL, errno.ENOTTY, errno.ENODATA)  # at the end of a list, or for a missing request

MAX_LISTED = 256  # longest list that we read: a driver with an endless list must not hang us


class SystemCalls:
    """The system calls that the reader makes. Tests replace them with a driver in memory."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> None:
        """Make a request, which changes `argument` in place; retry if a signal interrupts it."""
        while True:
            try:
                fcntl.ioctl(descriptor, request, argument, True)
                return
            except InterruptedError:
                continue

    def map(self, descriptor: int, length: int, offset: int) -> mmap.mmap:
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def wait(self, descriptor: int, timeout: float) -> int:
        """Wait at most `timeout` seconds for a frame and return poll's events, or 0."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        events = poll.poll(max(0, timeout) * 1000)
        return events[0][1] if events else 0

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


class Mode(NamedTuple):
    """A size of a pixel format and its rates in frames per second, the fastest first; no rates if the driver reports none."""

    width: int
    height: int
    rates: tuple[float, ...] = ()


class PixelFormat(NamedTuple):
    """A node's pixel format and its modes, if listed. If `ranged`, every size between the first and the last mode is possible."""

    pixelformat: int
    description: str
    modes: tuple[Mode, ...]
    ranged: bool = False

    def within(self, width: int, height: int) -> tuple[Mode, ...]:
        """Return the modes to choose from for a requested (width, height). If the driver lists none, return that size."""
        if not self.modes:
            return (Mode(width, height),)
        if not self.ranged:
            return self.modes
        low, high = self.modes[0], self.modes[-1]
        return (Mode(min(max(width, low.width), high.width), min(max(height, low.height), high.height), low.rates),)


class Device:
    """An open V4L2 capture node, such as "/dev/video0"; CameraError if it cannot be opened or is not a V4L2 device."""

    def __init__(self, path: str, kernel: SystemCalls | None = None) -> None:
        if struct.calcsize("P") != 8 or sys.byteorder != "little":
            raise UnreadableFormatError(f"V4L2 works on 64-bit little-endian systems only. Use ffmpeg:{path}.", path)
        self.path = path
        self.kernel = kernel or SystemCalls()
        try:
            self.descriptor = self.kernel.open(path)
        except OSError as error:
            raise CameraError(why_not_opened(path, error), path) from None
        try:
            self.capability = abi.unpack_capability(self.request(abi.VIDIOC_QUERYCAP, abi.CAPABILITY.size))
        except OSError as error:
            self.close()
            what = "not a V4L2 device. `edgecnn cameras` lists those that are."
            raise CameraError(what if error.errno in UNSUPPORTED else why_not_opened(path, error), path) from None

    def unusable(self) -> str:
        """Return why the node cannot be used as a camera, or ""."""
        caps = self.capability.caps
        if self.capability.driver in PIPELINE_DRIVERS or caps & abi.CAP_IO_MC:
            part = f"part of a camera's pipeline (driver {self.capability.driver}), not a camera by itself"
            return f"{part}. Install rpicam-apps and use --camera."
        if not caps & abi.CAP_VIDEO_CAPTURE:
            kind = "multi-planar capture only" if caps & abi.CAP_VIDEO_CAPTURE_MPLANE else "does not capture"
            return f"{kind} (driver {self.capability.driver})."
        if not caps & abi.CAP_STREAMING:
            return f"driver {self.capability.driver} does not stream into mapped memory, which edgecnn needs."
        return ""

    def close(self) -> None:
        if self.descriptor >= 0:
            self.kernel.close(self.descriptor)
            self.descriptor = -1

    def request(self, number: int, argument: int | bytes | bytearray) -> bytearray:
        """Make a request and return its argument, filled in. An int stands for that many zero bytes."""
        data = bytearray(argument)
        self.kernel.ioctl(self.descriptor, number, data)
        return data

    def listed(self, number: int, layout: struct.Struct, *fields: object) -> Iterator[bytearray]:
        """Yield the answers of an enumeration, index by index; `fields` follow the index in the request."""
        for index in range(MAX_LISTED):
            try:
                yield self.request(number, layout.pack(index, *fields))
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    return
                raise

    def formats(self) -> list[PixelFormat]:
        """Return every pixel format with its sizes and rates; OSError if the device went away."""
        result = []
        for data in self.listed(abi.VIDIOC_ENUM_FMT, abi.FMTDESC, abi.BUF_TYPE_VIDEO_CAPTURE, 0, b"", 0, 0):
            _, _, _, description, pixelformat, _ = abi.FMTDESC.unpack(data)
            result.append(PixelFormat(pixelformat, abi.text(description), *self.modes(pixelformat)))
        return result

    def modes(self, pixelformat: int) -> tuple[tuple[Mode, ...], bool]:
        """Return a pixel format's sizes and False or, for a range, the smallest and largest sizes and True."""
        result: list[Mode] = []
        for data in self.listed(abi.VIDIOC_ENUM_FRAMESIZES, abi.FRMSIZE, pixelformat, 0, *[0] * 6):
            _, _, kind, *values = abi.FRMSIZE.unpack(data)
            if kind != abi.DISCRETE:
                low_width, high_width, _, low_height, high_height, _ = values
                corners = ((low_width, low_height), (high_width, high_height))
                return tuple(Mode(*size, self.rates(pixelformat, *size)) for size in corners), True
            result.append(Mode(values[0], values[1], self.rates(pixelformat, values[0], values[1])))
        return tuple(result), False

    def rates(self, pixelformat: int, width: int, height: int) -> tuple[float, ...]:
        """Return the rates of a size in frames per second, the fastest first; for a range, the fastest and the slowest."""
        rates: list[float] = []
        for data in self.listed(abi.VIDIOC_ENUM_FRAMEINTERVALS, abi.FRMIVAL, pixelformat, width, height, 0, *[0] * 6):
            _, _, _, _, kind, *parts = abi.FRMIVAL.unpack(data)
            intervals = [parts[0:2]] if kind == abi.DISCRETE else [parts[0:2], parts[2:4]]
            rates += [denominator / numerator for numerator, denominator in intervals if numerator]
            if kind != abi.DISCRETE:
                break
        return tuple(sorted(rates, reverse=True))

    def current(self) -> abi.PixFormat:
        return abi.unpack_format(self.request(abi.VIDIOC_G_FMT, abi.pack_format(abi.PixFormat(0, 0, 0))))

    def set_format(self, width: int, height: int, pixelformat: int) -> abi.PixFormat:
        requested = abi.pack_format(abi.PixFormat(width, height, pixelformat))
        return abi.unpack_format(self.request(abi.VIDIOC_S_FMT, requested))

    def set_rate(self, fps: float) -> float:
        """Request a rate, or 0 to leave it unchanged, and return the rate that is set; 0 if the driver does not report it."""
        try:
            data = self.request(abi.VIDIOC_G_PARM, abi.STREAMPARM.pack(abi.BUF_TYPE_VIDEO_CAPTURE, *[0] * 6))
            if fps and abi.STREAMPARM.unpack(data)[1] & abi.CAP_TIMEPERFRAME:
                requested = (abi.BUF_TYPE_VIDEO_CAPTURE, 0, 0, 1000, round(fps * 1000), 0, 0)
                data = self.request(abi.VIDIOC_S_PARM, abi.STREAMPARM.pack(*requested))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return 0.0
            raise
        _, _, _, numerator, denominator, _, _ = abi.STREAMPARM.unpack(data)
        return denominator / numerator if numerator else 0.0

    def request_buffers(self, count: int) -> int:
        request = abi.REQUESTBUFFERS.pack(count, abi.BUF_TYPE_VIDEO_CAPTURE, abi.MEMORY_MMAP, 0, 0)
        return int(abi.REQUESTBUFFERS.unpack(self.request(abi.VIDIOC_REQBUFS, request))[0])

    def signal(self) -> str:
        """Return the input's status from the driver: "no signal", "no power" or ""."""
        try:
            (index,) = abi.INT.unpack(self.request(abi.VIDIOC_G_INPUT, abi.INT.size))
            data = self.request(abi.VIDIOC_ENUMINPUT, abi.INPUT.pack(index, b"", 0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return ""
            raise
        status = abi.INPUT.unpack(data)[6]
        return "no power" if status & abi.IN_ST_NO_POWER else "no signal" if status & abi.IN_ST_NO_SIGNAL else ""

    def busy(self) -> bool:
        """Return whether another process streams from the node, by requesting zero buffers. That has no effect if none are held."""
        try:
            self.request_buffers(0)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno not in UNSUPPORTED:
                raise
        return False


def why_not_opened(path: str, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return advice_on_permission(path)
    if error.errno == errno.EBUSY:
        return why_in_use(path)
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "no such device: it is not plugged in, or its driver is not loaded. `edgecnn cameras` lists the cameras."
    return f"{error.strerror or error}. Unplug the camera and plug it in again, then check `dmesg`."


def why_in_use(path: str) -> str:
    """Return the error text for a node in use: by which process, if /proc shows it, and what to do next."""
    return f"in use{holders_of(path)}. End that process, or use another camera (`edgecnn cameras` lists them)."
