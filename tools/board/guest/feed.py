"""On the board: put pictures in front of its camera.

The kernel's test driver vivid has a video output, /dev/video1, that a loopback connects to its camera, /dev/video0: a picture shown on the
one comes out of the other, byte for byte, as long as the output stays open. Commands arrive as lines on standard input, and each is
answered with one line:

  format NAME  give the camera this pixel format     -> "format NAME"
  show FILE    show a picture (at the camera's size) -> "shown FILE TIME": frames completed after that time show this picture
  close        close the output                      -> "closed"

After a camera was disconnected, `close`, then `show`: the driver brings its devices back once nobody holds them open.
"""

import argparse
import fcntl
import mmap
import os
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from edgecnn.device.cameras import v4l2_device as abi

OUTPUT = "/dev/video1"
CAMERA = "/dev/video0"
WIDTH, HEIGHT = 640, 480
BUFFERS = 2
PATIENCE_S = 10
STAMPED_EARLY_S = 3 / 60
"""The driver stamps a frame with the time at which it would be complete, which may be one frame after it was filled."""
BUF_TYPE_VIDEO_OUTPUT = 2


def control(*arguments: str) -> None:
    """Run v4l2-ctl."""
    done = subprocess.run(["v4l2-ctl", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"v4l2-ctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")


def wire(form: str) -> None:
    """Connect output and camera: the same size at 60 Hz and pixel format on both, and no text over the picture."""
    control("-d", CAMERA, "-c", "hdmi_000_0_is_connected_to=2,osd_text_mode=2")
    for device in (CAMERA, OUTPUT):
        control("-d", device, "--set-dv-bt-timings", "index=0")  # 640x480
    size = f"width={WIDTH},height={HEIGHT},pixelformat={form}"
    control("-d", OUTPUT, f"--set-fmt-video-out={size},{COLOURS[form]}")
    control("-d", CAMERA, f"--set-fmt-video={size}")


def yuyv(pixels: np.ndarray) -> np.ndarray:
    """Convert RGB to YUYV according to ITU-R BT.601, with luma 16 to 235 and colour averaged over two neighbours.

    Args:
        pixels: uint8 array, shape (height, width, 3), width even.

    Returns:
        uint8 array, shape (height, width, 2).
    """
    red, green, blue = np.moveaxis(pixels.astype(np.float32) / 255, 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    result = np.empty((*luma.shape, 2), np.uint8)
    result[:, :, 0] = np.rint(16 + 219 * luma)
    for column, difference, largest in ((0, blue - luma, 0.886), (1, red - luma, 0.701)):
        chroma = 128 + 224 * difference / (2 * largest)
        result[:, column::2, 1] = np.rint((chroma[:, 0::2] + chroma[:, 1::2]) / 2)
    return result


def rgb3(pixels: np.ndarray) -> np.ndarray:
    """Return RGB pixels unchanged."""
    return pixels


def bgr3(pixels: np.ndarray) -> np.ndarray:
    """Return RGB pixels with red and blue swapped."""
    return pixels[:, :, ::-1]


FORMATS = {"RGB3": rgb3, "BGR3": bgr3, "YUYV": yuyv}
COLOURS = {
    "BGR3": "colorspace=srgb,quantization=full-range",
    "RGB3": "colorspace=srgb,quantization=full-range",
    "YUYV": "colorspace=smpte170m,ycbcr=601,quantization=lim-range",
}


class Output:
    """The video output, streamed through mapped buffers once the first picture is shown.

    (Plain writes do not work: the kernel then delivers a picture of 0 bytes, seen with 6.12.)
    """

    def __init__(self) -> None:
        self.descriptor = -1
        self.buffers: list[mmap.mmap] = []
        self.free = 0

    def show(self, frame: bytes) -> None:
        """Show a frame until the next one: the camera captures it from now on. Waits for a device that is missing."""
        if self.descriptor >= 0:
            try:
                self.queue(frame)
                # the driver returns a frame when it moves on to the next
                self.free = abi.unpack_buffer(self.request(abi.VIDIOC_DQBUF, packed(0, 0))).number
                return
            except OSError:  # a fault injected into the camera also affects the output
                self.close()
        self.open()
        self.queue(frame)
        self.request(abi.VIDIOC_STREAMON, abi.INT.pack(BUF_TYPE_VIDEO_OUTPUT))
        self.free = 1

    def queue(self, frame: bytes) -> None:
        """Copy a frame into the free buffer and pass it to the driver."""
        self.buffers[self.free][: len(frame)] = frame
        self.request(abi.VIDIOC_QBUF, packed(self.free, len(frame)))

    def open(self) -> None:
        """Open the device and map its buffers."""
        deadline = time.monotonic() + PATIENCE_S
        while self.descriptor < 0:
            try:
                self.descriptor = os.open(OUTPUT, os.O_RDWR)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.request(abi.VIDIOC_REQBUFS, abi.REQUESTBUFFERS.pack(BUFFERS, BUF_TYPE_VIDEO_OUTPUT, abi.MEMORY_MMAP, 0, 0))
        for number in range(BUFFERS):
            buffer = abi.unpack_buffer(self.request(abi.VIDIOC_QUERYBUF, packed(number, 0)))
            self.buffers.append(mmap.mmap(self.descriptor, buffer.length, offset=buffer.offset))

    def request(self, number: int, argument: bytes | bytearray) -> bytearray:
        """Make a request and return its filled argument."""
        data = bytearray(argument)
        fcntl.ioctl(self.descriptor, number, data, True)
        return data

    def close(self) -> None:
        """Close the output if it is open."""
        if self.descriptor >= 0:
            for buffer in self.buffers:
                buffer.close()
            self.buffers, self.free = [], 0
            os.close(self.descriptor)
            self.descriptor = -1


def packed(number: int, size: int) -> bytes:
    """Return a `v4l2_buffer` of the output."""
    return abi.BUFFER.pack(number, BUF_TYPE_VIDEO_OUTPUT, size, 0, 0, 0, 0, 0, abi.MEMORY_MMAP, 0, 0, 0, 0)


def read(path: str) -> np.ndarray:
    """Return a picture's pixels as RGB; it must have the camera's size."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (HEIGHT, WIDTH, 3):
        sys.exit(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, the camera is {WIDTH}x{HEIGHT}")
    return pixels


def main() -> None:
    """Execute the commands on standard input."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    output = Output()
    form = "YUYV"
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "format" and argument in FORMATS:
            form = argument
            output.close()
            wire(form)
            print(f"format {form}", flush=True)
        elif word == "show":
            output.show(FORMATS[form](read(argument)).tobytes())
            print(f"shown {argument} {time.time() + STAMPED_EARLY_S:.3f}", flush=True)
        elif word == "close":
            output.close()
            print("closed", flush=True)
        else:
            sys.exit(f"cannot {line.strip()!r}: format {'|'.join(FORMATS)}, show FILE or close")


if __name__ == "__main__":
    main()
