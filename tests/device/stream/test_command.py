"""`edgecnn classify` on streams."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import termios
import time

import jsonschema
import numpy as np
import pytest
from PIL import Image

from edgecnn.cli.classify_stream import event_text
from edgecnn.device import cameras
from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings
from edgecnn.device.keep.keeper import INDEX
from edgecnn.device.stream.events import CameraOpenedEvent
from edgecnn.errors import CameraError
from edgecnn.runtime.default import SHIPPED
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

FAKE = """
import os, sys, time
import numpy as np
import edgecnn.cli
from edgecnn.cli import classify_stream
from edgecnn.device import cameras
from edgecnn.device.cameras.source import CameraLost, Frame
from edgecnn.errors import CameraError

state = {state!r}
opened = 0

class Fake:
    name, about, live, patient = "fake", "a fake camera", True, False
    count = damaged = 0

    def read(self, timeout):
        if state == "reading":
            say()
            time.sleep(1000)  # in the driver, deaf to the timeout
        if self.count == 3 and state == "backoff":
            raise CameraLost("unplugged", "the device went away")
        time.sleep(0.01)
        self.count += 1
        return Frame(self.count - 1, time.monotonic(), np.full((48, 64, 3), 60, np.uint8))

    def close(self):
        if state == "closing":
            time.sleep(1000)
        os.write(2, b"CLOSED\\n")

def say():
    os.write(2, b"READY\\n")

def open_source(text, settings):
    global opened
    opened += 1
    if state == "opening":
        say()
        time.sleep(1000)
    if state == "backoff" and opened > 1:
        say()
        raise CameraError("fake: not there.")
    return Fake()

cameras.open_source = open_source
classify_stream.READER_EVERY_S = 0.05
if state == "saving":
    def fsync(descriptor):
        say()
        time.sleep(1000)
    os.fsync = fsync
sys.argv = ["edgecnn", "classify", "/dev/video9", "--duration", "40", *{arguments!r}]
edgecnn.cli.console_script()
"""


@pytest.fixture
def start(root, tmp_path, spawn):
    """Start `edgecnn classify` on a fake camera in a given state, or on a real source if no state is given."""

    def call(state, *arguments, **options):
        code = (
            ["-c", FAKE.format(state=state, arguments=arguments)]
            if state
            else ["-m", "edgecnn", "classify", *arguments]
        )
        environment = {**os.environ, "PYTHONPATH": str(root), "XDG_DATA_HOME": "none"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return spawn([sys.executable, *code], cwd=tmp_path, env=environment, **options)

    return call


@pytest.fixture
def classify(edgecnn, monkeypatch):
    """Run `edgecnn classify` in this process, and check its exit code."""
    monkeypatch.setenv("XDG_DATA_HOME", "none")

    def call(*arguments, code=0):
        done = edgecnn("classify", *arguments)
        assert done.code == code, done.err
        return done

    return call


@pytest.fixture(scope="module")
def parse(schema_of):
    """Check JSON lines against the schema, and return them parsed."""
    validator = jsonschema.Draft202012Validator(schema_of("result"))

    def lines(output):
        parsed = [json.loads(line) for line in output.splitlines()]
        for line in parsed:
            validator.validate(line)
        return parsed

    return lines


def finish(process, code):
    """Wait for the end; return standard output and error."""
    out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err and b"Exception ignored" not in err, err.decode()
    assert process.returncode == code, err.decode()
    return out, err.decode()


def wait_for(stream, text):
    """Read lines until one has the text; return all of them."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} did not come: {lines}")


def test_a_source_without_text_is_named_once():
    source = open_source("synthetic:", CameraSettings())
    opened = CameraOpenedEvent(ts=0.0, source=source.name, about=source.about, live=source.live)
    assert event_text(opened) == "camera: synthetic: synthetic frames: bars, 640x480"


