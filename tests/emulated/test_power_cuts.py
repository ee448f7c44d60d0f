"""An emulated board survives power cuts, and planted faults are noticed.

Killing QEMU also loses what the board's kernel had not yet written to its disk.
"""

import dataclasses
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from debian_image import GUEST, PYTHON, build, make_disk
from machine import NEEDED_BY_DEBIAN, lacking, power_on

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.emulate import machine
from edgecnn.runtime.default import shipped_bundle

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools" / "board"))


CUTS = 8
STARTED = re.compile(rb"releases: start (\w+) problems (\d+) lacking (\d+)")


@pytest.fixture(scope="module")
def project(tmp_path_factory, root):
    """A folder for the board: edgecnn, two bundles, and the program that changes releases. Skipped if there is no board."""
    missing = lacking(NEEDED_BY_DEBIAN)
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(root / "edgecnn", folder / "edgecnn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(GUEST / "releases.py", folder)
    (folder / "bundles").mkdir()
    shipped = read_bundle(shipped_bundle())
    for name in ("one", "two"):
        write_bundle(folder / "bundles" / name, dataclasses.replace(shipped.manifest, name=name), shipped.files)
    machine.compile_all(folder, build().root, PYTHON, lambda what, done, total: None)
    return folder


def test_after_each_power_cut_a_complete_release_answers(project, tmp_path):
    """Each boot begins with the start of the service, then changes releases until the power is cut at a different moment."""
    make_disk(tmp_path / "disk")
    chance = random.Random(22)
    answered, cut_in = [], []
    for _ in range(CUTS + 1):
        with power_on(build(), tmp_path / "disk", project) as qemu:
            after = chance.randrange(1, 25)
            said = b""
            for line in qemu.stdout:
                said += line
                if line.startswith(b"releases: "):
                    after -= 1
                if not after:
                    break
            time.sleep(chance.random() * 0.1)
            qemu.kill()
        started = STARTED.search(said)
        assert started, said[-2000:].decode(errors="replace")
        answered.append(started[1].decode())
        cut_in.append(said.strip().rpartition(b"releases: ")[2].decode())
        assert (int(started[2]), int(started[3])) == (0, 0), said[-2000:].decode(errors="replace")
    assert answered[0] == "none" and set(answered[1:]) <= {"none", "one", "two"}
    assert set(answered[1:]) & {"one", "two"}, "nothing was ever written"
    print(list(zip(cut_in[:-1], answered[1:], strict=True)))


@pytest.fixture(scope="module")
def stream(feed, classifying, pictures):
    """A camera that shows a picture, and the lines of a classifier that uses it."""
    feed.format("RGB3")
    feed.show(pictures[0])
    with classifying("--camera") as lines:
        lines.event("camera_opened")
        yield feed, lines
        assert lines.process.poll() is None, "the classifier did not outlive the faults"
        assert lines.signal("INT") == 130


@pytest.fixture
def control(board):
    """Set controls of the camera's driver."""

    def control(**values):
        for name, value in values.items():
            board.run(["v4l2-ctl", "-d", "/dev/video0", "-c", f"{name}={value}"], check=True)

    return control


def lost_and_back(lines, reason):
    """Wait for a loss with a given reason, the return, and a frame; return the event of the return."""
    lost = lines.event("camera_lost")
    assert lost["reason"] == reason and lost["source"] == "/dev/video0", lost
    back = lines.event("camera_back")
    assert lines.frame()["source"] == "/dev/video0"
    return back


def test_a_streaming_error(stream, control):
    _, lines = stream
    control(inject_fatal_streaming_error=1)
    assert lost_and_back(lines, "io_error")["attempts"] == 1


def test_a_streaming_error_and_a_camera_that_starts_late(stream, control):
    _, lines = stream
    control(inject_vidioc_streamon_error=1, inject_fatal_streaming_error=1)
    assert lost_and_back(lines, "io_error")["attempts"] == 2


def test_a_damaged_buffer_is_reported_and_skipped(stream, control):
    _, lines = stream
    control(inject_v4l2_buf_flag_error=1)
    assert lines.event("frame_damaged")["count"] >= 1
    lines.frame()


def test_half_the_frames_dropped(stream, control, pictures, as_files):
    feed, lines = stream
    control(percentage_of_dropped_buffers=50)
    for path in pictures[1:5]:
        assert lines.frame(after=feed.show(path))["decision"] == as_files[path]["decision"]
    control(percentage_of_dropped_buffers=0)
    lines.frame()


def test_a_camera_that_is_unplugged_and_plugged_in_again(stream, control, pictures, as_files):
    feed, lines = stream
    control(disconnect=1)
    feed.close()  # the driver's devices come back once nobody holds them
    lost = lines.event("camera_lost")
    assert lost["reason"] == "unplugged", lost
    shown = feed.show(pictures[5])
    lines.event("camera_back")
    assert lines.frame(after=shown)["decision"] == as_files[pictures[5]]["decision"]
