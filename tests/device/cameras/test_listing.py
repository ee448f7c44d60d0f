"""Which cameras are found and listed."""

import errno
import json
import subprocess
import sys

import pytest

from edgecnn.device import cameras
from edgecnn.device.cameras import find_camera, is_stream, kind_of, listing, open_source
from edgecnn.device.cameras import v4l2_device as abi
from edgecnn.device.cameras.listing import camera_json, camera_lines, list_cameras, node_camera, parse_csi
from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, UnreadableFormatError
from edgecnn.errors import CameraError

SETTINGS = CameraSettings()


def test_a_stream_is_recognised_by_its_text():
    for text, expected in (
        ("/dev/video2", ("v4l2", "/dev/video2")),
        ("/dev/v4l/by-id/usb-cam-index0", ("v4l2", "/dev/v4l/by-id/usb-cam-index0")),
        ("rtsp://host:554/a?b=c", ("ffmpeg", "rtsp://host:554/a?b=c")),
        ("HTTP://host/x", ("ffmpeg", "HTTP://host/x")),
        ("clips/a.MP4", ("ffmpeg", "clips/a.MP4")),
        ("ffmpeg:/dev/video0", ("ffmpeg", "/dev/video0")),
        ("exec:cat a.mjpeg", ("exec", "cat a.mjpeg")),
        ("watch:/srv/in", ("watch", "/srv/in")),
        ("folder:photos?fps=2", ("folder", "photos?fps=2")),
        ("synthetic:", ("synthetic", "")),
        ("csi:1", ("rpicam", "1")),
    ):
        assert kind_of(text) == expected
        assert is_stream(text)


def test_files_are_not_streams():
    for text in ("-", "photo.jpg", "photos/", "*.png", "mp4", "exec", "/dev/shm/a.jpg", "a:b.png", "", "rtsp://a\0b"):
        assert not is_stream(text)
        with pytest.raises(CameraError, match="not a camera or a stream"):
            open_source(text, SETTINGS)


def test_asking_whether_a_source_is_a_stream_imports_no_camera():
    code = (
        "import sys\nfrom edgecnn.device.cameras import is_stream\nassert is_stream('/dev/video0') and not is_stream('a.jpg')\n"
        "print([name for name in sys.modules if name.startswith(('edgecnn.device.cameras.', 'numpy', 'PIL', 'subprocess'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_source_exists_and_other_systems_get_an_error(monkeypatch):
    for target in cameras.SOURCES.values():
        module, _, attribute = target.partition(":")
        source = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert callable(source.read)
        assert callable(source.close)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CameraError, match="on Linux only; this is darwin"):
        open_source("/dev/video0", SETTINGS)
    assert open_source("synthetic:8x6", SETTINGS).read(0) is not None


class FakeCamera:
    """A fake camera for `make`: it gives a frame, ends, or is lost."""

    def __init__(self, outcome):
        self.outcome, self.closed = outcome, False
        self.name = "fake"

    def read(self, timeout):
        assert timeout > 0
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def close(self):
        self.closed = True


@pytest.fixture
def found(monkeypatch):
    """Return a function that takes the result of opening each (name, text), looks for a camera, and returns (attempts, camera)."""

    def find(outcomes, node_paths=("/dev/video0", "/dev/video2")):
        tried, made = [], []

        def make(name, text, settings):
            tried.append((name, text))
            outcome = outcomes.get((name, text), CameraError(f"{name} {text}: no"))
            if isinstance(outcome, CameraError):
                raise outcome
            made.append(FakeCamera(outcome))
            return made[-1]

        monkeypatch.setattr(cameras, "make", make)
        monkeypatch.setattr(cameras, "video_nodes", lambda: list(node_paths))
        try:
            return tried, find_camera(SETTINGS)
        except (CameraError, KeyboardInterrupt) as error:
            return tried, error
        finally:
            assert [camera.closed for camera in made[:-1]] == [True] * (len(made) - 1)

    return find


FRAME = Frame(0, 0.0, b"x")


def test_a_csi_camera_comes_first(found):
    tried, camera = found({("rpicam", ""): FRAME, ("v4l2", "/dev/video0"): FRAME})
    assert tried == [("rpicam", "")]
    assert not camera.closed


