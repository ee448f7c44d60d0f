"""A V4L2 node: the part of the kernel's interface that capturing needs, and a node's identity, capabilities, settings and users.

All access to the kernel goes through `SystemCalls`.

Layouts are those of 64-bit Linux (the same on x86-64 and aarch64). 32-bit layouts differ in `v4l2_buffer` and are not supported.

Source: linux/videodev2.h, kernel 6.12. If a compiler is installed, the tests compile that header and compare sizes, offsets and numbers.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import select
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgecnn.device.cameras.source import UnreadableFormatError
from edgecnn.errors import CameraError

VIDIOC_QUERYCAP = 0x80685600
VIDIOC_ENUM_FMT = 0xC0405602
VIDIOC_G_FMT = 0xC0D05604
VIDIOC_S_FMT = 0xC0D05605
VIDIOC_REQBUFS = 0xC0145608
VIDIOC_QUERYBUF = 0xC0585609
VIDIOC_QBUF = 0xC058560F
VIDIOC_DQBUF = 0xC0585611
VIDIOC_STREAMON = 0x40045612
VIDIOC_STREAMOFF = 0x40045613
VIDIOC_G_PARM = 0xC0CC5615
VIDIOC_S_PARM = 0xC0CC5616
VIDIOC_ENUMINPUT = 0xC050561A
VIDIOC_G_INPUT = 0x80045626
VIDIOC_ENUM_FRAMESIZES = 0xC02C564A
VIDIOC_ENUM_FRAMEINTERVALS = 0xC034564B

CAP_VIDEO_CAPTURE = 0x00000001
CAP_VIDEO_CAPTURE_MPLANE = 0x00001000
CAP_STREAMING = 0x04000000
CAP_IO_MC = 0x20000000
CAP_DEVICE_CAPS = 0x80000000
CAP_TIMEPERFRAME = 0x1000
IN_ST_NO_POWER = 0x1
IN_ST_NO_SIGNAL = 0x2

BUF_TYPE_VIDEO_CAPTURE = 1
MEMORY_MMAP = 1
BUF_FLAG_ERROR = 0x40
BUF_FLAG_TIMESTAMP_MASK = 0xE000
BUF_FLAG_TIMESTAMP_MONOTONIC = 0x2000
PRIV_MAGIC = 0xFEEDCAFE
DISCRETE = 1  # the `type` of an enumerated frame size or interval with a single value; others are ranges

YUYV, RGB3, BGR3, MJPG, JPEG = (
    int.from_bytes(name, "little") for name in (b"YUYV", b"RGB3", b"BGR3", b"MJPG", b"JPEG")
)

COLORSPACE_REC709, COLORSPACE_JPEG = 3, 7
YCBCR_ENC_601, YCBCR_ENC_709 = 1, 2
QUANTIZATION_FULL_RANGE, QUANTIZATION_LIM_RANGE = 1, 2

CAPABILITY = struct.Struct("=16s32s32sIII12x")
FMTDESC = struct.Struct("=III32sII12x")
FORMAT = struct.Struct("=I4x12I152x")
FRMSIZE = struct.Struct("=III6I8x")
FRMIVAL = struct.Struct("=IIIII6I8x")
STREAMPARM = struct.Struct("=I6I176x")
REQUESTBUFFERS = struct.Struct("=IIIIB3x")
BUFFER = struct.Struct("=IIIII4xqq16xIII4xIIi4x")
INPUT = struct.Struct("=I32sIIIQI20x")
INT = struct.Struct("=I")


class PixFormat(NamedTuple):
    """`v4l2_pix_format`. `pixelformat` is a fourcc as a little-endian number; `bytesperline` is a row's stride in bytes."""

    width: int
    height: int
    pixelformat: int
    field: int = 0
    bytesperline: int = 0
    sizeimage: int = 0
    colorspace: int = 0
    priv: int = PRIV_MAGIC
    flags: int = 0
    ycbcr_enc: int = 0
    quantization: int = 0
    xfer_func: int = 0


