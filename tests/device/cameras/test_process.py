import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.process import Process
from edgecnn.device.cameras.source import CameraLost, CameraSettings, MjpegSplitter
from edgecnn.errors import CameraError

SETTINGS = CameraSettings()
FOREVER = "while True: out.write(jpeg); out.flush(); time.sleep(0.005)\n"

pytestmark = pytest.mark.usefixtures("leaks_nothing")


@pytest.fixture
def opened():
    """Return a function that opens a source; the source is closed afterwards."""
    sources = []

    def open_it(text, settings=SETTINGS):
        sources.append(open_source(text, settings))
        return sources[-1]

    yield open_it
    for source in sources:
        before = time.monotonic()
        source.close()
        source.close()
        assert time.monotonic() - before < 5  # a second, plus what a busy machine adds


@contextlib.contextmanager
def peak_below(limit):
    """Check that this process never allocates more than `limit` additional bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def lost(source, timeout=10.0):
    """Read until the source is lost and return (frames, CameraLost)."""
    frames = []
    with pytest.raises(CameraLost) as caught:
        while True:
            frames.append(source.read(timeout))
    return frames, caught.value


def test_a_command_streams_mjpeg(program, opened, cards):
    program("camera", FOREVER)
    source = opened("exec:camera --rate 'a b'")
    frames = [source.read(10) for _ in range(20)]
    assert [frame.sequence for frame in frames] == list(range(20))
    assert all(frame.image == cards.jpeg() for frame in frames)
    assert (source.name, source.live) == ("exec:camera --rate 'a b'", True)
    assert source.about == "exec:camera --rate 'a b', MJPEG, 64x48"


def test_the_command_gets_its_arguments_without_a_shell(program, opened, tmp_path):
    program(
        "camera",
        f"open({str(tmp_path / 'said')!r}, 'w').write(repr((sys.argv[1:], sys.stdin.read()))); out.write(jpeg)",
    )
    opened("exec:camera 'two words' $HOME; rm").read(10)
    assert (tmp_path / "said").read_text() == "(['two words', '$HOME;', 'rm'], '')"


@pytest.mark.parametrize(
    "text, message",
    [
        ("exec:no-such-program -x", "program 'no-such-program' not found"),
        ("exec:", "has no command"),
        ("exec:camera 'open", "quotation"),
        ("exec:./folder", "cannot be run"),
    ],
)
def test_a_command_that_cannot_run_reports_why(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(CameraError, match=message):
        open_source(text, SETTINGS)


@pytest.mark.parametrize(
    "ending, message",
    [
        ("sys.exit(0)", "ended: exit code 0"),
        (
            "print('first', file=sys.stderr); print('no \\x1b[1mcamera', file=sys.stderr); sys.exit(255)",
            r"exit code 255: no  \[1mcamera",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"ended: killed \(SIGKILL\)"),
    ],
)
def test_a_command_that_ends_is_lost_with_its_last_output(program, opened, ending, message):
    program("camera", f"out.write(jpeg * 3); out.flush()\n{ending}")
    frames, loss = lost(opened("exec:camera"))
    assert len(frames) == 3
    assert loss.reason == "ended"
    program("camera", ending)
    frames, loss = lost(opened("exec:camera"))
    assert frames == []
    assert "before its first frame" in str(loss)
    assert re.search(message, str(loss))


def test_a_command_that_closes_its_output_but_keeps_running_is_lost(program, opened, monkeypatch):
    monkeypatch.setattr("edgecnn.device.cameras.process.TERMINATE_S", 0.02)
    program("camera", "out.write(jpeg); out.flush(); os.close(1); time.sleep(60)")
    frames, loss = lost(opened("exec:camera"))
    assert (len(frames), loss.reason) == (1, "ended")
    assert "closed its output" in str(loss)


@pytest.mark.parametrize("before", ["", "out.write(jpeg[:-9]); out.flush(); "])
def test_a_command_that_stalls_may_continue(program, opened, tmp_path, before):
    go = tmp_path / "go"
    program(
        "camera",
        f"print('warming up', file=sys.stderr, flush=True)\n{before}\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        + FOREVER,
    )
    source = opened("exec:camera")
    with pytest.raises(CameraLost) as caught:
        source.read(0.05)
    assert caught.value.reason == "stall"
    go.touch()
    assert source.read(10).sequence == 0
    assert source.damaged == bool(before)


def test_a_stall_reports_the_processs_output(program, opened):
    program("camera", "print('waiting for the sensor', file=sys.stderr, flush=True); time.sleep(60)")
    source = opened("exec:camera")
    deadline = time.monotonic() + 10
    said = ""
    while "waiting for the sensor" not in said and time.monotonic() < deadline:
        with pytest.raises(CameraLost) as caught:
            source.read(0.05)
        said = str(caught.value)
    assert "waiting for the sensor" in said


@pytest.mark.parametrize("flood", ["b'x' * 65536", "jpeg[:-20]"])
def test_a_flood_of_garbage_is_lost_and_memory_stays_bounded(program, opened, monkeypatch, flood):
    monkeypatch.setattr(MjpegSplitter.__init__, "__defaults__", (1 << 17, 1 << 19))
    program("camera", f"while True: out.write({flood})")
    with peak_below(1 << 20):
        frames, loss = lost(opened("exec:camera"))
    assert (frames, loss.reason) == ([], "garbage")
    assert str(loss).startswith("exec:camera: ")


def test_a_flood_of_frames_waits_in_the_pipe(program, opened):
    program("camera", "while True: out.write(jpeg)")
    source = opened("exec:camera")
    with peak_below(1 << 20):
        for number in range(300):
            assert source.read(10).sequence == number


def test_a_flood_of_log_lines_neither_stops_frames_nor_fills_memory(program, opened):
    program("camera", "while True: os.write(2, b'warning ' * 5000 + b'\\n'); out.write(jpeg); out.flush()")
    source = opened("exec:camera")
    with peak_below(1 << 20):
        for _ in range(50):
            source.read(10)


def test_close_ends_a_process_that_ignores_sigterm_and_its_children(program, opened, tmp_path, monkeypatch, gone):
    monkeypatch.setattr("edgecnn.device.cameras.process.TERMINATE_S", 0.02)
    pids = tmp_path / "pids"
    program(
        "camera",
        f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        child = os.fork()
        if child:
            open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child}}")
            out.write(jpeg)
            out.flush()
        while True:
            time.sleep(1)
        """,
    )
    source = opened("exec:camera")
    source.read(10)
    processes = [int(text) for text in pids.read_text().split()]
    for process in processes:
        os.kill(process, 0)
    source.close()
    gone(*processes)
    with pytest.raises(CameraLost, match="closed"):
        source.read(1)