def test_a_stream_that_ends(classify, parse):
    done = classify("synthetic:64x48?frames=4", "--json", "--top-k", "1", "--rotate", "90", "--smooth", "5")
    lines = parse(done.out)
    assert [line.get("event") for line in lines] == ["camera_opened", None, None, None, None, "ended"]
    assert len(lines[1]["top"]) == 1 and lines[-1]["frames"] == 4
    assert f"{SHIPPED}.edgecnn" in done.err


def test_lines_for_people_and_kept_frames(classify, tmp_path):
    unsure = ("--threshold", "1", "--keep", "kept", "--keep-random", "0")
    done = classify("synthetic:64x48?frames=4", "--smooth", "4", *unsure)
    assert len(list((tmp_path / "kept").glob("*/*.jpg"))) == 1, "one per second, although the source is not a camera"
    (line,) = done.out.splitlines()
    assert line[:2] == "20" and line.endswith("Z abstain (below_threshold)")
    assert "synthetic frames" in done.err and "ended (end of source): 4 frames, 0 dropped, 0 damaged" in done.err


def test_frames_and_their_maps_are_kept_in_separate_folders(classify, tmp_path):
    unsure = ("--threshold", "1", "--keep", "kept", "--keep-random", "0", "--explain", "maps")
    classify("synthetic:64x48?frames=1", "--rotate", "90", *unsure)
    (kept,) = (tmp_path / "kept").glob("*/*.jpg")
    (map_,) = (tmp_path / "maps").glob("*/*.png")
    assert map_.relative_to(tmp_path / "maps").with_suffix(".jpg") == kept.relative_to(tmp_path / "kept")
    with Image.open(map_) as picture:
        assert picture.size == (2 * 256 + 8, 256 + 2 * 19 + 8)


def test_maps_are_kept_apart_from_training_images(classify, tmp_path):
    (tmp_path / "link").symlink_to("kept")
    for folder in ("kept", "kept/maps", "./x/../kept", "link"):
        refused = classify("synthetic:?frames=1", "--keep", "kept", "--explain", folder, code=2)
        assert "--explain" in refused.err and "--keep" in refused.err


@pytest.mark.parametrize("source", ["fake", "--camera"])
def test_an_unavailable_camera(classify, parse, fake, monkeypatch, source):
    monkeypatch.setattr(cameras, "open_source", lambda *_: fake.Opener(CameraError("fake: busy.\x1b"))())
    monkeypatch.setattr(cameras, "find_camera", lambda *_: fake.Opener(CameraError("fake: busy.\x1b"))())
    done = classify("/dev/video9" if source == "fake" else source, "--json", code=CameraError.exit_code)
    assert [line["event"] for line in parse(done.out)] == ["ended"]
    assert "edgecnn: error: fake: busy.\\x1b" in done.err


def test_no_camera(classify):
    assert "edgecnn: error: no camera found" in classify("--camera", code=CameraError.exit_code).err


PIXELS = np.full((48, 64, 3), 60, np.uint8)


def test_unplugged_and_plugged_in_again(classify, parse, fake, monkeypatch):
    monkeypatch.setattr("edgecnn.device.stream.feed.BACKOFF_S", (0,))
    gone, back = fake.Source(PIXELS, CameraLost("unplugged", "the device went away")), fake.Source(PIXELS, None)
    opener = fake.Opener(gone, back)
    monkeypatch.setattr(cameras, "open_source", lambda *_: opener())
    lines = parse(classify("/dev/video9", "--json").out)
    assert [line.get("event") for line in lines if "top" not in line] == [
        "camera_opened", "state_changed", "camera_lost", "state_changed", "camera_back", "state_changed", "ended",
    ]  # fmt: skip
    assert lines[-1]["reason"] == "end_of_source" and gone.closed.is_set() and back.closed.is_set()


def test_a_truncated_frame_is_an_event(classify, parse, fake, monkeypatch):
    source = fake.Source(PIXELS, b"\xff\xd8\xff", PIXELS, None)
    monkeypatch.setattr(cameras, "open_source", lambda *_: source)
    lines = parse(classify("/dev/video9", "--json").out)
    kinds = [line.get("event") for line in lines]
    assert "frame_damaged" in kinds and "camera_lost" not in kinds and kinds[-1] == "ended"
    assert (lines[-1]["frames"], lines[-1]["damaged"]) == (2, 1)