class Buffer(NamedTuple):
    """`v4l2_buffer` of a memory-mapped capture. `offset` is for `mmap`; `length` is in bytes."""

    number: int
    bytesused: int = 0
    flags: int = 0
    seconds: int = 0
    microseconds: int = 0
    sequence: int = 0
    offset: int = 0
    length: int = 0


def c_string(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def fourcc(pixelformat: int) -> str:
    return (pixelformat & 0x7FFFFFFF).to_bytes(4, "little").decode("ascii", "replace").rstrip()


def pack_format(pixels: PixFormat) -> bytearray:
    return bytearray(FORMAT.pack(BUF_TYPE_VIDEO_CAPTURE, *pixels))


def unpack_format(data: bytes | bytearray) -> PixFormat:
    return PixFormat(*FORMAT.unpack(data)[1:])


def pack_buffer(buffer: Buffer) -> bytearray:
    return bytearray(
        BUFFER.pack(
            buffer.number, BUF_TYPE_VIDEO_CAPTURE, buffer.bytesused, buffer.flags, 0,
            buffer.seconds, buffer.microseconds, buffer.sequence, MEMORY_MMAP, buffer.offset, buffer.length, 0, 0,
        )
    )  # fmt: skip


def unpack_buffer(data: bytes | bytearray) -> Buffer:
    index, _, bytesused, flags, _, seconds, microseconds, sequence, _, offset, length, _, _ = BUFFER.unpack(data)
    return Buffer(index, bytesused, flags, seconds, microseconds, sequence, offset, length)


READABLE = (RGB3, BGR3, YUYV, MJPG, JPEG)
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
            answer = self.request(VIDIOC_QUERYCAP, CAPABILITY.size)
        except OSError as error:
            self.close()
            what = "not a V4L2 device. `edgecnn cameras` lists those that are."
            raise CameraError(what if error.errno in UNSUPPORTED else why_not_opened(path, error), path) from None
        driver, card, _, _, capabilities, of_node = CAPABILITY.unpack(answer)
        self.driver, self.card = c_string(driver), c_string(card)
        self.caps = of_node if capabilities & CAP_DEVICE_CAPS else capabilities

    def unusable(self) -> str:
        """Return why the node cannot be used as a camera, or ""."""
        caps = self.caps
        if self.driver in PIPELINE_DRIVERS or caps & CAP_IO_MC:
            part = f"part of a camera's pipeline (driver {self.driver}), not a camera by itself"
            return f"{part}. Install rpicam-apps and use --camera."
        if not caps & CAP_VIDEO_CAPTURE:
            kind = "multi-planar capture only" if caps & CAP_VIDEO_CAPTURE_MPLANE else "does not capture"
            return f"{kind} (driver {self.driver})."
        if not caps & CAP_STREAMING:
            return f"driver {self.driver} does not stream into mapped memory, which edgecnn needs."
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
        for data in self.listed(VIDIOC_ENUM_FMT, FMTDESC, BUF_TYPE_VIDEO_CAPTURE, 0, b"", 0, 0):
            _, _, _, description, pixelformat, _ = FMTDESC.unpack(data)
            result.append(PixelFormat(pixelformat, c_string(description), *self.modes(pixelformat)))
        return result

    def modes(self, pixelformat: int) -> tuple[tuple[Mode, ...], bool]:
        """Return a pixel format's sizes and False or, for a range, the smallest and largest sizes and True."""
        result: list[Mode] = []
        for data in self.listed(VIDIOC_ENUM_FRAMESIZES, FRMSIZE, pixelformat, 0, *[0] * 6):
            _, _, kind, *values = FRMSIZE.unpack(data)
            if kind != DISCRETE:
                low_width, high_width, _, low_height, high_height, _ = values
                corners = ((low_width, low_height), (high_width, high_height))
                return tuple(Mode(*size, self.rates(pixelformat, *size)) for size in corners), True
            result.append(Mode(values[0], values[1], self.rates(pixelformat, values[0], values[1])))
        return tuple(result), False

    def rates(self, pixelformat: int, width: int, height: int) -> tuple[float, ...]:
        """Return the rates of a size in frames per second, the fastest first; for a range, the fastest and the slowest."""
        rates: list[float] = []
        for data in self.listed(VIDIOC_ENUM_FRAMEINTERVALS, FRMIVAL, pixelformat, width, height, 0, *[0] * 6):
            _, _, _, _, kind, *parts = FRMIVAL.unpack(data)
            intervals = [parts[0:2]] if kind == DISCRETE else [parts[0:2], parts[2:4]]
            rates += [denominator / numerator for numerator, denominator in intervals if numerator]
            if kind != DISCRETE:
                break
        return tuple(sorted(rates, reverse=True))

    def current(self) -> PixFormat:
        return unpack_format(self.request(VIDIOC_G_FMT, pack_format(PixFormat(0, 0, 0))))

    def set_format(self, width: int, height: int, pixelformat: int) -> PixFormat:
        requested = pack_format(PixFormat(width, height, pixelformat))
        return unpack_format(self.request(VIDIOC_S_FMT, requested))

    def set_rate(self, fps: float) -> float:
        """Request a rate, or 0 to leave it unchanged, and return the rate that is set; 0 if the driver does not report it."""
        try:
            data = self.request(VIDIOC_G_PARM, STREAMPARM.pack(BUF_TYPE_VIDEO_CAPTURE, *[0] * 6))
            if fps and STREAMPARM.unpack(data)[1] & CAP_TIMEPERFRAME:
                requested = (BUF_TYPE_VIDEO_CAPTURE, 0, 0, 1000, round(fps * 1000), 0, 0)
                data = self.request(VIDIOC_S_PARM, STREAMPARM.pack(*requested))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return 0.0
            raise
        _, _, _, numerator, denominator, _, _ = STREAMPARM.unpack(data)
        return denominator / numerator if numerator else 0.0

    def request_buffer(self, number: int, index: int) -> Buffer:
        return unpack_buffer(self.request(number, pack_buffer(Buffer(index))))

    def request_buffers(self, count: int) -> int:
        request = REQUESTBUFFERS.pack(count, BUF_TYPE_VIDEO_CAPTURE, MEMORY_MMAP, 0, 0)
        return int(REQUESTBUFFERS.unpack(self.request(VIDIOC_REQBUFS, request))[0])

    def signal(self) -> str:
        """Return the input's status from the driver: "no signal", "no power" or ""."""
        try:
            (index,) = INT.unpack(self.request(VIDIOC_G_INPUT, INT.size))
            data = self.request(VIDIOC_ENUMINPUT, INPUT.pack(index, b"", 0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return ""
            raise
        status = INPUT.unpack(data)[6]
        return "no power" if status & IN_ST_NO_POWER else "no signal" if status & IN_ST_NO_SIGNAL else ""

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
    names = ", ".join(f"{name} (process {process})" for process, name in holding(path))
    by = f" by {names}" if names else ""
    return f"in use{by}. End that process, or use another camera (`edgecnn cameras` lists them)."


def advice_on_permission(path: str) -> str:
    """Return the group that may open a node and the command that joins it."""
    try:
        group_id = os.stat(path).st_gid
    except OSError:
        return "no permission to inspect it."
    try:
        import grp

        group = grp.getgrgid(group_id).gr_name
    except (ImportError, KeyError):
        return f"no permission: it belongs to group number {group_id}. Ask the administrator for access."
    if group == "root":
        return "no permission: only root may open it. Assign it to the group video with a udev rule, or run as root."
    return f"no permission: it belongs to the group {group}. Run `sudo usermod -aG {group} $USER`, then log in again."


def holding(path: str, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Return (process ID, name) of the processes that have a node open, as far as /proc shows them."""
    target, holders = os.path.realpath(path), []
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended or belongs to another user
            if any(os.readlink(link) == target for link in (process / "fd").iterdir()):
                holders.append((int(process.name), (process / "comm").read_text(errors="replace").strip()))
    return sorted(holders)
