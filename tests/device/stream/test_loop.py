"""The loop over frames: what it reports, what it drops, and how it ends."""

import contextlib
import functools
import json
import signal
import threading
import time
from collections import Counter

import jsonschema
import numpy as np
import pytest

from edgecnn.device.cameras.source import CameraLost, Frame
from edgecnn.device.keep.keeper import Alike, Keeper, View
from edgecnn.device.stream.events import (
    SIGNAL,
    CameraLostEvent,
    CommandFailedEvent,
    Event,
    FrameResult,
    StateChangedEvent,
    error_line,
    event_line,
    file_line,
    result_line,
    rfc3339,
)
from edgecnn.device.stream.feed import Ended, Feed, Taken
from edgecnn.device.stream.loop import MANY_DAMAGED, Consumer, Ends, Stopped, Stream
from edgecnn.device.stream.settings import Camera, Pace, Reaction
from edgecnn.errors import CameraError, ImageError, OutputError
from edgecnn.region import WHOLE
from edgecnn.runtime.classifier import Result
from edgecnn.runtime.decision import Score, Smoother, decide

LATENCY = {"decode": 0.1, "preprocess": 0.25, "infer": 0.5}
UNPLUGGED = CameraLost("unplugged", "the device went away")


LABELS = ("cat", "dog")


