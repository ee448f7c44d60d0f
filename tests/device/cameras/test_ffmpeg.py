import contextlib
import http.server
import os
import re
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.process import Ffmpeg, ffmpeg_arguments
from edgecnn.device.cameras.source import CameraLost, CameraSettings
from edgecnn.errors import CameraError

pytestmark = pytest.mark.usefixtures("leaks_nothing")

OWN = CameraSettings(width=0, height=0)
needs_ffmpeg = pytest.mark.needs("ffmpeg")
needs_server = pytest.mark.needs("vlc-wrapper", "setpriv", package="vlc-bin vlc-plugin-base util-linux")

FAKE = """
open({args!r}, "w").write("\\n".join(sys.argv[1:]))
header = b"P6\\n64 48\\n255\\n"
pixels = (b"\\xff\\0\\0" * 32 + b"\\0\\0\\xff" * 32) * 48
for _ in range(3): out.write(header + pixels)
out.flush()
{ending}
"""


@pytest.fixture
def fake(program, tmp_path):
    """Return a function that puts a fake ffmpeg on PATH and returns the file where it writes its arguments."""

    def put(ending=""):
        program("ffmpeg", FAKE.format(args=str(tmp_path / "args"), ending=ending))
        return tmp_path / "args"

    return put


def frames_of(text, settings=OWN):
    """Return (source, all its frames); the source is closed."""
    source = open_source(text, settings)
    try:
        frames = list(iter(lambda: source.read(30), None))
    finally:
        source.close()
    return source, frames


def test_a_password_goes_to_ffmpeg_but_into_no_name(fake):
    args = fake("print('rtsp://ann:se%20same@host/1: 401 Unauthorized', file=sys.stderr); sys.exit(1)")
    for address, settings in (
        ("rtsp://host/1", CameraSettings(user="ann", password="se same")),
        ("rtsp://ann:se%20same@host/1", OWN),
    ):
        with pytest.raises(CameraLost) as lost:
            frames_of(address, settings)
        assert str(lost.value).endswith("host/1 ended: exit code 1: rtsp://***@host/1: 401 Unauthorized.")
        assert "rtsp://ann:se%20same@host/1" in args.read_text().split("\n")
        assert "same" not in str(lost.value)


def test_a_video_file_ends(fake, tmp_path, cards):
    fake()
    clip = tmp_path / "clip.mp4"
    clip.touch()
    source, frames = frames_of(str(clip))
    assert [frame.sequence for frame in frames] == [0, 1, 2]
    assert all((frame.image == cards.pixels()).all() for frame in frames)
    assert (source.live, source.about) == (False, f"{clip}, video file through ffmpeg, 64x48")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm")
def test_a_video_file_in_shared_memory_is_no_device(fake):
    fake()
    with (
        tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".mp4") as clip,
        contextlib.closing(open_source(clip.name, OWN)) as source,
    ):
        assert not source.live


@pytest.mark.parametrize(
    "text, live",
    [
        ("rtsp://host/live", True),
        ("RTSP://host/live", True),
        ("http://host/stream", True),
        ("http://host/stream.mjpg", True),
        ("https://host/clip.mp4?key=1", False),
        ("ffmpeg:/dev/video3", True),
    ],
)
def test_the_end_of_a_stream_is_a_loss_but_that_of_a_recording_is_an_end(fake, text, live):
    fake()
    source = open_source(text, OWN)
    assert source.live == live
    try:
        for _ in range(3):
            source.read(30)
        if live:
            with pytest.raises(CameraLost, match="ended: exit code 0"):
                source.read(30)
        else:
            assert source.read(30) is None
    finally:
        source.close()


def test_a_damaged_video_file_is_a_loss_with_ffmpegs_message(fake, tmp_path):
    fake("print('moov atom not found', file=sys.stderr); sys.exit(1)")
    (tmp_path / "clip.mkv").touch()
    with pytest.raises(CameraLost, match="exit code 1: moov atom not found") as caught:
        frames_of(str(tmp_path / "clip.mkv"))
    assert caught.value.reason == "ended"


def test_bytes_that_are_not_frames_are_garbage(program, tmp_path):
    program("ffmpeg", "out.write(b'<html>')")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(CameraLost, match="not a PPM image") as caught:
        frames_of(str(tmp_path / "clip.mp4"))
    assert caught.value.reason == "garbage"


