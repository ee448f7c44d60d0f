import functools
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import jsonschema
import pytest
from PIL import Image

from edgecnn.device.service import run
from edgecnn.device.service.config import Config, parse, take_options
from edgecnn.device.service.run import AGAIN_S, CHANGED, START_S, Judge, Surroundings, notify, run_service
from edgecnn.device.slots.record import BAD, GOOD, MAX_STARTS, NO_RELEASE, PENDING
from edgecnn.device.slots.store import Use
from edgecnn.device.stream.events import (
    CameraLostEvent,
    CameraOpenedEvent,
    FrameResult,
    ProblemEvent,
    ReleaseEvent,
    StateChangedEvent,
)
from edgecnn.errors import EngineError
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import is_installed, open_engine

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")

FRAMES = Config(source="synthetic:64x48?fps=200", good_after=3, max_fps=0)
SILENT = Config(source="exec:sleep 100", good_after=3)


class Stop(Exception):
    pass


class Board:
    """Runs the service in this process, and records its reports and notifications."""

    def __init__(self, store):
        self.store = store
        self.items, self.told = [], []

    def serve(self, config=FRAMES, until=None, **around):
        def check():
            if until is not None and until(self.items):
                raise Stop

        around = Surroundings(report=self.items.append, check=check, tell=self.told.append, **around)
        self.items.clear()
        self.told.clear()
        return run_service(self.store, config, around)

    def start(self, config=FRAMES, until=lambda items: frames(items) >= 5):
        with pytest.raises(Stop):
            self.serve(config, until)
        return self.releases()

    def releases(self):
        return [(item.name, item.state) for item in self.items if isinstance(item, ReleaseEvent)]

    def activate(self, path):
        return self.store.add(path, Use(accept="a test"))[0]

    def states(self):
        return {about.name: about.state for about in self.store.read().releases.values()}


def frames(items):
    return sum(isinstance(item, FrameResult) for item in items)