def classify(image, **options):
    """A frame is a class and its score: b"cat 0.75"; the other class has the rest."""
    if image == b"broken":
        raise ImageError("the image is damaged: no end")
    scores = np.full(2, np.nan)
    if image != b"nan":
        label, score = image.decode().split()
        scores = np.array([float(score) if item == label else round(1 - float(score), 6) for item in LABELS])
    return Result(*decide(scores, LABELS, **options), LATENCY)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A source that has nothing to give ends its reads soon, and with them the thread that reads it."""
    monkeypatch.setattr("edgecnn.device.stream.feed.POLL_S", 0.01)


@pytest.fixture
def loop(fake):
    """Run a loop over sources and return its lines, checked against the schema."""

    def run(*sources, smooth="1", feed=None, raises=None, gate=None, parts=None, options=None, **settings):
        feed = feed or Feed(fake.Opener(*sources), Camera(warm_up=0), name="camera", sleep=lambda wait: None)
        sink = fake.Recorder(gate)
        looking = functools.partial(classify, **(options or {}))
        stream = Stream(feed, looking, Pace(**settings), Smoother.parse(smooth), **(parts or {}))
        if raises:
            with pytest.raises(raises):
                sink.follow(stream)
        else:
            sink.follow(stream)
        fake.wait_for_the_end()
        sink.stream = stream
        return sink

    return run


@pytest.fixture(scope="module")
def valid(schema_of):
    """Check a JSON line against the schema, and return it parsed."""
    schema = schema_of("result")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def check(line):
        value = json.loads(line)
        validator.validate(value)
        return value

    return check


@pytest.fixture
def lines(valid):
    """The lines of a sink, checked and parsed."""

    def parsed(sink):
        return [
            valid(event_line(line) if isinstance(line, Event) else result_line(line, ("pets", "0" * 64)))
            for line in sink.lines
        ]

    return parsed


def test_each_frame_is_a_line(loop, fake, lines):
    before = time.time()
    opened, first, changed, second, ended = lines(
        loop(fake.Source(b"cat 0.75", b"cat 0.875", None), options={"top_k": 1})
    )
    assert opened["event"] == "camera_opened" and (opened["about"], opened["live"]) == ("a script", False)
    assert first["top"] == [{"label": "cat", "index": 0, "score": 0.75}]
    assert (first["seq"], first["decision"], first["reason"], first["source"]) == (0, "cat", None, "fake")
    assert first["state"] == second["state"] == "cat"
    assert first["latency_ms"] == pytest.approx(LATENCY, abs=50)
    assert first["ts"] == first["state_since"] == second["state_since"] >= rfc3339(before - 1)
    assert first["dropped"] == 0 and 0 <= first["age_ms"] < 10_000 and first["model_sha256"] == "0" * 64
    assert {key: changed[key] for key in ("event", "state", "previous", "score", "reason", "seq")} == {
        "event": "state_changed", "state": "cat", "previous": None, "score": 0.75, "reason": None, "seq": 0,
    }  # fmt: skip
    assert second["seq"] == 1
    assert (ended["event"], ended["reason"], ended["frames"], ended["damaged"]) == ("ended", "end_of_source", 2, 0)


def test_abstentions_have_a_reason_and_keep_their_scores(loop, fake, lines):
    told = lines(
        loop(
            fake.Source(b"cat 0.9", b"cat 0.65", b"cat 0.55", b"nan", None),
            options={"threshold": 0.6, "margin": 0.4},
            smooth="9",
        )
    )
    frames = [line for line in told if "seq" in line and "event" not in line]
    assert [(line["decision"], line["reason"], len(line["top"])) for line in frames] == [
        ("cat", None, 2),
        ("abstain", "below_margin", 2),
        ("abstain", "below_threshold", 2),
        ("abstain", "no_score", 0),
    ]
    assert {line["state"] for line in frames} == {None}


def test_a_state_that_does_not_flicker(loop, fake):
    frames = [b"cat 0.9", b"cat 0.9", b"dog 0.8", b"cat 0.9", b"dog 0.7", b"dog 0.7", b"dog 0.7", None]
    sink = loop(fake.Source(*frames), smooth="2")
    states = [line.state for line in sink.lines if isinstance(line, FrameResult)]
    assert states == [None, "cat", "cat", "cat", "cat", "dog", "dog"]
    changes = [vars(line) for line in sink.lines if isinstance(line, StateChangedEvent)]
    assert [(change["state"], change["previous"], change["seq"]) for change in changes] == [
        ("cat", None, 1),
        ("dog", "cat", 5),
    ]


def test_a_lost_camera_is_reported_and_the_state_is_unknown(loop, fake, lines):
    sink = loop(fake.Source(b"cat 0.9", UNPLUGGED), fake.Source(b"cat 0.9", None))
    assert sink.kinds == [
        "camera_opened", "cat", "state_changed", "camera_lost", "state_changed", "camera_back", "cat", "state_changed", "ended",
    ]  # fmt: skip
    told = lines(sink)
    assert (told[3]["reason"], told[3]["message"]) == ("unplugged", "the device went away")
    assert (told[4]["state"], told[4]["previous"], told[4]["reason"]) == (None, "cat", "camera_lost")
    assert told[5]["attempts"] == 1
    assert [line["seq"] for line in told if "state_since" in line] == [0, 1]


def test_after_a_loss_the_state_and_its_time_begin_anew(loop, fake, lines):
    cats = [b"cat 0.9"] * 3
    told = lines(loop(fake.Source(*cats, UNPLUGGED), fake.Source(*cats, None), smooth="2"))
    frames = [line for line in told if "state_since" in line]
    assert [line["state"] for line in frames] == [None, "cat", "cat"] * 2
    times = [line["ts"] for line in frames]
    assert [line["state_since"] for line in frames] == [None, times[1], times[1], None, times[4], times[4]]


def test_damaged_frames_are_reported_once_per_second_and_counted(fake, lines):
    now = [time.monotonic()]
    frames = [b"broken"] * 5 + [b"cat 0.9"] + [b"broken"] * 3 + [None]
    feed = Feed(fake.Opener(fake.Source(*frames)))
    sink = fake.Recorder()

    def slowly(image):
        now[0] += 0.3
        return classify(image)

    sink.follow(Stream(feed, slowly, Pace(), Smoother(), clock=lambda: now[0]))
    told = lines(sink)
    damaged = [line for line in told if line.get("event") == "frame_damaged"]
    assert [(line["seq"], line["count"]) for line in damaged] == [(0, 1), (4, 4), (8, 3)]
    assert (told[-1]["damaged"], told[-1]["frames"]) == (8, 1)
    assert "no end" in damaged[0]["message"]


def test_frames_that_the_camera_skipped_are_reported(loop, fake, lines):
    told = lines(loop(fake.Source(b"cat 0.9", 3, b"cat 0.9", None)))
    (damaged,) = (line for line in told if line.get("event") == "frame_damaged")
    assert (damaged["seq"], damaged["count"]) == (None, 3) and told[-1]["damaged"] == 3


def test_many_damaged_frames_in_a_row_are_a_lost_camera(loop, fake):
    gate = threading.Semaphore(10_000)
    good = fake.Source(b"cat 0.9", None)
    bad = fake.Source(b"dog 0.9", *[b"broken"] * (MANY_DAMAGED * 1000), live=True)

    def paced(image):
        if image == b"broken":
            read.wait(1)
            read.clear()
        return classify(image)

    read = threading.Event()
    original = bad.read
    bad.read = lambda timeout: (read.set(), time.sleep(0.0005), original(timeout))[2]
    feed = Feed(fake.Opener(bad, good), Camera(warm_up=0), sleep=lambda wait: None)
    sink = fake.Recorder(gate)
    sink.follow(Stream(feed, paced, Pace(), Smoother()))
    lost = next(line for line in sink.lines if isinstance(line, CameraLostEvent))
    assert lost.reason == "garbage" and f"{MANY_DAMAGED} frames in a row" in lost.message
    assert bad.closed.is_set() and sink.kinds[-4:] == ["camera_back", "cat", "state_changed", "ended"]


class Script:
    """A live feed that gives its items at once, then the end."""

    name, replaced = "camera", 0

    def __init__(self, items):
        self.items = iter(items)
        self.refused = []

    def start(self):
        """Do nothing."""

    close = start

    def take(self, timeout, frames=True):
        item = next(self.items, Ended())
        return Taken(0, Frame(0, time.monotonic(), item), "camera", True) if isinstance(item, bytes) else item

    def refuse(self, text):
        self.refused.append(text)


@pytest.mark.parametrize("between", [b"cat 0.9", CameraLostEvent(ts=0.0, source="camera", reason="stall", message="")])
def test_a_good_frame_or_a_loss_ends_the_damaged_ones_in_a_row(between):
    many, few = [b"broken"] * MANY_DAMAGED, [b"broken"] * (MANY_DAMAGED - 1)
    for items, refusals in (
        ([*few, between, *few, between, *few], 0),
        ([*few, between, *many, *few], 1),
        (2 * many, 2),
    ):
        feed = Script(items)
        list(Stream(feed, classify, Pace(max_age_s=60.0), Smoother()))
        assert len(feed.refused) == refusals


def test_broken_files_in_a_row_are_not_a_lost_camera(loop, fake):
    kinds = Counter(loop(fake.Source(*[b"broken"] * 100, b"cat 0.9", None)).kinds)
    assert kinds["camera_lost"] == 0 and kinds["cat"] == 1


def test_while_one_is_classified_the_newest_waits(loop, fake):
    """The classifier is blocked until the source has given all its frames."""
    source = fake.Source(*[b"cat 0.75"] * 40, b"dog 0.75", None, live=True)
    feed = Feed(fake.Opener(source), Camera(warm_up=0))
    sink = fake.Recorder()
    stream = Stream(feed, lambda image: (fake.wait_for_the_end(), classify(image))[1], Pace(max_age_s=60), Smoother())
    sink.follow(stream)
    results = [line for line in sink.lines if isinstance(line, FrameResult)]
    assert results[-1].decision == "dog" and results[-1].seq == 40
    assert results[-1].dropped == 41 - len(results) == stream.dropped
    assert len(results) <= 2


def test_old_frames_are_dropped_and_counted_unless_the_source_waits(fake):
    for live in (True, False):
        feed = Feed(fake.Opener(fake.Source(b"cat 0.9", None, live=live)), Camera(warm_up=0))
        sink = fake.Recorder()
        late = time.monotonic() + 100
        stream = Stream(feed, classify, Pace(max_age_s=0.5), Smoother(), clock=lambda late=late: late)
        sink.follow(stream)
        assert (stream.dropped, stream.frames) == ((1, 0) if live else (0, 1))
        assert ("cat" in sink.kinds) != live
    (result,) = (line for line in sink.lines if isinstance(line, FrameResult))
    assert 40_000 < result.age_ms <= 100_000, "in milliseconds, and at most since the frame was complete"
    assert time.time() - result.ts == pytest.approx(result.age_ms / 1000, abs=30)


def test_frames_skipped_for_max_fps_do_not_count_as_dropped(fake):
    """Forty frames arrive while the loop waits until the next is due; it takes the last of them."""
    now, waits = [0.0], threading.Event()

    def frames():
        yield b"cat 0.9"
        waits.wait(10)
        yield from [b"dog 0.9"] * 40
        yield None

    class Waiting(Feed):
        def take(self, timeout, frames=True):
            if not frames:
                waits.set()
                now[0] += timeout
                fake.wait_for_the_end()
            return super().take(timeout if frames else 0, frames)

    source, sink = fake.Source(live=True), fake.Recorder()
    source.script = frames()
    feed = Waiting(fake.Opener(source), Camera(warm_up=0))
    stream = Stream(feed, classify, Pace(max_fps=10.0, max_age_s=1e9), Smoother(), clock=lambda: now[0])
    sink.follow(stream)
    assert [line.seq for line in sink.lines if isinstance(line, FrameResult)] == [0, 40] and stream.dropped == 0


@pytest.mark.parametrize(
    ("over", "pause", "expected"),
    [(0.0, 0, [0, 0.5, 1, 1.5, 2]), (0.04, 0, [0, 0.54, 1.04, 1.54, 2.04]), (0.0, 5, [0, 0.5, 6, 6, 6, 6.5, 7, 7.5])],
    ids=["exact", "waits that are too long do not add up", "one frame is made up for after a pause"],
)
def test_a_waiting_source_is_slowed_down_by_max_fps(fake, over, pause, expected):
    """On a clock that only the waits and a slow third frame advance, at 2 per second."""
    now, times = [0.0], []
    source = fake.Source(*[b"cat 0.9"] * len(expected), None)

    class Patient(Feed):
        def take(self, timeout, frames=True):
            if not frames:
                now[0] += timeout + over
            return super().take(0.001 if not frames else timeout, frames)

    def slow(image):
        now[0] += pause if len(times) == 2 else 0
        return classify(image)

    sink = fake.Recorder()
    sink.result = lambda result: times.append(now[0])
    sink.follow(Stream(Patient(fake.Opener(source)), slow, Pace(max_fps=2), Smoother(), clock=lambda: now[0]))
    assert times == pytest.approx(expected, abs=1e-6)


def test_duration():
    """The second wait is just as long as the rest of the duration, after which no other is needed."""
    now, waits = [1000.0], []

    class Silent(Script):
        def take(self, timeout, frames=True):
            waits.append(timeout)
            now[0] += timeout if len(waits) == 2 else 0.125

    stream = Stream(Silent(()), classify, Pace(duration_s=0.1875), Smoother(), clock=lambda: now[0])
    (ended,) = stream
    assert ended.reason == "duration" and waits == [0.1, 0.0625]


def test_a_missing_camera_ends_the_loop(loop, fake, lines):
    sink = loop(CameraError("no camera found"), raises=CameraError)
    (ended,) = lines(sink)
    assert (ended["reason"], ended["frames"], ended["source"]) == ("camera_lost", 0, "camera")


@pytest.mark.parametrize("how", ["leave", "raise", "never started"])
def test_the_source_is_closed_however_the_loop_ends(fake, how):
    source = fake.Source(*[b"cat 0.9"] * 10)
    feed = Feed(fake.Opener(source))
    with contextlib.suppress(BrokenPipeError), Stream(feed, classify, Pace(), Smoother()) as stream:
        for _ in stream if how != "never started" else ():
            if how == "raise":
                raise BrokenPipeError
            break
    if how != "never started":
        assert source.closed.is_set()
        fake.wait_for_the_end()
    assert not fake.threads()
    stream.close()


def test_closing_from_another_thread_ends_the_iteration(fake):
    source = fake.Source(b"cat 0.9")
    stream = Stream(Feed(fake.Opener(source)), classify, Pace(), Smoother())
    items = []
    thread = threading.Thread(target=lambda: items.extend(stream))
    thread.start()
    deadline = time.monotonic() + 10
    while not any(isinstance(item, FrameResult) for item in items) and time.monotonic() < deadline:
        time.sleep(0.005)
    stream.close()
    thread.join(10)
    assert not thread.is_alive() and source.closed.is_set()
    assert items[-1].kind == "ended"


def test_a_caller_with_other_work_gets_control_while_nothing_arrives(fake):
    stream = Stream(Feed(fake.Opener(fake.Source())), classify, Pace(), Smoother())
    with stream:
        assert next(stream.ticks()) is None


def test_a_result_has_the_frame_the_lead_and_the_milliseconds_of_each_step(fake, monkeypatch):
    frame = np.full((4, 6, 3), 7, np.uint8)
    monkeypatch.setattr(time, "perf_counter", iter((50.0, 50.25)).__next__)  # before and after the frame's conversion
    feed = Feed(fake.Opener(fake.Source(frame, None)))
    scores = np.array([0.25, 0.75], np.float32)
    with Stream(feed, lambda image: Result(*decide(scores, LABELS), LATENCY), Pace(), Smoother()) as stream:
        (result,) = (item for item in stream if isinstance(item, FrameResult))
    assert result.image is frame and result.lead == pytest.approx(0.5)
    assert result.latency_ms == pytest.approx({"decode": 250.1, "preprocess": 0.25, "infer": 0.5})


class Reporter(Consumer):
    """Records its items, and reports an event each time."""

    def __init__(self):
        self.items, self.waits, self.polls = [], [], 0

    def failed(self, message):
        return CommandFailedEvent(ts=0.0, source="fake", message=message)

    def take(self, item):
        self.items.append(item)
        return (self.failed(f"after {item.kind if isinstance(item, Event) else item.decision}"),)

    def poll(self):
        self.polls += 1
        return ()

    def finish(self, wait_s):
        self.waits.append(wait_s)
        return (self.failed("late"),)


def test_consumers_receive_each_item_and_their_reports_follow_it(loop, fake):
    one, other = Reporter(), Reporter()
    sink = loop(fake.Source(b"cat 0.9", None), parts={"consumers": (one, other)})
    said = [line.message if isinstance(line, CommandFailedEvent) else line for line in sink.lines]
    kinds = [line if isinstance(line, str) else getattr(line, "kind", "result") for line in said]
    assert kinds == [
        "camera_opened", "after camera_opened", "after camera_opened",
        "result", "after cat", "after cat",
        "state_changed", "after state_changed", "after state_changed",
        "late", "late", "ended",
    ]  # fmt: skip
    assert one.items == other.items and len(one.items) == 3 and one.polls >= 3
    assert one.waits == [5.0], "the end of the source waits for running work"


def test_consumers_finish_immediately_when_the_loop_is_left(fake):
    consumer = Reporter()
    feed = Feed(fake.Opener(fake.Source(*[b"cat 0.9"] * 10)))
    with Stream(feed, classify, Pace(), Smoother(), consumers=[consumer]) as stream:
        next(iter(stream))
    assert consumer.waits == [0.0]
    missing = Reporter()
    feed = Feed(fake.Opener(CameraError("no camera found")))
    with (
        Stream(feed, classify, Pace(), Smoother(), consumers=[missing]) as stream,
        pytest.raises(CameraError),
    ):
        list(stream)
    assert missing.waits == [0.0]


def test_a_signal_ends_work_at_once_only_where_that_is_allowed():
    """Later ones change nothing: the first is being obeyed."""
    with Ends() as ends:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), ends.interruptible:
            raise AssertionError("the signal came before")
    with Ends() as ends:
        with pytest.raises(Stopped) as stopped, ends.interruptible:
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.code == 128 + signal.SIGINT
        ends.interruptible.inside = True
        signal.raise_signal(signal.SIGTERM)
        assert ends.signal == signal.SIGINT


def test_the_event_of_a_signal(loop, fake, valid):
    sink = loop(fake.Source(b"cat 0.9", None))
    assert valid(event_line(sink.stream.ended(SIGNAL)))["reason"] == "signal"


def test_failed_saves_are_reported_rarely_and_the_loop_continues(loop, fake, lines, tmp_path, monkeypatch):
    offered = []

    def full(self, result):
        offered.append(result)
        raise OutputError("cannot write kept/2026-11-28/1.jpg: No space left on device.")

    monkeypatch.setattr(Keeper, "offer", full)
    keeper = Keeper(tmp_path, Reaction(), lambda result, why: {}, alike=Alike(View(0, WHOLE, WHOLE), None))
    sink = loop(fake.Source(*[b"cat 0.6"] * 20, None), parts={"consumers": [keeper]})
    failed = [line for line in lines(sink) if line.get("event") == "save_failed"]
    assert len(offered) == 20 and [line["count"] for line in failed] == [1]
    assert "No space left" in failed[0]["message"] and sink.kinds.count("cat") == 20


def test_lines_of_files(valid):
    top = (Score('a "cat"\n', 0, 0.123456789), Score("\udcff", 7, 0.0))
    result = Result(top, "abstain", "below_threshold", 0.1, LATENCY)
    line = valid(file_line("p/\udcff.jpg", result, ("pets", "a" * 64)))
    assert (line["latency_ms"], line["model"], line["model_sha256"]) == (LATENCY, "pets", "a" * 64)
    assert (line["decision"], line["reason"], "region" in line) == ("abstain", "below_threshold", False)
    part = valid(file_line("a.jpg", result, ("pets", "a" * 64), region=(0.5, 0.0, 0.25, 1.0)))
    assert part["region"] == [0.5, 0, 0.25, 1]
    assert line["top"] == [
        {"label": 'a "cat"\n', "index": 0, "score": 0.123457},
        {"label": r"\udcff", "index": 7, "score": 0},
    ]
    assert line["source"] == r"p/\udcff.jpg", "valid UTF-8"
    assert valid(error_line("x", "no such file or folder"))["error"] == "no such file or folder"


def test_a_line_of_a_frame(valid):
    result = FrameResult(
        seq=417, ts=1764043205.5, age_ms=12.3456, source="/dev/video0", image=b"", top=(Score("cat", 2, 0.5), Score("dog", 0, 0.25)),
        decision="abstain", reason="below_margin", lead=0.25, state="dog", state_since=1764043200.25, latency_ms=LATENCY, dropped=3,
    )  # fmt: skip
    assert valid(result_line(result, ("pets", "b" * 64), region=(0.5, 0.0, 0.25, 1.0))) == {
        "schema": "edgecnn.result/1", "seq": 417, "ts": "2025-11-25T04:00:05.500Z", "age_ms": 12.346, "source": "/dev/video0",
        "top": [{"label": "cat", "index": 2, "score": 0.5}, {"label": "dog", "index": 0, "score": 0.25}],
        "decision": "abstain", "reason": "below_margin", "state": "dog", "state_since": "2025-11-25T04:00:00.250Z",
        "latency_ms": LATENCY, "dropped": 3, "model": "pets", "model_sha256": "b" * 64, "region": [0.5, 0, 0.25, 1],
    }  # fmt: skip


def test_the_schema_refuses_other_lines(valid):
    line = json.loads(file_line("a.jpg", Result((), "abstain", "no_score", 0.0, LATENCY), ("pets", "a" * 64)))
    for change in ({"schema": "edgecnn.result/2"}, {"seq": 1}, {"reason": "mood"}, {"event": "ended"}, {"error": "no"}):
        with pytest.raises(jsonschema.ValidationError):
            valid(json.dumps({**line, **change}))


def test_times():
    assert rfc3339(1764043200.0004) == "2025-11-25T04:00:00.000Z"
    assert rfc3339(1764043199.9996) == "2025-11-25T04:00:00.000Z"