def test_without_ffmpeg_the_error_explains_how_to_install_it(program, tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(CameraError, match="sudo apt install ffmpeg"):
        open_source(str(tmp_path / "clip.mp4"), OWN)


def test_a_missing_or_unreadable_video_file_is_an_immediate_error(tmp_path, monkeypatch):
    with pytest.raises(CameraError, match="no such video file"):
        open_source(str(tmp_path / "clip.mp4"), OWN)
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(CameraError, match="no permission"):
        open_source(str(tmp_path / "clip.mp4"), OWN)


def test_ffmpeg_gets_low_delay_and_the_requested_settings():
    asked = CameraSettings(width=320, height=240, fps=10)
    stream = " ".join(ffmpeg_arguments("rtsp://h/s", asked, False))
    assert "-fflags nobuffer -flags low_delay -rtsp_flags prefer_tcp" in stream
    for recording in ("clip.mp4", "https://h/clip.mp4?key=1", "https://h/live.m3u8"):
        assert "low_delay" not in ffmpeg_arguments(recording, asked, False)
    device = " ".join(ffmpeg_arguments("/dev/video0", asked, True))
    assert "-f v4l2 -video_size 320x240 -framerate 10" in device
    assert device.index("-framerate") < device.index("-i /dev/video0")
    assert "file:-odd:name.mp4" in ffmpeg_arguments("-odd:name.mp4", asked, False)


@pytest.mark.parametrize(
    ("source", "playlist"),
    [
        ("https://h/a.m3u8?key=1", "hls"),
        ("https://h/a.MPD", "dash"),
        ("https://h/a.mp4", None),
        ("rtsp://h/a", None),
        ("a.m3u8", None),
    ],
)
def test_only_a_playlist_that_the_user_names_by_its_address_may_lead_elsewhere(source, playlist):
    given = ffmpeg_arguments(source, OWN, False)
    protocols, formats = (
        set(given[given.index(f"-{kind}_whitelist") + 1].split(",")) for kind in ("protocol", "format")
    )
    assert formats & {"hls", "dash"} == ({playlist} if playlist else set())
    assert protocols & {"crypto", "data"} == ({"crypto", "data"} if playlist else set())


def test_frames_are_shrunk_to_just_cover_the_requested_size_and_dropped_above_the_rate():
    """The filters' own expressions, evaluated here for a video of 128x96."""

    def shrunk(**settings):
        own = ffmpeg_arguments("clip.mp4", CameraSettings(**settings), False)
        size = re.search(r"scale=w='(.+?)':h='(.+?)'", own[own.index("-vf") + 1])
        names = {"iw": 128, "ih": 96, "__builtins__": {"round": round, "min": min, "max": max}}
        return tuple(eval(expression, names) for expression in size.groups())

    for asked, size in (
        ((640, 480), (128, 96)),
        ((40, 40), (53, 40)),
        ((64, 10), (64, 48)),
        ((64, 0), (64, 48)),
        ((0, 24), (32, 24)),
    ):
        assert shrunk(width=asked[0], height=asked[1]) == size
    assert "scale" not in " ".join(ffmpeg_arguments("clip.mp4", OWN, False))
    filters = " ".join(ffmpeg_arguments("clip.mp4", CameraSettings(fps=4), False))
    assert float(re.search(r"gte\(t-prev_selected_t,([\d.]+)\)", filters)[1]) == pytest.approx(1 / 4, rel=0.01)


def test_the_addresss_own_user_and_password_count_first():
    asked = CameraSettings(user="ann", password="p@x")
    for address, opened in (
        ("rtsp://bob@host:554/1", "rtsp://bob:p%40x@host:554/1"),
        ("rtsp://host:554/1", "rtsp://ann:p%40x@host:554/1"),
        ("rtsp://bob:own@host/1", "rtsp://bob:own@host/1"),
    ):
        assert opened in ffmpeg_arguments(address, asked, False)
    with pytest.raises(CameraError, match=r"^rtsp://\[::1/1: not a valid address"):
        ffmpeg_arguments("rtsp://[::1/1", asked, False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of the card, 128x96, 30 frames at 30 frames/s, frame N with a grey bar of level 8 N at the bottom, lossless H.264."""
    path = tmp_path_factory.mktemp("clips") / "a clip: 100%.mp4"
    frames = np.zeros((30, 96, 128, 3), np.uint8)
    frames[:, :, :64, 0] = frames[:, :, 64:, 2] = 255
    frames[:, 80:] = (8 * np.arange(30, dtype=np.uint8))[:, None, None, None]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x96", "-r", "30", "-i", "-"]
    command = ["ffmpeg", "-loglevel", "error", *source, "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p"]
    subprocess.run([*command, f"file:{path}"], input=frames.tobytes(), check=True)
    return path


@needs_ffmpeg
def test_a_real_video_arrives_complete_in_order_and_in_colour(clip, cards):
    source, frames = frames_of(str(clip))
    assert len(frames) == 30
    for number, frame in enumerate(frames):
        assert frame.image.shape == (96, 128, 3)
        assert abs(int(frame.image[90, 60].mean()) - 8 * number) <= 3
        cards.check(frame.image[:70])
    assert source.about.endswith("through ffmpeg, 128x96")


@needs_ffmpeg
@pytest.mark.parametrize(
    "settings, size, count",
    [
        (CameraSettings(), (96, 128), 30),  # never larger
        (CameraSettings(width=40, height=40), (40, 53), 30),  # just covers the requested size, at its own aspect ratio
        (CameraSettings(width=64, height=0, fps=10), (48, 64), 10),
        (CameraSettings(width=0, height=24, fps=60), (24, 32), 30),  # no frame is invented
    ],
)
def test_size_and_rate_are_requested(clip, settings, size, count):
    _, frames = frames_of(str(clip), settings)
    assert frames[0].image.shape == (*size, 3)
    assert len(frames) == count


@needs_ffmpeg
def test_each_picture_of_a_slow_clip_arrives_once(tmp_path):
    path = tmp_path / "clip.avi"
    pictures = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=1", "-frames:v", "4"]
    subprocess.run(["ffmpeg", "-loglevel", "error", *pictures, "-c:v", "mpeg4", path], check=True)
    assert len(frames_of(str(path))[1]) == 4


class Web(http.server.BaseHTTPRequestHandler):
    """Answers with the server's body, endlessly if it is `endless`; records what was requested and sent."""

    def do_GET(self):
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", self.server.type)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(self.server.body)
            while self.server.endless:
                self.wfile.write(bytes(1 << 16))
                self.server.sent += 1 << 16

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    """Return a function that starts such a server."""
    servers = []

    def start(kind, body, endless=False):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
        server.type, server.body, server.endless, server.requests, server.sent = kind, body, endless, [], 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.endless = False
        server.shutdown()
        server.server_close()


@needs_ffmpeg
def test_a_camera_that_sends_a_playlist_makes_ffmpeg_contact_no_other_host(web):
    other = web("video/mp2t", b"")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other.address}/other.ts\n#EXT-X-ENDLIST\n"
    camera = web("application/vnd.apple.mpegurl", playlist.encode())
    with pytest.raises(CameraLost, match="ended"):
        frames_of(f"{camera.address}/stream")
    assert (camera.requests[0], other.requests) == ("/stream", [])


@needs_ffmpeg
def test_an_endless_picture_does_not_fill_the_memory(web, monkeypatch, children):
    monkeypatch.setattr(Ffmpeg, "memory", 80 << 20)
    kind, start = (
        "multipart/x-mixed-replace;boundary=part",
        b"--part\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\xff\xe0",
    )
    camera = web(kind, start, endless=True)
    before = children()
    source = open_source(f"{camera.address}/stream", OWN)
    (child,) = children() - before
    most, deadline = 0, time.monotonic() + 30
    try:
        while most < 120 << 10 and camera.sent < 140 << 20 and time.monotonic() < deadline:
            most = int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{child}/status").read_text())[1])
            with contextlib.suppress(CameraLost):
                source.read(0.02)
    finally:
        source.close()
    assert 0 < most < 120 << 10


@needs_ffmpeg
def test_a_file_that_is_not_a_video_is_a_loss_that_says_so(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(CameraLost, match="Invalid data") as caught:
        frames_of(str(path))
    assert caught.value.reason == "ended"


@needs_ffmpeg
def test_a_video_file_of_motion_jpeg(tmp_path, cards):
    path = tmp_path / "clip.mjpeg"
    path.write_bytes(cards.jpeg() * 3)
    _, frames = frames_of(str(path))
    assert len(frames) == 3
    cards.check(frames[2].image)


@needs_ffmpeg
def test_an_rtsp_address_without_a_server_is_a_loss_that_says_so(free_port):
    with pytest.raises(CameraLost, match="refused"):
        frames_of(f"rtsp://127.0.0.1:{free_port()}/s")


@pytest.fixture
def open_folder():
    """A folder that every user can read, as pytest's own cannot."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@needs_ffmpeg
@needs_server
def test_a_real_rtsp_server(clip, cards, open_folder, free_port):
    """VLC sends only over UDP: TCP is tried first and refused. VLC does not run as root."""
    served = open_folder / "served.mp4"
    command = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-stream_loop",
        "5",
        "-i",
        f"file:{clip}",
        "-c:v",
        "libx264",
        "-g",
        "10",
        "-bf",
        "0",
    ]
    subprocess.run([*command, "-pix_fmt", "yuv420p", f"file:{served}"], check=True)
    port = free_port()
    user = ["setpriv", "--reuid=65534", "--clear-groups"] if os.getuid() == 0 else []
    output = f"#rtp{{sdp=rtsp://127.0.0.1:{port}/s}}"
    server = subprocess.Popen(
        [*user, "vlc-wrapper", "-I", "dummy", "--no-audio", "--loop", str(served), "--sout", output],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(open_folder)},
    )  # fmt: skip
    try:
        wait_for(port, server)
        source = open_source(f"rtsp://127.0.0.1:{port}/s", OWN)
        try:
            frames = [source.read(30) for _ in range(3)]
        finally:
            source.close()
    finally:
        server.kill()
        server.wait()
    assert source.live
    for frame in frames:
        assert frame.image.shape == (96, 128, 3)
        cards.check(frame.image[:70])


class RtspServer(threading.Thread):
    """An RTSP server for one client, only over TCP: repeats an H.264 byte stream, faster than it plays, until the client leaves."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.units = [unit for unit in re.split(b"\0\0\0?\1", stream) if unit]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self.listener.getsockname()[1]}/card"
        self.transports = []

    def run(self):
        with self.listener, self.listener.accept()[0] as client, client.makefile("rb") as requests:
            while request := self.receive(requests):
                method, fields = request
                client.sendall(self.answer(method, fields).encode())
                if method == "PLAY":
                    break
            with contextlib.suppress(OSError):  # the client leaves once it has seen enough
                self.play(client)

    def receive(self, requests):
        lines = list(iter(lambda: requests.readline().decode().strip(), ""))
        return (lines[0].split()[0], dict(line.split(": ", 1) for line in lines[1:])) if lines else None

    def answer(self, method, fields):
        head, body = [f"CSeq: {fields['CSeq']}", "Session: 1"], ""
        if method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=card\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
            body += "a=fmtp:96 packetization-mode=1\r\na=control:video\r\n"
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        if method == "SETUP":
            self.transports.append(fields["Transport"])
            head.append(f"Transport: {fields['Transport']}")
        if method == "OPTIONS":
            head.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        return "\r\n".join(["RTSP/1.0 200 OK", *head, "", body])

    def play(self, client):
        number = picture = 0
        while True:
            for unit in self.units:
                ends_picture = unit[0] & 31 in (1, 5)
                header = struct.pack(">BBHII", 0x80, 96 | ends_picture << 7, number & 0xFFFF, picture * 3600, 1)
                client.sendall(struct.pack(">cBH", b"$", 0, len(header) + len(unit)) + header + unit)
                number += 1
                if ends_picture:
                    picture += 1
                    time.sleep(0.005)


@needs_ffmpeg
def test_rtsp_over_tcp_if_the_server_supports_it(clip, cards):
    command = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-i",
        f"file:{clip}",
        "-c:v",
        "libx264",
        "-x264-params",
        "slices=1:keyint=5:bframes=0",
    ]
    encoded = subprocess.run(
        [*command, "-pix_fmt", "yuv420p", "-f", "h264", "pipe:1"], check=True, capture_output=True
    ).stdout
    server = RtspServer(encoded)
    server.start()
    source = open_source(server.address, OWN)
    try:
        frames = [source.read(30) for _ in range(3)]
    finally:
        source.close()
        server.join(10)
    assert server.transports == ["RTP/AVP/TCP;unicast;interleaved=0-1"]
    for frame in frames:
        cards.check(frame.image[:70])


def wait_for(port, server):
    """Wait until a server listens on a port."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    pytest.fail("the server does not listen")
