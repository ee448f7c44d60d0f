"""A source is drained, lost, reopened with longer and longer waits, and given up."""

import threading
import time

import pytest

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Stalled
from edgecnn.device.stream.events import CameraBackEvent, CameraLostEvent, CameraOpenedEvent
from edgecnn.device.stream.feed import (
    BACKOFF_S,
    Damaged,
    Ended,
    Feed,
    Taken,
    open_feed,
)
from edgecnn.device.stream.settings import Camera
from edgecnn.errors import CameraError

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