def test_a_signal_ends_it_in_every_state(start, tmp_path):
    states = {
        "opening": signal.SIGTERM,
        "reading": signal.SIGINT,
        "backoff": signal.SIGHUP,
        "classifying": signal.SIGTERM,
        "closing": signal.SIGHUP,
        "saving": signal.SIGINT,
    }
    started = {}
    for state in states:
        saves = ["--keep", "kept", "--keep-margin", "1"] if state == "saving" else []
        started[state] = start(state, "--json", "--warm-up", "0", *saves)
    for state, process in started.items():
        if state in ("classifying", "closing"):
            wait_for(process.stdout, b'"seq"')
        else:
            wait_for(process.stderr, b"READY")
    sent = time.monotonic()
    for state, number in states.items():
        started[state].send_signal(number)
    for state, process in started.items():
        out, err = finish(process, 128 + states[state])
        if state in ("classifying", "saving"):
            assert "CLOSED" in err
            assert json.loads(out.splitlines()[-1])["reason"] == "signal"
    assert time.monotonic() - sent < 10, "a second, plus what a busy machine adds"
    assert not list(tmp_path.rglob("*.tmp"))


def test_under_nohup_a_closed_terminal_does_not_end_it(start):
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start("classifying", "--json", "--warm-up", "0", **ignore)
    wait_for(process.stdout, b'"seq"')
    process.send_signal(signal.SIGHUP)
    for _ in range(3):
        wait_for(process.stdout, b'"seq"')
    process.terminate()
    finish(process, 143)


def test_a_command_at_each_change_and_a_signal_while_it_runs(start, tmp_path):
    say = 'sh -c \'echo "$EDGECNN_STATE $EDGECNN_PREVIOUS" >> said; echo $$ > pid; [ -z "$EDGECNN_STATE" ] || exec sleep 1000\''
    process = start("classifying", "--json", "--warm-up", "0", "--on-change", say)
    wait_for(process.stdout, b"state_changed")
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    finish(process, 143)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert len((tmp_path / "said").read_text().splitlines()) == 1


def test_the_last_state_of_an_ending_stream_is_still_reported(classify, tmp_path):
    say = "sh -c 'echo \"$EDGECNN_STATE\" >> said; exit 7'"
    done = classify("synthetic:64x48?frames=2", "--on-change", say, "--json")
    assert len((tmp_path / "said").read_text().splitlines()) >= 1
    assert '"command_failed"' in done.out and "exit code 7" in done.out


def test_a_disk_too_full_for_unsure_frames(start, parse, tmp_path):
    """Files limited to 100 bytes: an event, and the loop continues."""
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))}
    arguments = ("--keep", "kept", "--keep-margin", "1", "--json")
    out, _ = finish(start(None, "synthetic:64x48?frames=20", *arguments, **limit), 0)
    lines = parse(out)
    (failed,) = (line for line in lines if line.get("event") == "save_failed")
    assert "kept" in failed["message"] and lines[-1]["frames"] == 20
    assert {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()} <= {INDEX}


def until_full(reading):
    """Wait until nothing more arrives in a pipe."""
    before, since = 0, time.monotonic()
    while not before or time.monotonic() < since + 0.15:
        held = int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder)
        if held != before:
            before, since = held, time.monotonic()
        time.sleep(0.02)