@pytest.fixture
def board(store, monkeypatch):
    """A service that looks at the record of releases before each frame."""
    monkeypatch.setattr("edgecnn.device.service.run.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("edgecnn.device.service.run.WAIT_S", 0.01)
    return Board(store)


def at_once(items):
    return True


def test_without_a_release_it_waits_and_names_the_command(board, variant, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    new = variant("new")

    def activate(items):
        if "WATCHDOG=1" in board.told and not board.states():
            board.activate(new)

    assert board.serve(until=activate) == CHANGED
    (problem,) = board.items
    assert problem.about == "release" and problem.message == f"{NO_RELEASE}."
    assert board.told[0] == f"READY=1\nSTATUS={NO_RELEASE}\nWATCHDOG_USEC=30000000"
    assert board.told[-1].endswith(f"WATCHDOG_USEC={START_S * 1_000_000}")
    assert board.start() == [("new", PENDING), ("new", GOOD)]


def test_it_waits_when_its_only_release_is_bad(board, variant):
    board.activate(variant("wrong", wrong=True))
    assert board.start(until=lambda items: board.told) == [("wrong", BAD)]
    assert board.items[-1].about == "release" and NO_RELEASE in board.told[0]


def test_a_new_release_becomes_good_after_its_frames(board, variant):
    board.activate(variant("new"))
    assert board.start() == [("new", PENDING), ("new", GOOD)]
    good = next(
        number for number, item in enumerate(board.items) if isinstance(item, ReleaseEvent) and item.state == GOOD
    )
    assert frames(board.items[:good]) == 3
    assert board.states() == {"new": GOOD}
    assert board.start() == [("new", GOOD)]


def test_a_release_whose_selftest_fails_is_rolled_back_immediately(board, variant):
    board.activate(variant("old"))
    board.start()
    board.activate(variant("wrong", wrong=True))
    assert board.start() == [("wrong", BAD), ("old", GOOD)]
    reason = next(item.reason for item in board.items if isinstance(item, ReleaseEvent))
    assert "does not reproduce the bundle's answers" in reason
    assert board.states() == {"old": GOOD, "wrong": BAD}


def test_a_release_that_crashes_in_its_selftest_leaves_the_service_running(board, variant, monkeypatch):
    own = os.getpid()

    def crash(*arguments, **options):
        assert os.getpid() != own, "the self-test of a new release opens its model in the service's own process"
        os._exit(1)

    board.activate(variant("old"))
    board.start()
    board.activate(variant("new"))
    monkeypatch.setattr("edgecnn.runtime.selftest.open_engine", crash)
    assert board.start() == [("new", BAD), ("old", GOOD)]


def test_a_camera_that_is_missing_at_boot_is_waited_for(board, variant, tmp_path, monkeypatch):
    """The camera appears for the second attempt, and its first five frames are discarded."""
    monkeypatch.setattr("edgecnn.device.stream.feed.BACKOFF_S", (0.05,))
    pictures, jpeg, deadline = tmp_path / "pictures.mjpeg", io.BytesIO(), time.monotonic() + 60
    Image.new("RGB", (40, 30)).save(jpeg, "JPEG")
    source = shlex.join(["sh", "-c", f"cat {shlex.quote(str(pictures))} && sleep 60"])
    options = parse(f"source = {json.dumps(f'exec:{source}')}\nmax_fps = 0", "here")

    def plug_in(items):
        if any(isinstance(item, CameraLostEvent) for item in items) and not pictures.exists():
            pictures.write_bytes(8 * jpeg.getvalue())
        return frames(items) or time.monotonic() > deadline

    board.activate(variant("old"))
    board.start(options, until=plug_in)
    kinds = [item.kind for item in board.items if isinstance(item, CameraLostEvent | CameraOpenedEvent)]
    assert kinds[:2] == ["camera_lost", "camera_opened"] and frames(board.items)


def test_a_release_without_frames_is_rolled_back(board, variant):
    board.activate(variant("old"))
    board.start()
    board.activate(variant("new"))
    for _ in range(MAX_STARTS):
        assert board.start(SILENT, until=at_once) == [("new", PENDING)]
        assert "WATCHDOG=1" not in board.told
    assert board.start() == [("new", BAD), ("old", GOOD)]


def test_frames_are_kept_if_configured_and_a_failing_folder_stops_nothing(board, variant, tmp_path):
    from edgecnn.cli.service import publishers
    from edgecnn.device.keep.folder import kept_pictures

    board.activate(variant("new"))
    around = Surroundings(report=board.items.append)
    kept = tmp_path / "kept"
    options = parse(
        f'source = "{FRAMES.source}"\nkeep = "{kept}"\nkeep_margin = 1\nmax_fps = 0\nkeep_random = 0', "here"
    )
    for config, expected in ((FRAMES, 0), (options, 1)):
        with pytest.raises(Stop):
            board.serve(
                config, lambda items: frames(items) >= 5, consumers=functools.partial(consumers, config, around)
            )
        assert bool(kept_pictures(kept)) == expected
    (kept / ".edgecnn-saved").write_bytes(b"\xff")
    assert publishers(options, Classifier.load(tmp_path / "new.edgecnn"), around) == []
    assert board.items[-1].about == "configuration" and "no frames are kept: cannot read" in board.items[-1].message


def consumers(config, around, classifier):
    from edgecnn.cli.service import publishers

    return publishers(config, classifier, around)


def test_it_ends_when_another_release_is_in_use(board, variant):
    board.activate(variant("old"))
    new = variant("new")

    def activate(items):
        if frames(items) == 3 and "new" not in board.states():
            board.activate(new)
        return frames(items) >= 100

    assert board.serve(until=activate) == CHANGED
    assert board.told[-1].endswith(f"WATCHDOG_USEC={START_S * 1_000_000}"), "a new process gets the time for a start"
    assert board.start()[0] == ("new", PENDING)


def test_a_start_restores_the_watchdogs_own_limit(board, variant, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    board.activate(variant("old"))
    board.start()
    assert board.told[0] == "READY=1\nSTATUS=waiting for the camera\nWATCHDOG_USEC=30000000"


def test_it_does_not_end_when_its_own_release_becomes_good(board, variant):
    board.activate(variant("new"))
    board.start(until=lambda items: GOOD in board.states().values() and frames(items) >= 6)
    assert frames(board.items) == 6


def test_a_bundle_removed_while_in_use_keeps_answering_until_the_next_start(board, variant):
    board.activate(variant("old"))
    board.start()
    new = board.activate(variant("new"))
    board.start()

    def remove(items):
        if frames(items) == 3:
            board.store.path(new).unlink(missing_ok=True)
        return frames(items) >= 20

    assert board.start(until=remove) == [("new", GOOD)] and not board.store.whole(new)
    assert board.start() == [("new", BAD), ("old", GOOD)]


def test_a_good_release_is_not_blamed_for_a_broken_engine(board, variant, monkeypatch):
    board.activate(variant("old"))
    board.start()

    def broken(*arguments, **options):
        raise EngineError("litert is not installed")

    monkeypatch.setattr("edgecnn.runtime.classifier.open_engine", broken)
    with pytest.raises(EngineError):
        board.serve()
    assert board.states() == {"old": GOOD}


def test_inference_runs_on_the_threads_of_the_options(board, variant, monkeypatch):
    board.activate(variant("new"))
    threads = []

    def opened(*arguments, num_threads, **options):
        threads.append(num_threads)
        return open_engine(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr("edgecnn.runtime.classifier.open_engine", opened)
    board.start(replace(FRAMES, threads=3))
    board.start()
    assert threads == [3, 1]


def test_a_start_that_cannot_be_counted_is_reported_and_a_good_release_still_runs(board, variant, monkeypatch):
    board.activate(variant("old"))
    board.start()
    counted = run.choose_for_start
    monkeypatch.setattr(
        run, "choose_for_start", lambda *given: counted(*given)._replace(problems=("no space", "no record"))
    )
    with pytest.raises(Stop):
        board.serve(until=lambda items: frames(items) >= 1)
    problems = [(item.about, item.message) for item in board.items if isinstance(item, ProblemEvent)]
    assert problems == [("disk", "no space"), ("disk", "no record")]


def test_a_clock_before_2026_is_only_reported(board, variant):
    board.activate(variant("old"))
    for wall, year in ((60.0, "1970"), (1_767_225_599.0, "2025"), (1_767_225_600.0, None)):
        with pytest.raises(Stop):
            board.serve(until=lambda items: frames(items) >= 1, wall=lambda wall=wall: wall)
        problems = [item for item in board.items if isinstance(item, ProblemEvent)]
        assert [(item.about, item.ts) for item in problems] == ([("clock", wall)] if year else [])
        assert all(f"shows the year {year}:" in item.message for item in problems)


def result(seq=0):
    return FrameResult(
        seq=seq, ts=0.0, age_ms=1.0, source="cam", image=b"", top=(), decision="cat", reason=None, lead=0.0, state=None,
        state_since=None, latency_ms={}, dropped=0,
    )  # fmt: skip


def test_only_frames_feed_the_watchdog_once_per_second():
    told, now = [], [0.0]
    judge = Judge("", "", 0, list, tell=told.append, clock=lambda: now[0])
    judge.take(StateChangedEvent(ts=0.0, source="", state="cat", previous=None, score=1.0, reason=None, seq=0))
    judge.take(StateChangedEvent(ts=0.0, source="", state=None, previous="cat", score=None, reason=None, seq=None))
    judge.poll()
    assert told == ["STATUS=state: 'cat'", "STATUS=state: none"]
    for seconds in (0.0, 0.5, 0.9, 1.0, 1.5, 2.1):
        now[0] = seconds
        judge.take(result())
    assert told.count("WATCHDOG=1") == 3


def test_a_label_cannot_send_messages_to_the_service_manager():
    told = []
    judge = Judge("", "", 0, list, tell=told.append)
    judge.take(StateChangedEvent(ts=0.0, source="", state="a\nMAINPID=1", previous=None, score=1.0, reason=None, seq=0))
    assert "\n" not in told[0]


def test_a_release_that_does_not_fit_on_the_disk_is_tried_again():
    answers, now = [["cannot write"], []], [0.0]
    judge = Judge("a" * 64, "new", 2, lambda: answers.pop(0), tell=lambda text: None, clock=lambda: now[0])
    assert [*judge.take(result())] == []
    (problem,) = judge.take(result())
    assert (problem.kind, problem.about, problem.message, problem.source) == ("problem", "disk", "cannot write", "cam")
    assert [*judge.take(result())] == [] and len(answers) == 1
    now[0] = AGAIN_S
    (good,) = judge.take(result())
    assert (good.kind, good.release, good.name, good.state, good.reason) == ("release", "a" * 64, "new", "good", None)
    assert [*judge.take(result())] == []


@pytest.fixture
def short_folder():
    """A folder with a short path: a socket's path has at most 107 bytes, which tmp_path's may exceed."""
    with tempfile.TemporaryDirectory(prefix="n", dir="/tmp") as folder:
        yield folder


def test_notify_sends_a_datagram(short_folder, monkeypatch):
    for address in (f"{short_folder}/socket", f"@edgecnn-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(address.replace("@", "\0"))
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            notify("READY=1")
            assert receiver.recv(100) == b"READY=1"
    notify("READY=1")  # nobody is listening any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_the_process_switches_releases_and_stops(store, variant, tmp_path, root, spawn, schema_of):
    """As under systemd: with the last valid options, the same process waits, continues with the first release, and exits with 143."""
    options = tmp_path / "service.toml"
    options.write_text('source = "synthetic:"\ngood_after = 3\n')
    take_options(options, store.root)
    options.write_text('source = "synthetic:"\ngood_afer = 3\n')  # somebody has edited the file since
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = f"edgecnn-test-notify-{os.getpid()}"
        manager.bind(f"\0{address}")
        command = [sys.executable, "-m", "edgecnn", "service", "run", "--slots", store.root, "--config", options]
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{address}", "PYTHONPATH": str(root)}
        process = spawn(command, env=environment, stdout=subprocess.PIPE, text=True)
        lines = map(json.loads, process.stdout)
        problem = next(lines)
        assert problem["about"] == "configuration" and "'good_after'" in problem["message"]
        assert next(lines)["about"] == "release"
        assert manager.recv(200).startswith(b"READY=1")
        release, _ = store.add(variant("new"))
        store.activate(release)
        states = []
        schema = schema_of("result")
        for line in lines:
            jsonschema.validate(line, schema)
            if line["event"] == "release":
                states.append((line["name"], line["state"], line["release"]))
            if len(states) == 2:
                break
        assert states == [("new", "pending", release), ("new", "good", release)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
