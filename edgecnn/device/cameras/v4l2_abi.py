"""The part of the kernel's V4L2 interface that capturing needs: request numbers, constants and structure layouts.

Layouts are those of 64-bit Linux (the same on x86-64 and aarch64). 32-bit layouts differ in `v4l2_buffer` and are not supported.

Source: linux/videodev2.h, kernel 6.12. If a compiler is installed, the tests compile that header and compare sizes, offsets and numbers.
"""

import struct
from typing import NamedTuple

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

COLORSPACE_SMPTE240M, COLORSPACE_REC709, COLORSPACE_JPEG, COLORSPACE_BT2020, COLORSPACE_DCI_P3 = 2, 3, 7, 10, 12
YCBCR_ENC_601, YCBCR_ENC_709, YCBCR_ENC_XV601, YCBCR_ENC_XV709, YCBCR_ENC_BT2020, YCBCR_ENC_SMPTE240M = 1, 2, 3, 4, 6, 8
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


class Capability(NamedTuple):
    """`v4l2_capability`: `caps` are those of the opened node."""

    driver: str
    card: str
    caps: int


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


def text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def fourcc(pixelformat: int) -> str:
    return (pixelformat & 0x7FFFFFFF).to_bytes(4, "little").decode("ascii", "replace").rstrip()


def unpack_capability(data: bytes | bytearray) -> Capability:
    driver, card, _, _, capabilities, device_caps = CAPABILITY.unpack(data)
    caps = device_caps if capabilities & CAP_DEVICE_CAPS else capabilities
    return Capability(text(driver), text(card), caps)


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