def test_a_signal_while_nobody_reads_standard_output(start):
    """The pipe is full: the line that waits for its reader does not hold up the process."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = start("classifying", "--json", "--warm-up", "0", stdout=writing)
    os.close(writing)
    until_full(reading)
    process.terminate()
    _, err = process.communicate(timeout=20)
    os.close(reading)
    assert process.returncode == 143 and b"CLOSED" in err and b"Traceback" not in err


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_reader_that_is_gone(start, arguments):
    process = start("classifying", *arguments)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = finish(process, 141)
    assert "CLOSED" in err


def test_a_full_disk_behind_standard_output(start):
    with open("/dev/full", "wb") as full:
        _, err = finish(start("classifying", "--json", stdout=full), 19)
    assert "cannot write standard output" in err and "CLOSED" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--camera", "photo.jpg"], "--camera"),
        (["/dev/video0", "photo.jpg"], "one stream"),
        (["synthetic:", "--size", "big"], "--size"),
        (["synthetic:", "--rotate", "45"], "--rotate"),
        (["synthetic:", "--smooth", "most"], "--smooth"),
        (["synthetic:", "--fit", "squeeze"], "--fit"),
        (["synthetic:", "--provider", "cudda"], "'cudda'"),
        (["photo.jpg", "--provider", "XNNPACK"], "'XNNPACK'"),
        (["synthetic:", "--on-change", "no-such-program"], "--on-change"),
        (["synthetic:", "--on-change", "sh '"], "--on-change"),
        (["photo.jpg", "--max-age", "5"], "--max-age"),
        (["photo.jpg", "--smooth", "1"], "--smooth"),
        (["photo.jpg", "--explain", "maps"], "--explain"),
        ([], "--camera"),
    ],
)
def test_usage_errors(edgecnn, arguments, named):
    result = edgecnn("classify", *arguments)
    assert result.code == 2 and named in result.err


LONG = """
import json, os, sys, threading, time
from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings
from edgecnn.device.stream.feed import Feed
from edgecnn.device.stream.events import Event
from edgecnn.device.stream.events import event_line, result_line
from edgecnn.device.stream.loop import Stream
from edgecnn.device.stream.settings import Pace
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import Smoother

frames, size = int(sys.argv[1]), sys.argv[2]
each = frames // 20
opened = 0

def open_it():
    global opened
    opened += 1
    if opened > 20:
        return open_source("synthetic:32x32?frames=1", CameraSettings())
    source = open_source(f"synthetic:{size}?pattern=noise&seed={opened}", CameraSettings())
    read = source.read
    left = iter(range(each))
    def lose(timeout):
        if next(left, None) is None:
            raise CameraLost("io_error", "EIO")
        return read(timeout)
    source.read = lose
    return source

def usage():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {"mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": len(os.listdir("/proc/self/fd"))}

count = lost = 0
early = None
out = open(os.devnull, "w")
classifier = Classifier.load()
feed = Feed(open_it, sleep=lambda wait: None)
before = time.monotonic()
stream = Stream(feed, classifier.classify, Pace(), Smoother.parse("majority:5"))
for item in stream:
    if isinstance(item, Event):
        print(event_line(item), file=out, flush=True)
        lost += item.kind == "camera_lost"
        continue
    print(result_line(item, ("pets", "0" * 64)), file=out, flush=True)
    count += 1
    if count == frames // 4:
        early = usage()
seconds = time.monotonic() - before
feed._thread.join(10)
late = usage()
print(json.dumps({"frames": stream.frames, "dropped": stream.dropped, "lost": lost, "early": early, "late": late,
                  "threads": threading.active_count(), "seconds": seconds}))
"""


def run(root, tmp_path, frames, size):
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_DATA_HOME": "none"}
    arguments = [sys.executable, "-c", LONG, str(frames), size]
    result = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    print(report)
    assert (report["frames"], report["dropped"], report["lost"]) == (frames + 1, 0, 20)
    assert report["threads"] == 1
    assert report["late"]["files"] <= report["early"]["files"]
    assert report["late"]["mib"] - report["early"]["mib"] < 3, "MiB more than after a quarter of the frames"


@pytest.mark.slow
def test_a_few_thousand_frames_and_twenty_losses(root, tmp_path):
    run(root, tmp_path, 4_000, "32x32")


@pytest.mark.slow
def test_two_hours_of_frames(root, tmp_path):
    run(root, tmp_path, 216_000, "64x48")
