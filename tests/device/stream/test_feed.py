"""Frames from a camera, and pictures for training."""

import fcntl
import io
import json
import os
import select
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Stalled
from edgecnn.device.stream import pictures
from edgecnn.device.stream.events import CameraBackEvent, CameraLostEvent, CameraOpenedEvent
from edgecnn.device.stream.feed import BACKOFF_S, Damaged, Ended, Feed, Taken, open_feed
from edgecnn.device.stream.pictures import BLURRED, DAMAGED, QUIT, SAME, TAKE, Capture, Shot
from edgecnn.device.stream.settings import Camera, Pictures
from edgecnn.errors import CameraError, OutputError

UNPLUGGED = CameraLost("unplugged", "the device went away")


def items(feed, count=None):
    """Take items until the end, or up to a number."""
    taken = []
    while not (taken and isinstance(taken[-1], Ended)) and len(taken) != count:
        item = feed.take(10)
        assert item is not None, f"nothing arrived after {taken}"
        taken.append(item)
    return taken


def said(lost):
    return lost.source, lost.reason, lost.message


@pytest.fixture
def feed(fake):
    """Make a feed that does not wait between openings, and close it at the end; `waits` records the waits."""
    made = []

    def make(opener, **settings):
        waits = []
        made.append(Feed(opener, Camera(**settings), name="camera", sleep=waits.append))
        made[-1].waits = waits
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not fake.threads()


def test_a_waiting_source_gives_every_frame(feed, fake):
    source = fake.Source(*[bytes([number]) for number in range(50)], None)
    opened, *taken, ended = items(feed(fake.Opener(source)))
    assert (opened.source, opened.about, opened.live) == ("fake", "a script", False) and ended == Ended()
    assert [item.frame.image[0] for item in taken] == [item.seq for item in taken] == list(range(50))
    assert source.closed.is_set()


def test_a_live_source_gives_the_newest_frame(feed, fake):
    source = fake.Source(*[bytes([number]) for number in range(50)], None, live=True)
    one = feed(fake.Opener(source), warm_up=0)
    fake.wait_for_the_end()
    opened, taken, _ = items(one)
    assert opened.live and taken.frame.image == bytes([49]) and taken.seq == 49
    assert one.replaced == 49


def test_warm_up(feed, fake):
    def first(live, **settings):
        gate = threading.Semaphore(8)
        one = feed(fake.Opener(fake.Source(*[b"x"] * 8, None, live=live, gate=gate)), **settings)
        if live:
            fake.wait_for_the_end()
        seq = items(one)[1].seq
        return one.replaced, seq

    assert first(False) == (0, 0)
    assert first(True) == (2, 7), "five are discarded, two replaced, one is left"
    assert first(False, warm_up=3) == (0, 3)


def test_lost_and_back(feed, fake):
    opener = fake.Opener(
        fake.Source(b"a", b"b", UNPLUGGED), CameraError("busy"), CameraError("busy"), fake.Source(b"c", None)
    )
    one = feed(opener)
    opened, a, b, lost, back, c, ended = items(one)
    assert isinstance(opened, CameraOpenedEvent) and isinstance(ended, Ended)
    assert said(lost) == ("fake", "unplugged", "the device went away")
    assert isinstance(back, CameraBackEvent) and back.attempts == 3 and back.after_s >= 0
    assert [item.seq for item in (a, b, c)] == [0, 1, 2], "numbers continue across openings"
    assert one.waits == list(BACKOFF_S[:3])


def test_waits_grow_to_a_limit_and_are_not_reset_by_every_frame(feed, fake):
    opener = fake.Opener(*[fake.Source(b"a", UNPLUGGED) for _ in range(10)], fake.Source(None))
    one = feed(opener)
    assert sum(isinstance(item, CameraLostEvent) for item in items(one)) == 10
    assert one.waits == [*BACKOFF_S, *[BACKOFF_S[-1]] * 3]


def test_waits_are_reset_after_a_source_was_fine_for_a_while(fake):
    """A camera that is lost occasionally over days is back after half a second each time, not after half a minute."""
    now = [0.0]

    class Minute(fake.Source):
        """A frame every two seconds, as long as the script has frames."""

        def read(self, timeout):
            now[0] += 2
            return super().read(timeout)

    def waits(frames):
        waited = []
        sources = [Minute(*[b"x"] * frames, UNPLUGGED) for _ in range(4)]
        one = Feed(fake.Opener(*sources, Minute(None)), clock=lambda: now[0], sleep=waited.append)
        one.start()
        items(one)
        one.close()
        return waited

    assert waits(frames=5) == list(BACKOFF_S[:4]), "ten seconds prove nothing"
    assert waits(frames=6) == [BACKOFF_S[0]] * 4


