"""Faults that the camera's driver makes on demand, one after another, under one `edgecnn classify` that survives them all."""

import pytest


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
