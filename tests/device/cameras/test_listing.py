import errno
import json

import pytest

from edgecnn.device.cameras import listing
from edgecnn.device.cameras import v4l2_abi as abi
from edgecnn.device.cameras.listing import camera_json, camera_lines, list_cameras, node_camera, parse_csi

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
        (HANGS, "gave no answer within"),
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
