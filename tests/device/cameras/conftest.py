"""Fakes: an in-memory V4L2 driver, programs on PATH, and a card that is red on the left and blue on the right."""

import errno
import io
import mmap
import os
import select
import shlex
import struct
import sys
import textwrap
import threading

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.cameras import v4l2_device as abi


class Clock(threading.Event):
    """A clock that only waits advance."""

    now = 0.0

    def wait(self, timeout=None):
        Clock.now += timeout
        return self.is_set()

    @staticmethod
    def monotonic():
        return Clock.now


@pytest.fixture
def clock(monkeypatch):
    """Return a function that gives a module such a clock."""

    def give(module):
        monkeypatch.setattr(module, "time", Clock)
        monkeypatch.setattr(module.threading, "Event", Clock)

    return give


def card(width=64, height=48):
    """Return the card as an RGB array."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return pixels


def jpeg(pixels=None, **options):
    """Return an image, the card by default, as JPEG bytes."""
    stream = io.BytesIO()
    Image.fromarray(card() if pixels is None else pixels).save(
        stream, "JPEG", **{"quality": 95, "subsampling": 0, **options}
    )
    return stream.getvalue()


def assert_card(pixels):
    """Fail unless the picture is red on the left and blue on the right, up to coding losses."""
    height, width = pixels.shape[:2]
    left, right = pixels[height // 2, width // 4].astype(int), pixels[height // 2, 3 * width // 4].astype(int)
    assert np.abs(left - (255, 0, 0)).max() <= 6, left
    assert np.abs(right - (0, 0, 255)).max() <= 6, right


class Cards:
    """The card's helpers, for tests that use the fixture `cards`."""

    pixels = staticmethod(card)
    jpeg = staticmethod(jpeg)
    check = staticmethod(assert_card)


@pytest.fixture(scope="session")
def cards():
    """The red and blue card: `pixels()`, `jpeg()`, `check(pixels)`."""
    return Cards


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that writes a Python script to the only folder on PATH. The script can use `jpeg` and `out`.

    A shell starts it, because the kernel rejects an interpreter whose path has a space.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "card.jpg").write_bytes(jpeg())
    monkeypatch.setenv("PATH", str(folder))

    def put(name, body):
        start = "import os, signal, sys, time\nout = sys.stdout.buffer\n"
        start += f"jpeg = open({str(tmp_path / 'card.jpg')!r}, 'rb').read()\n"
        script = tmp_path / f"{name}.py"
        script.write_text(start + textwrap.dedent(body))
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-SE", str(script)])} "$@"\n')
        path.chmod(0o755)
        return path

    return put


@pytest.fixture
def leaks_nothing():
    """Fail if the test leaves a descriptor, a thread or a child process behind."""

    def state():
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [("child", number) for number in file.read().split()]
        descriptors = [("descriptor", number) for number in os.listdir("/proc/self/fd")]
        return {*descriptors, *children, *threading.enumerate()}

    before = state()
    yield
    assert not state() - before


@pytest.fixture(scope="session")
def fake_kernel():
    """The class FakeKernel."""
    return FakeKernel


def fail(number):
    raise OSError(number, f"fake errno {number}")


