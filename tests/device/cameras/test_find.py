import subprocess
import sys

import pytest

from edgecnn.device import cameras
from edgecnn.device.cameras import find_camera, is_stream, kind_of, nodes, open_source
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
        monkeypatch.setattr(nodes, "video_nodes", lambda: list(node_paths))
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
    assert nodes.video_nodes(tmp_path) == [str(tmp_path / name) for name in ("video2", "video0", "video3", "video10")]
    assert nodes.names_by_id(tmp_path) == {
        str(tmp_path / "video2"): [str(by_id / "usb-cam-index0"), str(by_id / "usb-cam-index0-again")]
    }
    assert nodes.video_nodes(tmp_path / "none") == []