def test_a_loss_is_reported_once_however_often_opening_fails(feed, fake):
    opener = fake.Opener(
        fake.Source(b"a", UNPLUGGED),
        CameraError("busy"),
        fake.Source(CameraLost("io_error", "EIO")),
        fake.Source(b"b", None),
    )
    kinds = [type(item) for item in items(feed(opener))]
    assert kinds == [CameraOpenedEvent, Taken, CameraLostEvent, CameraBackEvent, Taken, Ended]


def test_a_camera_that_cannot_be_opened_at_the_start_is_an_error(feed, fake):
    for first in (CameraError("busy, by process 7"), fake.Source(CameraLost("io_error", "busy, by process 7"))):
        opener = fake.Opener(first)
        one = feed(opener)
        with pytest.raises(CameraError, match="busy, by process 7"):
            while one.take(10):
                pass
        assert opener.calls == 1


def test_retry_for_at_the_start(feed, fake):
    opener = fake.Opener(CameraError("busy"), CameraError("busy"), fake.Source(b"a", None))
    lost, opened, taken, _ = items(feed(opener, retry_for_s=60))
    assert (
        said(lost) == ("camera", "unavailable", "busy")
        and isinstance(opened, CameraOpenedEvent)
        and taken.frame.image == b"a"
    )