class FakeKernel:
    """Stands in for `SystemCalls`. `frames` are (bytes, flags) or an errno that the dequeue returns; they fill the queued buffers.

    `formats` maps a pixel format to its sizes, and each size to its rates. A tuple (low, high) of sizes is a range; None lists none.
    """

    def __init__(self, formats, frames=(), *, driver="fake", caps=abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING, **options):
        self.formats, self.frames = formats, list(frames)
        self.driver, self.caps = driver, caps
        self.errors = options.get("errors", {})  # request number -> errno
        self.padding = options.get("padding", 0)
        self.colour = options.get("colour", {})
        self.stamp = options.get("stamp", lambda sequence: (0, 0, 0))
        self.buffer_count = options.get("buffer_count")
        self.input_status = options.get("input_status", 0)
        self.open_error = options.get("open_error")
        self.rates = options.get("rates", True)
        self.sequence = options.get("sequence", lambda count: count)
        self.limit = options.get("limit")  # frames ready at one poll
        self.open_count = 0
        self.streaming = False
        self.maps, self.given, self.log = [], [], []
        self.format = abi.PixFormat(640, 480, next(iter(formats), 0))
        self.interval = (1, 30)
        self.taken = 0
        self.ready = 0

    def open(self, path):
        if self.open_error:
            fail(self.open_error)
        self.open_count += 1
        return 1000

    def close(self, descriptor):
        assert descriptor == 1000
        self.open_count -= 1

    def wait(self, descriptor, timeout):
        if not self.streaming:
            return select.POLLERR
        self.ready = min(len(self.frames), len(self.given), self.limit or 99)
        return select.POLLIN if self.ready else 0

    def map(self, descriptor, length, offset):
        assert offset == 4096 * len(self.maps)
        self.maps.append(mmap.mmap(-1, length))
        return self.maps[-1]

    def ioctl(self, descriptor, request, argument):
        assert descriptor == 1000 and len(argument) == (request >> 16) & 0x3FFF
        name = next(name for name, value in vars(abi).items() if name.startswith("VIDIOC_") and value == request)
        self.log.append(name)
        if request in self.errors:
            fail(self.errors[request])
        getattr(self, name[7:].lower())(argument)

    def querycap(self, argument):
        caps = self.caps | abi.CAP_DEVICE_CAPS
        argument[:] = abi.CAPABILITY.pack(self.driver.encode(), b"Fake camera", b"usb-1", 0, caps, self.caps)

    def enum_fmt(self, argument):
        index = struct.unpack_from("=I", argument)[0]
        if index >= len(self.formats):
            fail(errno.EINVAL)
        pixelformat = list(self.formats)[index]
        argument[:] = abi.FMTDESC.pack(index, 1, 0, abi.fourcc(pixelformat).encode(), pixelformat, 0)

    def enum_framesizes(self, argument):
        index, pixelformat, *_ = abi.FRMSIZE.unpack(argument)
        sizes = self.formats[pixelformat]
        if isinstance(sizes, tuple) and index == 0:
            (low, high) = sizes
            argument[:] = abi.FRMSIZE.pack(0, pixelformat, 3, low[0], high[0], 2, low[1], high[1], 2)
            return
        if sizes is None or isinstance(sizes, tuple) or index >= len(sizes):
            fail(errno.EINVAL)
        argument[:] = abi.FRMSIZE.pack(index, pixelformat, 1, *list(sizes)[index], 0, 0, 0, 0)

    def enum_frameintervals(self, argument):
        index, pixelformat, width, height, *_ = abi.FRMIVAL.unpack(argument)
        sizes = self.formats[pixelformat]
        rates = sizes.get((width, height), ()) if isinstance(sizes, dict) else ()
        if index >= len(rates):
            fail(errno.EINVAL)
        argument[:] = abi.FRMIVAL.pack(index, pixelformat, width, height, 1, 1, rates[index], 0, 0, 0, 0)

    def g_fmt(self, argument):
        argument[:] = abi.pack_format(self.format)

    def s_fmt(self, argument):
        asked = abi.unpack_format(argument)
        sizes = self.formats[asked.pixelformat]
        size = (asked.width, asked.height)
        if isinstance(sizes, dict) and size not in sizes:
            size = next(iter(sizes))
        row = {abi.YUYV: 2, abi.RGB3: 3, abi.BGR3: 3}.get(asked.pixelformat, 0) * size[0]
        stride = row + self.padding if row else 0
        image = stride * size[1] if row else size[0] * size[1]
        self.format = abi.PixFormat(*size, asked.pixelformat, 1, stride, image)._replace(**self.colour)
        argument[:] = abi.pack_format(self.format)

    def g_parm(self, argument):
        if not self.rates:
            fail(errno.ENOTTY)
        argument[:] = abi.STREAMPARM.pack(1, abi.CAP_TIMEPERFRAME, 0, *self.interval, 0, 0)

    def s_parm(self, argument):
        _, _, _, numerator, denominator, _, _ = abi.STREAMPARM.unpack(argument)
        self.interval = (1, min(30, round(denominator / numerator)))
        self.g_parm(argument)

    def g_input(self, argument):
        argument[:] = abi.INT.pack(0)

    def enuminput(self, argument):
        argument[:] = abi.INPUT.pack(0, b"Camera", 2, 0, 0, 0, self.input_status)

    def reqbufs(self, argument):
        count = self.buffer_count or abi.REQUESTBUFFERS.unpack(argument)[0]
        if not abi.REQUESTBUFFERS.unpack(argument)[0]:
            assert all(item.closed for item in self.maps), "buffers were freed while mapped"
        argument[:] = abi.REQUESTBUFFERS.pack(count, 1, 1, 0, 0)

    def querybuf(self, argument):
        number = abi.unpack_buffer(argument).number
        argument[:] = abi.pack_buffer(abi.Buffer(number, offset=4096 * number, length=self.format.sizeimage))

    def qbuf(self, argument):
        number = abi.unpack_buffer(argument).number
        assert number not in self.given, "a buffer was queued twice"
        self.given.append(number)

    def streamon(self, argument):
        self.streaming = True

    def streamoff(self, argument):
        self.streaming = False

    def dqbuf(self, argument):
        if self.frames and isinstance(self.frames[0], int):
            fail(self.frames.pop(0))
        if not self.ready:
            fail(errno.EAGAIN)
        self.ready -= 1
        data, flags = self.frames.pop(0)
        number = self.given.pop(0)
        self.maps[number][: len(data)] = data
        sequence = self.sequence(self.taken)
        self.taken += 1
        seconds, microseconds, stamp_flags = self.stamp(sequence)
        argument[:] = abi.pack_buffer(
            abi.Buffer(
                number, len(data), flags | stamp_flags, seconds, microseconds, sequence, 0, self.format.sizeimage
            )
        )
