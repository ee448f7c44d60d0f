"""Folders of images, pictures of digits, and fakes: a classifier, machines made of files, and streams."""

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.cameras.source import CameraLost, Frame, Stalled
from edgecnn.device.slots.store import Store
from edgecnn.device.stream.events import FrameResult
from edgecnn.device.system import Space, System
from edgecnn.errors import CameraError, ImageError
from edgecnn.runtime.child import Finished
from edgecnn.runtime.classifier import Result
from edgecnn.runtime.decision import decide


class FakeClassifier:
    """Answers cat with a score of 0.75, and fails for names with "broken" in them. It records its calls."""

    threshold = 0.0

    def __init__(self):
        self.calls = []

    def classify(self, image, top_k=3, threshold=None, margin=0.0, fit=None, rotation=0):
        self.calls.append((image, top_k, threshold, margin))
        if "broken" in image:
            raise ImageError("the image is damaged: no end")
        scores = np.array([0.75, 0.25], np.float32)
        threshold = self.threshold if threshold is None else threshold
        return Result(*decide(scores, ("cat", "dog"), top_k, threshold, margin), {})


@pytest.fixture
def fake_classifier():
    return FakeClassifier()


@pytest.fixture
def folder(tmp_path):
    """photos/: b.jpg, A.PNG, .hidden.jpg, notes.txt, sub/c.bmp, .cache/d.jpg, in its own working folder."""
    photos = tmp_path / "photos"
    for name in ("b.jpg", "A.PNG", ".hidden.jpg", "sub/c.bmp", ".cache/d.jpg"):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (photos / "notes.txt").write_text("not an image")
    return photos


PLENTY = Space(2**30, False)


@dataclass(frozen=True, kw_only=True)
class Machine(System):
    """A machine made of files below `root`; a table gives the commands' answers by name, and clock and disk are as given."""

    answers: Mapping[str, Finished | Callable] = field(default_factory=dict)
    seconds: float = 1.8e9
    disk: Space = PLENTY

    def now(self):
        return self.seconds

    def space(self, absolute):
        return self.disk

    def which(self, name):
        return f"/usr/bin/{name}" if name in self.answers else None

    def run(self, command, timeout=10.0):
        answer = self.answers.get(command[0], Finished(None, "", "cannot be run: No such file or directory"))
        return answer(command) if callable(answer) else answer


@pytest.fixture
def machine(tmp_path):
    """Make a machine: `machine({"proc/meminfo": "…"}, {"vcgencmd": Finished(…)}, bits=32)`."""

    def make(files, answers=None, **settings):
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        settings = {"packages": {}, "environ": {}, **settings}
        return Machine(root=root, answers=answers or {}, **settings)

    return make


class FakeSource:
    """A source that plays a script: bytes or arrays are frames, exceptions are raised, None is the end; then it is silent.

    With a gate, each release of it gives a frame. An integer in the script is the count of damaged frames.
    """

    name, about, patient = "fake", "a script", False

    def __init__(self, *script, live=False, gate=None):
        self.script = iter(script)
        self.live = live
        self.gate = gate
        self.closed = threading.Event()
        self.sequence = itertools.count()
        self.damaged = 0

    def read(self, timeout):
        item = next(self.script, self)
        if item is self:
            self.closed.wait(timeout)
            raise Stalled("fake", "no frame", timeout, "; it said: hm")
        if isinstance(item, int):
            self.damaged = item
            raise Stalled("fake", "no frame", timeout)
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        while self.gate is not None and not self.gate.acquire(timeout=0.05):
            if self.closed.is_set():
                raise CameraLost("ended", "it was closed")
        return Frame(next(self.sequence), time.monotonic(), item)

    def close(self):
        self.closed.set()


class Opener:
    """Opens sources one after another, and raises any exception among them. It counts its calls."""

    def __init__(self, *sources):
        self.sources = list(sources)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        source = self.sources.pop(0) if self.sources else CameraError("there is no other")
        if isinstance(source, Exception):
            raise source
        return source


class Recorder:
    """A sink that records its items, and releases a gate after each result."""

    def __init__(self, gate=None):
        self.lines = []
        self.gate = gate

    def result(self, result):
        self.lines.append(result)
        if self.gate is not None:
            self.gate.release()

    def event(self, event):
        self.lines.append(event)

    def follow(self, stream):
        """Record a stream's items, and close it."""
        with stream:
            for item in stream:
                self.result(item) if isinstance(item, FrameResult) else self.event(item)

    @property
    def kinds(self):
        """The decision of each result and the kind of each event, in order."""
        return [getattr(line, "kind", None) or line.decision for line in self.lines]


def feed_threads():
    """The threads of all feeds."""
    return [thread for thread in threading.enumerate() if thread.name == "edgecnn-feed"]


def wait_for_the_end():
    """Wait until no feed is reading any more."""
    for thread in feed_threads():
        thread.join(10)
    assert not feed_threads()


class Fakes:
    """What the tests of streams share."""

    Source, Opener, Recorder = FakeSource, Opener, Recorder
    threads, wait_for_the_end = staticmethod(feed_threads), staticmethod(wait_for_the_end)


@pytest.fixture
def fake():
    return Fakes


@pytest.fixture
def children():
    """Return a function that returns the numbers of this process's children."""
    return lambda: set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.fixture
def gone():
    """Return a function that waits until processes, of which others may be the parents, have ended."""

    def alive(process):
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait(*processes):
        deadline = time.monotonic() + 10
        while any(map(alive, processes)):
            assert time.monotonic() < deadline, f"some of {processes} are still running"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def digits(root):
    """A picture for each class of the digits model, by label."""
    from edgecnn.bundle.file import read_bundle

    bundle = read_bundle(root / "models" / "digits" / "digits.edgecnn")
    outputs = bundle.golden_outputs(bundle.manifest.models[0])
    pixels = bundle.golden_inputs()[:, :, :, 0]
    return {
        bundle.manifest.labels[row.argmax()]: Image.fromarray(image) for row, image in zip(outputs, pixels, strict=True)
    }


@pytest.fixture
def store(tmp_path):
    """A folder for releases."""
    return Store(tmp_path / "edgecnn", wait_s=0.0)