def test_retry_for_is_over_if_the_source_opens_each_time_and_gives_no_frame(fake):
    now = [0.0]
    opener = fake.Opener(fake.Source(b"a", UNPLUGGED), *(fake.Source(UNPLUGGED) for _ in range(20)))
    one = Feed(opener, Camera(retry_for_s=31.5), clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    one.start()
    assert [type(item) for item in items(one, 3)] == [CameraOpenedEvent, Taken, CameraLostEvent]
    with pytest.raises(CameraError, match=r"Gave up after 32 s and 6 attempts\."):
        one.take(10)
    one.close()


def test_retry_for_is_over(fake):
    """After an hour of frames, the time counts from the loss."""
    now = [0.0]

    class Hour(fake.Source):
        def read(self, timeout):
            now[0] += 3600
            return super().read(timeout)

    opener = fake.Opener(Hour(b"a", UNPLUGGED))
    one = Feed(
        opener, Camera(retry_for_s=31.5), clock=lambda: now[0], sleep=lambda wait: now.__setitem__(0, now[0] + wait)
    )
    one.start()
    assert [type(item) for item in items(one, 3)] == [CameraOpenedEvent, Taken, CameraLostEvent]
    with pytest.raises(CameraError, match=r"Gave up after 32 s and 6 attempts\.") as given_up:
        one.take(10)
    assert str(given_up.value).endswith(" --retry-for.")
    one.close()
    opener = fake.Opener(fake.Source(b"a", UNPLUGGED), fake.Source(b"b", None))
    at_once = Feed(opener, Camera(retry_for_s=0.0), sleep=lambda wait: None)
    at_once.start()
    items(at_once, 3)
    with pytest.raises(CameraError):
        at_once.take(10)
    assert opener.calls == 1, "0 seconds are not the default, which is without end"
    at_once.close()


def test_long_silence_is_a_stall_but_short_is_not(fake):
    now = [0.0]

    class Slow(fake.Source):
        def read(self, timeout):
            now[0] += 0.25
            return super().read(0)

    stall = Stalled("fake", "no frame", 0.2, "; it said: hm")
    opener = fake.Opener(Slow(*[stall] * 59, b"a", *[stall] * 19, b"b", *[stall] * 26), fake.Source(None))
    one = Feed(opener, clock=lambda: now[0], sleep=lambda wait: None)
    one.start()
    _, a, b, lost, _ = items(one)
    assert (a.frame.image, b.frame.image) == (b"a", b"b")
    assert said(lost) == ("fake", "stall", "fake: no frame for 5 s; it said: hm."), (
        "as soon as it has been five seconds"
    )
    one.close()


def test_at_a_low_rate_two_missing_frames_are_a_stall(fake):
    now = [0.0]

    class Slow(fake.Source):
        def read(self, timeout):
            now[0] += 0.25
            return super().read(0)

    stall = Stalled("fake", "no frame", 0.2, "")
    source = Slow(b"a", *[stall] * 79, b"b", *[stall] * 90)
    one = Feed(fake.Opener(source, fake.Source(None)), Camera(fps=0.1), clock=lambda: now[0], sleep=lambda wait: None)
    one.start()
    _, a, b, lost, _ = items(one)
    assert (a.frame.image, b.frame.image) == (b"a", b"b") and "no frame for 20 s" in lost.message
    one.close()


@pytest.mark.parametrize("live", [True, False])
def test_a_camera_whose_program_ends_is_opened_again_and_a_file_is_not(feed, fake, live):
    broken = fake.Source(b"a", CameraLost("ended", "ffmpeg ended with 69"), live=live)
    one = feed(fake.Opener(broken, fake.Source(b"b", None, live=live)), warm_up=0)
    if live:
        assert items(one)[-2].frame.image == b"b"
        return
    assert items(one, 2)[1].frame.image == b"a"
    with pytest.raises(CameraError, match="ffmpeg ended with 69"):
        one.take(10)


def test_damaged_frames_are_counted_across_openings(feed, fake):
    opener = fake.Opener(fake.Source(b"a", 2, 5, b"b", UNPLUGGED), fake.Source(1, b"c", None))
    found = items(feed(opener))
    assert sum(item.frames for item in found if isinstance(item, Damaged)) == 6


def test_a_patient_source_never_stalls(feed, fake):
    now = iter(range(0, 10**6, 10))
    source = fake.Source(*[Stalled("fake", "no frame", 0.2)] * 20, b"a", None)
    source.patient = True
    one = Feed(fake.Opener(source), clock=lambda: float(next(now)))
    one.start()
    assert [type(item) for item in items(one)] == [CameraOpenedEvent, Taken, Ended]
    one.close()


def test_errors_of_the_system_are_losses(feed, fake):
    opener = fake.Opener(fake.Source(b"a", OSError(5, "Input/output error")), fake.Source(None))
    lost = items(feed(opener))[2]
    assert said(lost) == ("fake", "io_error", "fake: Input/output error")


def test_refused_frames_reopen_the_source(feed, fake):
    gate = threading.Semaphore(1)
    first = fake.Source(b"a", b"b", b"c", gate=gate)
    one = feed(fake.Opener(first, fake.Source(b"d", None)))
    items(one, 2)
    one.refuse("no picture")
    gate.release()
    lost, _, d, _ = items(one)
    assert said(lost) == ("fake", "garbage", "no picture") and d.frame.image == b"d"
    assert first.closed.is_set()


def test_a_frame_does_not_follow_the_news_of_its_cameras_loss(feed, fake):
    first = fake.Source(b"a", UNPLUGGED, live=True)
    one = feed(fake.Opener(first, fake.Source(None)), warm_up=0)
    fake.wait_for_the_end()
    assert [type(item) for item in items(one)] == [CameraOpenedEvent, CameraLostEvent, Ended]
    assert one.replaced == 1


def test_the_camera_gets_the_size_rate_and_secret_of_the_settings(fake, monkeypatch, tmp_path):
    requested = []

    def opened(*arguments):
        requested.append(arguments)
        return fake.Source(None)

    monkeypatch.setattr("edgecnn.device.cameras.open_source", opened)
    monkeypatch.setattr("edgecnn.device.cameras.find_camera", opened)
    (tmp_path / "secret").write_text("eve\npa ss\n")
    camera = Camera(size=(800, 450), fps=12.5, password_file=tmp_path / "secret")
    for source, name in (("rtsp://bob:hidden@door/1", "rtsp://***@door/1"), (None, "camera")):
        one = open_feed(source, camera)
        assert one.name == name
        one.start()
        items(one)
        one.close()
    expected = CameraSettings(width=800, height=450, fps=12.5, user="eve", password="pa ss")
    assert requested == [("rtsp://bob:hidden@door/1", expected), (expected,)]


def test_closing_does_not_wait_for_a_stuck_thread(fake, monkeypatch):
    monkeypatch.setattr("edgecnn.device.stream.feed.CLOSE_S", 0.02)
    stuck, free = threading.Event(), threading.Event()

    class Stuck(fake.Source):
        def read(self, timeout):
            stuck.set()
            free.wait(60)

        def close(self):
            super().close()
            free.wait(60)

    source = Stuck()
    one = Feed(fake.Opener(source))
    one.start()
    assert stuck.wait(10)
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 30, "it waited for the thread, or for the source"
    assert source.closed.is_set() and [thread.daemon for thread in fake.threads()] == [True]
    free.set()
    fake.wait_for_the_end()


def test_closing_ends_every_wait(fake, monkeypatch):
    monkeypatch.setattr("edgecnn.device.stream.feed.POLL_S", 0.01)
    waiting = Feed(fake.Opener(fake.Source(b"a", UNPLUGGED)))
    waiting.start()
    items(waiting, 3)
    full = Feed(fake.Opener(fake.Source(*[b"a"] * 9)))
    full.start()
    silent = Feed(fake.Opener(fake.Source()))
    silent.start()
    for one in (waiting, full, silent, Feed(fake.Opener())):
        one.close()
        one.close()
    assert not fake.threads()


def test_take_without_frames_gives_only_the_events(feed, fake):
    one = feed(fake.Opener(fake.Source(b"a", b"b", None)))
    assert isinstance(items(one, 1)[0], CameraOpenedEvent)
    assert one.take(0.01, frames=False) is None
    assert [type(item) for item in items(one)] == [Taken, Taken, Ended]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_crashed(feed, fake):
    one = feed(fake.Opener(fake.Source(KeyError("a fault"))))
    with pytest.raises(CameraError, match="failed with an internal error"):
        while one.take(10):
            pass


pty = pytest.importorskip("pty", reason="there are no terminals here")


def picture(seed):
    """Blocks of random levels, 64 by 48: sharp, and different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def blurred(seed):
    return np.asarray(Image.fromarray(picture(seed)).resize((640, 480)).filter(ImageFilter.GaussianBlur(40)))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def take(fake, tmp_path):
    """Capture all frames of a script; return the events about pictures."""

    def run(*script, label="cat", rotation=0, key=lambda: None, **settings):
        settings = Pictures(**{"interval_s": 1.0, **settings})
        feed = Feed(fake.Opener(fake.Source(*script, None)))
        told = []
        run.capture = Capture(feed, tmp_path / "photos" / label, settings, rotation, key=key)
        run.capture.run(told.append)
        fake.wait_for_the_end()
        return [item for item in told if isinstance(item, Shot)]

    return run


def kept(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_pictures_go_to_where_train_reads_them(take, tmp_path):
    shots = take(picture(1), png(picture(2)))
    take(picture(3), label="dog")
    assert kept(tmp_path / "photos/cat") == sorted(shot.path for shot in shots)
    assert [shot.path.suffix for shot in shots] == [".jpg", ".png"]
    assert [shot.path.stem.rpartition("-")[2] for shot in shots] == ["0", "1"]
    assert shots[1].path.read_bytes() == png(picture(2)), "what a camera has encoded stays as it is"
    from edgecnn.data.folder import open_folder

    assert open_folder(tmp_path / "photos").labels == ("cat", "dog")


def test_skipped_frames(take):
    first, second = picture(1), picture(1).copy()
    second[0, 0] ^= 255
    shots = take(first, blurred(2), second, b"no picture", picture(3), first)
    assert [shot.reason for shot in shots] == [None, BLURRED, SAME, DAMAGED, None, None]
    assert shots[2].change < 2 < shots[4].change and shots[1].sharpness < 10 < shots[0].sharpness
    assert (take.capture.kept, take.capture.skipped) == (3, 3)
    assert [shot.reason for shot in take(first, blurred(2), second, min_sharpness=0, min_change=0)] == [None] * 3


def test_a_picture_is_compared_with_the_last_kept_one_and_a_figure_at_its_limit_is_enough(take):
    grey = [np.full((48, 64, 3), level, np.uint8) for level in (100, 101, 102, 103, 104, 105)]
    shots = take(*grey, min_sharpness=0)
    assert [(shot.reason, shot.change) for shot in shots] == [
        (None, None), (SAME, 1), (None, 2), (SAME, 1), (None, 2), (SAME, 1),
    ]  # fmt: skip
    assert (take.capture.kept, take.capture.skipped) == (3, 3)
    sharp = pictures.sharpness(picture(1))
    assert take(picture(1), min_sharpness=sharp)[0].path
    assert take(picture(1), min_sharpness=sharp * 1.001)[0].reason == BLURRED


def test_only_the_region_of_the_upright_picture_is_kept(take):
    (shot,) = take(picture(1), rotation=90, region=(0, 0.5, 0.25, 0.375), min_sharpness=0)
    upright = picture(1)[::-1].transpose(1, 0, 2)  # clockwise: the bottom row becomes the left column
    kept_part = np.asarray(Image.open(shot.path))
    assert kept_part.shape == (24, 12, 3)
    assert np.abs(kept_part.astype(int) - upright[32:56, :12]).mean() < 5


def test_sharpness_and_change():
    values = [
        pictures.sharpness(np.asarray(Image.fromarray(picture(1)).filter(ImageFilter.GaussianBlur(r))))
        for r in range(4)
    ]
    assert values == sorted(values, reverse=True)
    assert pictures.sharpness(png(picture(1))) == pytest.approx(values[0], rel=0.05)
    assert pictures.sharpness(np.full((1, 1, 3), 9, np.uint8)) == 0
    black, white = (pictures.thumbnail(np.full((9, 9, 3), level, np.uint8)) for level in (0, 255))
    assert pictures.change(black, white) == 255 and pictures.change(black, black) == 0


def test_count(take, tmp_path):
    assert len(take(*[picture(seed) for seed in range(9)], count=2)) == 2
    assert len(kept(tmp_path)) == 2


def test_pictures_are_upright(take):
    (shot,) = take(picture(1), rotation=90)
    assert Image.open(shot.path).size == (48, 64)


def test_keys(take):
    pressed = iter([TAKE, None, None, TAKE, QUIT])
    shots = take(*[picture(seed) for seed in range(9)], key=lambda: next(pressed), interval_s=0.0)
    assert len(shots) == 2


def test_one_picture_per_interval_from_a_camera(fake, tmp_path):
    now = [0.0]

    class Ticking(fake.Source):
        def read(self, timeout):
            taken.wait(1)
            taken.clear()
            return super().read(timeout)

    import threading

    taken = threading.Event()
    taken.set()
    feed = Feed(fake.Opener(Ticking(*[picture(seed) for seed in range(12)], None, live=True)), Camera(warm_up=0))
    plain_take = feed.take

    def take(timeout):
        item = plain_take(timeout)
        if hasattr(item, "frame"):
            now[0] += 0.5
        taken.set()
        return item

    feed.take = take
    shots = []
    Capture(feed, tmp_path / "cat", Pictures(interval_s=2.0), clock=lambda: now[0]).run(shots.append)
    assert len([shot for shot in shots if isinstance(shot, Shot)]) == 3


def test_nothing_is_overwritten(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1764043200.0)
    for seed in range(3):
        feed = Feed(fake.Opener(fake.Source(picture(seed), None)))
        Capture(feed, tmp_path / "cat", Pictures(interval_s=1.0)).run(lambda shot: None)
    assert len(kept(tmp_path)) == 3


def test_a_folder_that_cannot_be_written(take, tmp_path):
    (tmp_path / "photos").write_text("a file")
    with pytest.raises(OutputError):
        take(picture(1))


def test_usage_errors(edgecnn):
    for arguments, text in (
        (["--label", "cat"], "give one stream, or --camera"),
        (["photo.jpg", "--label", "cat"], "is not a camera or a stream"),
        (["synthetic:", "--label", "../cat", "--interval", "1"], "cannot be a class folder: hidden"),
        (["synthetic:", "--label", "val", "--interval", "1"], "names of splits"),
        (["synthetic:", "--label", "cat"], "standard input is not a terminal"),
        (["synthetic:"], "--label"),
    ):
        result = edgecnn("capture", *arguments)
        assert result.code == 2 and text in " ".join(result.err.split()), result.err
    assert edgecnn("capture", "--camera", "--label", "cat", "--interval", "1").code == CameraError.exit_code


def test_the_command(edgecnn, tmp_path):
    source = "synthetic:64x48?frames=40&pattern=noise"
    result = edgecnn("capture", source, "--label", "cat", "--interval", "1", "--count", "2", "--out", "p", "--json")
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert sum(line["path"] is not None for line in lines) == 2
    assert all(set(line) == {"path", "reason", "sharpness", "change"} for line in lines)
    assert len(kept(tmp_path / "p" / "cat")) == 2
    assert "2 pictures kept in p/cat" in result.err


@pytest.mark.parametrize("end", [b"\x03", pytest.param(b"q", marks=pytest.mark.slow)])
def test_keys_in_a_terminal_whose_mode_is_restored(root, tmp_path, spawn, end):
    """Space, then the end with q or Ctrl-C."""
    terminal, inner = pty.openpty()
    before = termios.tcgetattr(inner)
    process = spawn(
        [sys.executable, "-m", "edgecnn", "capture", "synthetic:64x48?fps=50&pattern=noise", "--label", "cat"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        while b"synthetic frames" not in process.stderr.readline():
            pass
        assert not termios.tcgetattr(inner)[3] & termios.ICANON
        os.write(terminal, b" ")
        assert select.select([process.stdout], [], [], 20)[0]
        path = process.stdout.readline().decode().strip()
        assert (tmp_path / path).stat().st_size
        os.write(terminal, end)
        _, err = process.communicate(timeout=20)
        assert process.returncode == (130 if end == b"\x03" else 0), err
        assert b"Traceback" not in err
        assert termios.tcgetattr(inner) == before
    finally:
        os.close(terminal)
        os.close(inner)
