"""V4L2 cameras, against a fake kernel and the kernel's header."""

import ctypes.util
import errno
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edgecnn.device.cameras import v4l2_device as abi
from edgecnn.device.cameras.source import CameraLost, CameraSettings, UnreadableFormatError
from edgecnn.device.cameras.v4l2 import V4L2Camera, choose_format, encoding_of, to_rgb, yuyv_to_rgb
from edgecnn.device.cameras.v4l2_device import Device, Mode, PixelFormat, advice_on_permission, holding, why_in_use
from edgecnn.errors import CameraError

VGA = (640, 480)
RED = bytes([81, 90, 81, 240]) * (VGA[0] * VGA[1] // 2)
"""A red YUYV frame."""


@pytest.fixture
def opened(fake_kernel):
    """Return a function that opens the fake camera. Afterwards every camera and its node must be closed."""
    made = []

    def open_camera(formats=None, frames=(), settings=None, **options):
        kernel = fake_kernel(formats or {abi.YUYV: {VGA: (30, 15)}}, frames, **options)
        made.append((None, kernel))
        camera = V4L2Camera("/dev/video7", settings or CameraSettings(), kernel)
        made[-1] = (camera, kernel)
        return camera, kernel

    yield open_camera
    for camera, kernel in made:
        if camera:
            camera.close()
            camera.close()
            assert all(item.closed for item in kernel.maps)
        assert kernel.open_count == 0
        assert not kernel.streaming


def test_a_camera_streams_and_every_buffer_goes_back(opened):
    camera, kernel = opened(frames=[(RED, 0)] * 50, limit=1)
    assert (camera.name, camera.live) == ("/dev/video7", True)
    assert camera.about == "/dev/video7 (Fake camera) through V4L2: YUYV 640x480 at 30 frames/s"
    frames = [camera.read(1) for _ in range(50)]
    assert [frame.sequence for frame in frames] == list(range(50))
    assert frames[0].image.shape == (480, 640, 3)
    assert np.abs(frames[0].image.astype(int) - (255, 0, 0)).max() <= 2
    assert len(kernel.given) == 4
    with pytest.raises(CameraLost, match="no complete frame") as caught:
        camera.read(0)
    assert caught.value.reason == "stall"


def test_the_newest_waiting_frame_is_returned_and_the_others_go_back(opened):
    camera, kernel = opened(frames=[(RED, 0)] * 4)
    assert camera.read(1).sequence == 3
    assert sorted(kernel.given) == [0, 1, 2, 3]


def test_flagged_and_short_frames_are_skipped_and_counted(opened):
    camera, kernel = opened(frames=[(RED, abi.BUF_FLAG_ERROR), (RED[:-4], 0), (RED, 0), (RED, abi.BUF_FLAG_ERROR)])
    assert camera.read(1).sequence == 2
    assert camera.damaged == 3
    assert len(kernel.given) == 4
    with pytest.raises(CameraLost, match="3 damaged"):
        camera.read(0)


def test_only_damaged_frames_are_a_stall(opened):
    camera, _ = opened(frames=[(RED, abi.BUF_FLAG_ERROR)] * 3)
    with pytest.raises(CameraLost) as caught:
        camera.read(0)
    assert caught.value.reason == "stall"


@pytest.mark.parametrize(
    "number, reason",
    [(errno.ENODEV, "unplugged"), (errno.EIO, "io_error"), (errno.EPIPE, "ended"), (errno.EINVAL, "io_error")],
)
def test_a_failed_dequeue_is_a_loss_with_its_reason(opened, number, reason):
    camera, _ = opened(frames=[(RED, 0), number], limit=1)
    with pytest.raises(CameraLost) as caught:
        for _ in range(2):
            camera.read(1)
    assert caught.value.reason == reason
    assert "/dev/video7" in str(caught.value)


def test_a_driver_that_stopped_is_a_loss(opened):
    camera, kernel = opened()
    kernel.streaming = False
    with pytest.raises(CameraLost, match="stopped streaming") as caught:
        camera.read(1)
    assert caught.value.reason == "io_error"


def test_reading_a_closed_camera_is_a_loss(opened):
    camera, _ = opened()
    camera.close()
    with pytest.raises(CameraLost, match="closed"):
        camera.read(1)


@pytest.mark.parametrize("sequence, expected", [(lambda count: 0, [0, 1, 2]), (lambda count: 5 * count, [0, 5, 10])])
def test_the_sequence_is_the_drivers_if_it_counts(opened, sequence, expected):
    camera, _ = opened(frames=[(RED, 0)] * 3, limit=1, sequence=sequence)
    assert [camera.read(1).sequence for _ in range(3)] == expected


@pytest.mark.parametrize(
    "offset, flags, ours", [(0, 0x2000, True), (0, 0, False), (-3600, 0x2000, False), (3600, 0x2000, False)]
)
def test_the_drivers_time_is_used_if_it_is_on_our_clock_and_plausible(opened, offset, flags, ours):
    stamps = []

    def stamp(_):
        stamps.append(time.monotonic() + offset)
        return int(stamps[0]), int(stamps[0] % 1 * 1e6), flags

    camera, _ = opened(frames=[(RED, 0)], stamp=stamp)
    before = time.monotonic()
    frame = camera.read(1)
    if ours:
        assert abs(frame.monotonic - stamps[0]) < 2e-6
    else:
        assert before <= frame.monotonic <= time.monotonic()


def test_mjpeg_stays_encoded_and_a_cut_image_is_damaged(opened, cards):
    image = cards.jpeg()
    camera, _ = opened(
        {abi.MJPG: {VGA: (30,)}},
        frames=[(image, 0), (image[:-20], 0), (b"\0" * 90, 0), (image + b"\0" * 9, 0)],
        limit=1,
    )
    first = camera.read(1)
    assert first.image == image
    second = camera.read(1)
    assert second.image == image + b"\0" * 9
    assert (second.sequence, camera.damaged) == (3, 2)


@pytest.mark.parametrize("pixelformat", [abi.RGB3, abi.BGR3])
def test_rgb_and_bgr_come_out_as_rgb_at_the_drivers_stride(opened, cards, pixelformat):
    pixels = cards.pixels()[:, :, :: 1 if pixelformat == abi.RGB3 else -1].reshape(48, -1)
    data = np.pad(pixels, ((0, 0), (0, 64))).tobytes()
    unpadded = data[:-64]
    frames = [(data, 0), (unpadded, 0), (unpadded[:-1], 0), (data, 0)]
    camera, _ = opened({pixelformat: {(64, 48): (30,)}}, frames=frames, padding=64, limit=1)
    found = [camera.read(1) for _ in range(3)]
    assert all((frame.image == cards.pixels()).all() for frame in found)
    assert [frame.sequence for frame in found] == [0, 1, 3] and camera.damaged == 1, "the last row needs no padding"


@pytest.mark.parametrize("pixelformat", [abi.YUYV, abi.RGB3, abi.BGR3])
def test_a_frame_is_a_copy_that_is_converted_once_on_access(opened, pixelformat):
    data = {abi.YUYV: RED, abi.RGB3: b"\xff\0\0" * 640 * 480, abi.BGR3: b"\0\0\xff" * 640 * 480}[pixelformat]
    camera, kernel = opened({pixelformat: {VGA: (30,)}}, frames=[(data, 0)])
    frame = camera.read(1)
    for item in kernel.maps:
        item[:] = b"\0" * len(item)
    camera.close()
    assert frame.image[..., 0].min() > 250
    assert frame.image[..., 1:].max() < 5
    assert frame.image is frame.image


def test_about_reports_the_actual_format_and_what_the_input_lacks(opened):
    settings = CameraSettings(width=1280, height=720, fps=60)
    camera, _ = opened(settings=settings, input_status=abi.IN_ST_NO_SIGNAL)
    assert camera.about == (
        "/dev/video7 (Fake camera) through V4L2: YUYV 640x480 at 30 frames/s; requested 1280x720 at 60 frames/s; "
        "the driver reports: no signal"
    )
    camera, _ = opened(settings=CameraSettings(fps=15), rates=False)
    assert camera.about.endswith("YUYV 640x480; requested 15 frames/s")
    camera, _ = opened(settings=CameraSettings(width=0, height=0, fps=15))
    assert camera.about.endswith("YUYV 640x480 at 15 frames/s")
    for fps, ending in ((30.2, "at 30 frames/s"), (30.4, "at 30 frames/s; requested 30.4 frames/s")):
        camera, _ = opened(settings=CameraSettings(fps=fps))
        assert camera.about.endswith(ending), "1 % more or less is the same rate"


@pytest.mark.parametrize(
    "options, text",
    [
        ({"open_error": errno.ENOENT}, "no such device"),
        ({"open_error": errno.EBUSY}, "in use"),
        ({"open_error": errno.EIO}, "dmesg"),
        ({"errors": {abi.VIDIOC_QUERYCAP: errno.ENOTTY}}, "not a V4L2 device"),
        ({"errors": {abi.VIDIOC_S_FMT: errno.EBUSY}}, "in use"),
        ({"errors": {abi.VIDIOC_REQBUFS: errno.EBUSY}}, "in use"),
        ({"errors": {abi.VIDIOC_STREAMON: errno.EIO}}, "dmesg"),
        ({"errors": {abi.VIDIOC_STREAMON: errno.ENODEV}}, "no such device"),
        ({"errors": {abi.VIDIOC_ENUM_FMT: errno.ENODEV}}, "no such device"),
        ({"caps": 2 | abi.CAP_STREAMING}, "does not capture"),
        ({"caps": abi.CAP_VIDEO_CAPTURE_MPLANE | abi.CAP_STREAMING}, "multi-planar"),
        ({"caps": abi.CAP_VIDEO_CAPTURE}, "does not stream"),
        ({"driver": "unicam"}, "not a camera by itself"),
        ({"caps": abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING | abi.CAP_IO_MC}, "not a camera by itself"),
        ({"buffer_count": 1}, "at least 2"),
    ],
)
def test_a_camera_that_cannot_be_opened_reports_why_and_leaves_nothing_open(opened, options, text):
    with pytest.raises(CameraError, match=text) as caught:
        opened(**options)
    assert str(caught.value).startswith("/dev/video7: ")
    assert len(str(caught.value).splitlines()) <= 3


def test_a_camera_without_a_readable_format_names_what_it_has(opened):
    with pytest.raises(
        UnreadableFormatError, match=r"formats are NV12, H264; edgecnn reads RGB3, .*\. Use ffmpeg:/dev/video7"
    ):
        opened({int.from_bytes(name, "little"): {VGA: (30,)} for name in (b"NV12", b"H264")})


def test_permission_names_the_group_and_the_command(fake_kernel, tmp_path, monkeypatch):
    node = tmp_path / "video0"
    node.touch()
    grp = pytest.importorskip("grp")
    group = next(entry for entry in grp.getgrall() if entry.gr_gid)
    status = os.stat(node)
    changed = os.stat_result([*status[:5], group.gr_gid, *status[6:]])
    monkeypatch.setattr(os, "stat", lambda path: changed)
    with pytest.raises(CameraError) as caught:
        Device(str(node), fake_kernel({}, open_error=errno.EACCES))
    assert f"sudo usermod -aG {group.gr_name} $USER" in str(caught.value)


def test_a_regular_file_is_refused(tmp_path):
    path = tmp_path / "video0"
    path.write_bytes(b"x")
    with pytest.raises(CameraError, match="not a V4L2 device"):
        Device(str(path))
    with pytest.raises(CameraError, match="no such device"):
        Device(str(tmp_path / "video1"))


FAST = {"VGA": Mode(640, 480, (30.0,)), "HD": Mode(1280, 720, (30.0,)), "QVGA": Mode(320, 240, (30.0,))}


@pytest.mark.parametrize(
    "available, asked, expected",
    [
        ([(abi.MJPG, ["VGA"]), (abi.YUYV, ["VGA"])], (640, 480, 0), (abi.YUYV, 640, 480)),
        ([(abi.MJPG, ["VGA"]), (abi.BGR3, ["VGA"]), (abi.RGB3, ["VGA"])], (640, 480, 0), (abi.RGB3, 640, 480)),
        ([(abi.MJPG, ["HD", "VGA"]), (abi.YUYV, ["VGA"])], (1280, 720, 0), (abi.MJPG, 1280, 720)),
        ([(abi.YUYV, ["QVGA", "VGA", "HD"])], (500, 300, 0), (abi.YUYV, 640, 480)),
        ([(abi.YUYV, ["QVGA", "VGA"])], (1920, 1080, 0), (abi.YUYV, 640, 480)),
        ([(abi.YUYV, [])], (800, 600, 0), (abi.YUYV, 800, 600)),
        ([], (640, 480, 0), (0, 640, 480)),
    ],
)
def test_the_nearest_size_then_the_best_format(available, asked, expected):
    formats = [PixelFormat(pixelformat, "", tuple(FAST[name] for name in names)) for pixelformat, names in available]
    pixelformat, mode = choose_format(formats, *asked)
    assert (pixelformat, mode.width, mode.height) == expected


def test_a_format_that_reaches_the_rate_beats_a_better_one_that_does_not():
    slow, fast = Mode(1280, 720, (10.0, 5.0)), Mode(1280, 720, (30.0,))
    formats = [PixelFormat(abi.YUYV, "", (slow,)), PixelFormat(abi.MJPG, "", (fast,))]
    assert choose_format(formats, 1280, 720, 0)[0] == abi.MJPG
    assert choose_format(formats, 1280, 720, 10)[0] == abi.YUYV


def test_a_range_of_sizes_gives_the_requested_size(opened):
    camera, _ = opened({abi.YUYV: ((32, 32), (1920, 1080))}, settings=CameraSettings(width=800, height=600))
    assert "YUYV 800x600" in camera.about
    camera, _ = opened({abi.YUYV: ((32, 32), (1920, 1080))}, settings=CameraSettings(width=8, height=4000))
    assert "YUYV 32x1080" in camera.about


HEADER = Path("/usr/include/linux/videodev2.h")

STRUCTS = {
    "v4l2_capability": (abi.CAPABILITY, {"capabilities": 84, "device_caps": 88}),
    "v4l2_fmtdesc": (abi.FMTDESC, {"description": 12, "pixelformat": 44}),
    "v4l2_format": (
        abi.FORMAT,
        {"fmt.pix.width": 8, "fmt.pix.bytesperline": 24, "fmt.pix.ycbcr_enc": 44, "fmt.pix.quantization": 48},
    ),
    "v4l2_frmsizeenum": (abi.FRMSIZE, {"type": 8, "discrete.width": 12, "stepwise.max_height": 28}),
    "v4l2_frmivalenum": (abi.FRMIVAL, {"type": 16, "discrete.numerator": 20, "stepwise.max.denominator": 32}),
    "v4l2_streamparm": (abi.STREAMPARM, {"parm.capture.timeperframe.numerator": 12}),
    "v4l2_requestbuffers": (abi.REQUESTBUFFERS, {"memory": 8}),
    "v4l2_buffer": (
        abi.BUFFER,
        {
            "flags": 12,
            "timestamp.tv_sec": 24,
            "timestamp.tv_usec": 32,
            "sequence": 56,
            "memory": 60,
            "m.offset": 64,
            "length": 72,
        },
    ),
    "v4l2_input": (abi.INPUT, {"status": 56}),
}
"""Each structure with its layout and the byte offsets of the fields used, from linux/videodev2.h of kernel 6.12 on x86-64."""

SIZES = {
    "v4l2_capability": 104, "v4l2_fmtdesc": 64, "v4l2_format": 208, "v4l2_frmsizeenum": 44, "v4l2_frmivalenum": 52,
    "v4l2_streamparm": 204, "v4l2_requestbuffers": 20, "v4l2_buffer": 88, "v4l2_input": 80,
}  # fmt: skip

ALIASES = {"YUYV": "PIX_FMT_YUYV", "RGB3": "PIX_FMT_RGB24", "BGR3": "PIX_FMT_BGR24", "MJPG": "PIX_FMT_MJPEG", "JPEG": "PIX_FMT_JPEG",
           "DISCRETE": "FRMSIZE_TYPE_DISCRETE", "PRIV_MAGIC": "PIX_FMT_PRIV_MAGIC"}  # fmt: skip


def numbers():
    """Return the constants under the kernel's names."""
    found = {
        name: value
        for name, value in vars(abi).items()
        if name.isupper() and isinstance(value, int) and name != "MAX_LISTED"  # which is our own
    }
    return {
        name if name.startswith("VIDIOC") else f"V4L2_{ALIASES.get(name, name)}": value for name, value in found.items()
    }


def test_layouts_have_the_recorded_sizes_and_requests_name_them():
    for name, (layout, _) in STRUCTS.items():
        assert layout.size == SIZES[name], name
    structs = {"QUERYCAP": "v4l2_capability", "ENUM_FMT": "v4l2_fmtdesc", "G_FMT": "v4l2_format", "S_FMT": "v4l2_format",
               "REQBUFS": "v4l2_requestbuffers", "QUERYBUF": "v4l2_buffer", "QBUF": "v4l2_buffer", "DQBUF": "v4l2_buffer",
               "G_PARM": "v4l2_streamparm", "S_PARM": "v4l2_streamparm", "ENUMINPUT": "v4l2_input",
               "ENUM_FRAMESIZES": "v4l2_frmsizeenum", "ENUM_FRAMEINTERVALS": "v4l2_frmivalenum"}  # fmt: skip
    for request, struct in structs.items():
        number = getattr(abi, f"VIDIOC_{request}")
        assert (number >> 16) & 0x3FFF == SIZES[struct], request
        assert (number >> 8) & 0xFF == ord("V")


def test_layouts_put_each_field_where_it_was_recorded():
    """Locates a field by unpacking a structure with non-zero bytes only there."""
    for name, (layout, fields) in STRUCTS.items():
        for field, offset in fields.items():
            data = bytearray(layout.size)
            data[offset] = 1
            found = [value for value in layout.unpack(data) if value and value != b"\0" * len(str(value))]
            assert any(value == 1 or (isinstance(value, bytes) and value[:1] == b"\1") for value in found), (
                name,
                field,
            )


@pytest.mark.needs("gcc")
@pytest.mark.skipif(
    not HEADER.exists(), reason="the kernel's header is not on this machine: apt-get install linux-libc-dev"
)
@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="layouts are those of 64-bit systems")
def test_layouts_and_numbers_match_the_kernels_header(tmp_path):
    lines = []
    for name, (_, fields) in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field in fields]
    lines += [f'printf("{name} %lu\\n", (unsigned long)(__u32){name});' for name in numbers()]
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main(void){"
        + "\n".join(lines)
        + "}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "abi", source], check=True)
    printed = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout
    measured = {name: int(value) for name, value in re.findall(r"(\S+) (\d+)", printed)}
    expected = dict(SIZES)
    for name, (_, fields) in STRUCTS.items():
        expected |= {f"{name}.{field}": offset for field, offset in fields.items()}
    assert measured == expected | numbers()


def test_a_fourcc_and_text_fields_are_readable():
    assert [abi.fourcc(item) for item in (abi.YUYV, abi.MJPG, abi.RGB3)] == ["YUYV", "MJPG", "RGB3"]
    assert abi.fourcc(int.from_bytes(b"Y16 ", "little") | 1 << 31) == "Y16"
    assert abi.c_string(b"uvcvideo\0junk") == "uvcvideo"


STANDARDS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
"""Kr and Kb, from ITU-R BT.601 and BT.709."""


def exact(packed, encoding, full):
    """The formula in float64, rounded once."""
    red, blue = STANDARDS[encoding]
    data = packed.astype(float)
    luma = data[:, 0::2] if full else (data[:, 0::2] - 16) * 255 / 219
    cb, cr = (np.repeat(data[:, start::4] - 128, 2, axis=1) * (1 if full else 255 / 224) for start in (1, 3))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("encoding", STANDARDS)
@pytest.mark.parametrize("full", [False, True])
def test_yuyv_is_within_one_level_of_the_exact_value(encoding, full):
    packed = np.random.default_rng(0).integers(0, 256, (64, 512), np.uint8)
    # the corners, where a sum could overflow
    packed[0, :16] = (0, 0, 0, 0, 255, 255, 255, 255, 255, 0, 255, 0, 0, 255, 0, 255)
    difference = np.abs(yuyv_to_rgb(packed, encoding, full).astype(int) - exact(packed, encoding, full))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.03


def test_yuyv_of_known_colours_in_bt601_limited_range():
    """Within 2 levels, because the codes themselves are rounded. Source of the codes: ITU-R BT.601, 8 bits, 100 % colours."""
    for pixel, rgb in (
        ((16, 128, 16, 128), (0, 0, 0)),
        ((235, 128, 235, 128), (255, 255, 255)),
        ((81, 90, 81, 240), (255, 0, 0)),
        ((145, 54, 145, 34), (0, 255, 0)),
        ((41, 240, 41, 110), (0, 0, 255)),
    ):
        found = yuyv_to_rgb(np.array([pixel], np.uint8)).astype(int)
        assert found.shape == (1, 2, 3)
        assert np.abs(found - rgb).max() <= 2


def test_a_width_that_is_odd_drops_the_last_half_of_a_pair():
    """Two rows of three greys in full range: luma at every second byte, in the order of the rows."""
    data = [10, 128, 20, 128, 30, 128, 77, 128, 40, 128, 50, 128, 60, 128, 77, 128]
    pixels = abi.PixFormat(3, 2, abi.YUYV, bytesperline=8, quantization=abi.QUANTIZATION_FULL_RANGE)
    rgb = to_rgb(np.array(data, np.uint8), pixels)
    assert rgb[:, :, 1].tolist() == [[10, 20, 30], [40, 50, 60]] and rgb.shape == (2, 3, 3)


def test_the_drivers_values_are_used():
    for reported, expected in (
        ({}, ("601", False)),
        ({"colorspace": 8}, ("601", False)),  # sRGB
        ({"colorspace": abi.COLORSPACE_JPEG}, ("601", True)),
        ({"colorspace": abi.COLORSPACE_JPEG, "quantization": abi.QUANTIZATION_LIM_RANGE}, ("601", False)),
        ({"colorspace": abi.COLORSPACE_REC709}, ("709", False)),
        ({"colorspace": abi.COLORSPACE_REC709, "ycbcr_enc": abi.YCBCR_ENC_601}, ("601", False)),
        # BT.2020, which no camera has
        ({"colorspace": 10, "quantization": abi.QUANTIZATION_FULL_RANGE}, ("601", True)),
        ({"ycbcr_enc": abi.YCBCR_ENC_709}, ("709", False)),
    ):
        assert encoding_of(abi.PixFormat(2, 2, abi.YUYV, **reported)) == expected


def yuyv_of(pixels):
    """Encode an array with pairwise equal pixels as YUYV, BT.601, limited range."""
    r, g, b = (pixels[..., channel].astype(float) for channel in range(3))
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    packed = np.empty((pixels.shape[0], pixels.shape[1], 2), np.uint8)
    packed[..., 0] = np.rint(16 + luma * 219 / 255)
    packed[:, 0::2, 1] = np.rint(128 + (b - luma)[:, 0::2] / 1.772 * 224 / 255)
    packed[:, 1::2, 1] = np.rint(128 + (r - luma)[:, 1::2] / 1.402 * 224 / 255)
    return packed.reshape(pixels.shape[0], -1)


@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize("pixelformat", [abi.YUYV, abi.RGB3, abi.BGR3])
def test_the_card_keeps_its_colours_at_any_stride(cards, pixelformat, padding):
    pixels = cards.pixels()
    packed = {
        abi.YUYV: yuyv_of(pixels),
        abi.RGB3: pixels.reshape(48, -1),
        abi.BGR3: pixels[:, :, ::-1].reshape(48, -1),
    }[pixelformat]
    data = np.pad(packed, ((0, 0), (0, padding)), constant_values=77).reshape(-1)
    data = data[: data.size - padding]  # the last row need not be padded
    rgb = to_rgb(data, abi.PixFormat(64, 48, pixelformat, bytesperline=packed.shape[1] + padding))
    assert rgb.shape == (48, 64, 3)
    assert rgb.dtype == np.uint8
    cards.check(rgb)
    if pixelformat != abi.YUYV:
        assert (rgb == pixels).all()


def test_rgb_of_limited_range_is_stretched():
    data = np.array([16, 235, 128, 0, 255, 126], np.uint8)
    pixels = abi.PixFormat(2, 1, abi.RGB3, bytesperline=6, quantization=abi.QUANTIZATION_LIM_RANGE)
    assert to_rgb(data, pixels).tolist() == [[[0, 255, 130], [0, 255, 128]]]


def test_the_holder_of_a_file_is_found_in_proc(tmp_path):
    path = tmp_path / "video0"
    path.touch()
    link = tmp_path / "by-id"
    link.symlink_to(path)
    assert holding(str(path)) == []
    assert why_in_use(str(path)).startswith("in use. ")
    with path.open():
        [(process, name)] = holding(str(link))
        assert process == os.getpid()
        assert why_in_use(str(path)).startswith(f"in use by {name} (process {process}). ")


def test_without_proc_no_holder_is_named(tmp_path):
    assert holding("/dev/null", tmp_path / "none") == []


def test_advice_for_groups_that_cannot_be_joined(tmp_path, monkeypatch):
    path = tmp_path / "video0"
    path.touch()
    status = os.stat(path)
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result([*status[:5], 0, *status[6:]]))
    assert "only root" in advice_on_permission(str(path))
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result([*status[:5], 54321, *status[6:]]))
    assert "group number 54321" in advice_on_permission(str(path))
