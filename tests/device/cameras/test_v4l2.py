import errno
import os
import time

import numpy as np
import pytest

from edgecnn.device.cameras import v4l2_abi as abi
from edgecnn.device.cameras.source import CameraLost, CameraSettings, UnreadableFormatError
from edgecnn.device.cameras.v4l2 import V4L2Camera, choose
from edgecnn.device.cameras.v4l2_device import Device, Mode, PixelFormat
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
    pixelformat, mode = choose(formats, *asked)
    assert (pixelformat, mode.width, mode.height) == expected


def test_a_format_that_reaches_the_rate_beats_a_better_one_that_does_not():
    slow, fast = Mode(1280, 720, (10.0, 5.0)), Mode(1280, 720, (30.0,))
    formats = [PixelFormat(abi.YUYV, "", (slow,)), PixelFormat(abi.MJPG, "", (fast,))]
    assert choose(formats, 1280, 720, 0)[0] == abi.MJPG
    assert choose(formats, 1280, 720, 10)[0] == abi.YUYV


def test_a_range_of_sizes_gives_the_requested_size(opened):
    camera, _ = opened({abi.YUYV: ((32, 32), (1920, 1080))}, settings=CameraSettings(width=800, height=600))
    assert "YUYV 800x600" in camera.about
    camera, _ = opened({abi.YUYV: ((32, 32), (1920, 1080))}, settings=CameraSettings(width=8, height=4000))
    assert "YUYV 32x1080" in camera.about