def test_a_process_reaped_elsewhere_still_counts_as_ended(program, children):
    program("camera", "sys.exit(0)")
    before = children()
    process = Process(["camera"])
    assert process.read(time.monotonic() + 10) == b""
    os.waitpid(*(children() - before), 0)
    assert process.ended()[0] == 0
    process.close()


def test_many_openings_leave_nothing_behind(program):
    program("camera", FOREVER)
    for _ in range(10):
        source = open_source("exec:camera", SETTINGS)
        source.read(10)
        source.close()


def test_the_csi_camera_gets_size_and_rate_without_a_limit(program, opened, tmp_path, cards):
    program("rpicam-vid", f"open({str(tmp_path / 'args')!r}, 'w').write(' '.join(sys.argv[1:]))\n" + FOREVER)
    source = opened("csi:1", CameraSettings(width=800, height=600, fps=12.5))
    assert source.read(10).image == cards.jpeg()
    assert source.about == "CSI camera 1 through rpicam-vid, MJPEG, 64x48"
    assert (source.name, source.live) == ("csi:1", True)
    expected = "-t 0 -n --codec mjpeg -q 90 --flush -o - --camera 1 --width 800 --height 600 --framerate 12.5"
    assert (tmp_path / "args").read_text() == expected


def test_the_csi_camera_under_the_older_programs_name(program, opened):
    program("libcamera-vid", FOREVER)
    source = opened("csi:")
    source.read(10)
    assert source.about.startswith("CSI camera 0 through libcamera-vid")


def test_a_missing_csi_camera_is_lost_with_the_programs_message(program, opened):
    program("rpicam-vid", "print('ERROR: *** no cameras available ***', file=sys.stderr); sys.exit(255)")
    _, loss = lost(opened("csi:0"))
    assert "csi:0 ended: exit code 255: ERROR: *** no cameras available ***" in str(loss)


@pytest.mark.parametrize("text, message", [("csi:0", "rpicam-apps"), ("csi:front", "a camera's number")])
def test_an_invalid_csi_camera(program, text, message):
    with pytest.raises(CameraError, match=message):
        open_source(text, SETTINGS)


DIES = """
import os, signal
from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraSettings
source = open_source("exec:camera", CameraSettings())
source.read(10)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_orphan_ends_at_its_next_frame(program, tmp_path, gone):
    """If we die without closing, the process hits a closed pipe."""
    program("camera", f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n" + FOREVER)
    ended = subprocess.run([sys.executable, "-c", DIES], stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    gone((tmp_path / "pid").read_text())