def test_then_usb_cameras_and_one_without_frames_is_skipped(found):
    outcomes = {
        ("rpicam", ""): CameraLost("ended", "no cameras available"),
        ("v4l2", "/dev/video0"): CameraLost("stall", "no frame"),
        ("v4l2", "/dev/video2"): FRAME,
    }
    tried, camera = found(outcomes)
    assert tried == [("rpicam", ""), ("v4l2", "/dev/video0"), ("v4l2", "/dev/video2")]
    assert camera.outcome is FRAME
    assert not camera.closed


def test_then_ffmpeg_for_cameras_whose_formats_are_not_read(found):
    outcomes = {("v4l2", "/dev/video2"): UnreadableFormatError("H264 only"), ("ffmpeg", "/dev/video2"): FRAME}
    tried, camera = found(outcomes)
    assert tried == [("rpicam", ""), ("v4l2", "/dev/video0"), ("v4l2", "/dev/video2"), ("ffmpeg", "/dev/video2")]
    assert camera.outcome is FRAME


def test_without_a_camera_the_error_names_everything_tried(found):
    outcomes = {
        ("v4l2", "/dev/video0"): UnreadableFormatError("H264 only"),
        ("rpicam", ""): CameraLost("ended", "no cameras available"),
    }
    _, error = found(outcomes)
    assert isinstance(error, CameraError)
    for text in ("no cameras available", "H264 only", "v4l2 /dev/video2: no", "ffmpeg /dev/video0: no"):
        assert text in str(error)
    _, error = found({}, ())
    assert "no /dev/video*" in str(error)


def test_an_interrupt_while_a_camera_is_tested_closes_it(found):
    _, error = found({("rpicam", ""): KeyboardInterrupt()})
    assert isinstance(error, KeyboardInterrupt)


def test_nodes_by_id_come_first_and_each_only_once(tmp_path):
    by_id = tmp_path / "v4l" / "by-id"
    by_id.mkdir(parents=True)
    for name in ("video0", "video10", "video2", "video3", "videoX", "vbi0"):
        (tmp_path / name).touch()
    (by_id / "usb-cam-index0").symlink_to(tmp_path / "video2")
    (by_id / "usb-cam-index0-again").symlink_to(tmp_path / "video2")
    assert cameras.video_nodes(tmp_path) == [str(tmp_path / name) for name in ("video2", "video0", "video3", "video10")]
    assert cameras.names_by_id(tmp_path) == {
        str(tmp_path / "video2"): [str(by_id / "usb-cam-index0"), str(by_id / "usb-cam-index0-again")]
    }
    assert cameras.video_nodes(tmp_path / "none") == []


VGA = (640, 480)

RPICAM = """Available cameras
-----------------
0 : imx708 [4608x2592 10-bit RGGB] (/base/soc/i2c0mux/i2c@1/imx708@1a)
    Modes: 'SRGGB10_CSI2P' : 1536x864 [120.13 fps - (768, 432)/3072x1728 crop]
                             2304x1296 [56.03 fps - (0, 0)/4608x2592 crop]

1 : ov5647 [2592x1944 10-bit GBRG] (/base/soc/i2c0mux/i2c@0/ov5647@36)
    Modes: 'SGBRG10_CSI2P' : 640x480 [58.92 fps - (16, 0)/2560x1920 crop]
"""
"""In the format of rpicam-vid --list-cameras."""


def test_a_usb_camera_with_its_capabilities(fake_kernel):
    formats = {
        abi.YUYV: {VGA: (30, 15), (1280, 720): (10,)},
        int.from_bytes(b"H264", "little"): {VGA: (30,)},
        abi.MJPG: None,
    }
    kernel = fake_kernel(formats, driver="uvcvideo")
    camera = node_camera("/dev/video0", ("/dev/v4l/by-id/usb-cam",), kernel)
    assert kernel.open_count == 0
    assert camera_lines(camera) == [
        "/dev/video0  Fake camera (driver uvcvideo)",
        "    also /dev/v4l/by-id/usb-cam",
        "    YUYV 640x480 (30/15 frames/s), 1280x720 (10 frames/s)",
        "    MJPG any size that the driver accepts",
        "    unsupported: H264",
    ]
    data = camera_json(camera)
    assert data["usable"] is True
    assert data["formats"][0]["modes"][0] == {"width": 640, "height": 480, "fps": [30, 15]}
    assert "VIDIOC_S_FMT" not in kernel.log
    assert "VIDIOC_STREAMON" not in kernel.log


def test_a_range_of_sizes_and_an_input_without_a_picture(fake_kernel):
    camera = node_camera(
        "/dev/video0", (), fake_kernel({abi.RGB3: ((32, 32), (1920, 1080))}, input_status=abi.IN_ST_NO_POWER)
    )
    assert camera_lines(camera)[1:] == ["    the driver reports: no power", "    RGB3 32x32 to 1920x1080"]


@pytest.mark.parametrize(
    "options, problem, is_camera",
    [
        ({"open_error": errno.EACCES}, "no permission", True),
        ({"open_error": errno.EBUSY}, "in use", True),
        ({"errors": {abi.VIDIOC_REQBUFS: errno.EBUSY}}, "in use", True),
        ({"errors": {abi.VIDIOC_ENUM_FMT: errno.ENODEV}}, "no such device", True),
        ({"caps": 2}, "does not capture", False),
        ({"driver": "unicam"}, "not a camera by itself", False),
        ({"formats": {int.from_bytes(b"H264", "little"): None}}, "Use ffmpeg:/dev/video0", True),
    ],
)
def test_why_a_node_cannot_be_used(fake_kernel, options, problem, is_camera):
    kernel = fake_kernel(**{"formats": {abi.YUYV: {VGA: (30,)}}, **options})
    camera = node_camera("/dev/video0", (), kernel)
    assert problem in camera.problem
    assert any(line.startswith("    cannot be used: ") and problem in line for line in camera_lines(camera))
    assert camera_json(camera)["usable"] is False and camera_json(camera)["is_camera"] is is_camera
    assert kernel.open_count == 0


def test_the_csi_cameras_that_rpicam_lists():
    first, second = parse_csi(RPICAM, "rpicam-vid")
    assert (first.device, first.name, first.driver) == ("csi:0", "imx708", "rpicam-vid")
    assert first.formats[0].modes == ((1536, 864, (120.13,)), (2304, 1296, (56.03,)))
    assert (second.device, second.formats[0].name) == ("csi:1", "SGBRG10_CSI2P")
    assert camera_lines(second)[0] == "csi:1  ov5647 (driver rpicam-vid)"
    assert camera_lines(first)[2] == "    SRGGB10_CSI2P 1536x864 (120.1 frames/s), 2304x1296 (56.03 frames/s)"
    ntsc = first._replace(formats=(first.formats[0]._replace(modes=((720, 480, (30000 / 1001, 15.0)),)),))
    assert camera_json(ntsc)["formats"][0]["modes"] == [{"width": 720, "height": 480, "fps": [29.97, 15]}]
    assert parse_csi("No cameras available!", "rpicam-vid") == []


@pytest.fixture
def no_nodes(monkeypatch):
    monkeypatch.setattr(listing, "video_nodes", lambda: [])


def test_the_command_lists_csi_cameras(program, no_nodes, edgecnn):
    program("rpicam-vid", f"print({RPICAM!r}) if sys.argv[1:] == ['--list-cameras'] else sys.exit(9)")
    result = edgecnn("cameras", "--json")
    data = json.loads(result.out)
    assert [camera["device"] for camera in data["cameras"]] == ["csi:0", "csi:1"]
    assert data["programs"]["rpicam-vid"].endswith("rpicam-vid")
    assert data["programs"]["ffmpeg"] is None
    assert edgecnn("cameras").out.startswith("csi:0  imx708 (driver rpicam-vid)\n")


def test_the_command_names_what_is_missing(program, no_nodes, edgecnn):
    result = edgecnn("cameras")
    assert (result.code, result.out) == (0, "")
    for text in ("rpicam-apps", "apt install ffmpeg", "no /dev/video*"):
        assert text in result.err
    assert len(json.loads(edgecnn("cameras", "--json").out)["notes"]) == 3


HANGS = "time.sleep(60)"


@pytest.mark.parametrize(
    "body, note",
    [
        ("print('No cameras available!')", "No cameras available!. Check the ribbon cable"),
        (HANGS, "no answer in 0.05 s"),
        (None, "cannot be run"),
    ],
)
def test_a_csi_program_that_finds_nothing_hangs_or_fails_is_reported(program, no_nodes, monkeypatch, body, note):
    monkeypatch.setattr(listing, "ASK_S", 0.05 if body == HANGS else 60)
    path = program("rpicam-vid", body or "")
    if body is None:
        path.write_text("#!/no/such/interpreter\n")
    found = list_cameras()
    assert found.cameras == ()
    assert any(note in text for text in found.notes)


def test_another_system_is_reported(program, no_nodes, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert any("on Linux only; this is win32" in text for text in list_cameras().notes)
