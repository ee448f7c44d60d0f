"""One emulated board for all tests in this folder, the pictures for its camera, and the output of `edgecnn classify`."""

import contextlib
import io
import json
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.files import data_folder
from edgecnn.runtime import Classifier
from edgecnn.runtime.default import SHIPPED
from edgecnn.verify.golden import golden_images

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "board"))

from image import build  # noqa: E402
from machine import boot, lacking  # noqa: E402

WIDTH, HEIGHT = 640, 480
PATIENCE_S = 60
"""The longest wait for a line: a busy machine is slow, which says nothing about the board."""

AS_FORMAT = """
import sys
from edgecnn.cli import console_script
from edgecnn.device.cameras import v4l2_device
v4l2_device.READABLE = (int.from_bytes(sys.argv.pop(1).encode(), "little"),)
console_script()
"""
"""The command line with a reader that supports only one pixel format."""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent) and not item.get_closest_marker("guard"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def board():
    """A booted board; skipped, with the reason, if it cannot be emulated."""
    missing = lacking()
    if missing:
        pytest.skip(missing)
    with boot(build(), ROOT, limit_s=1800) as machine:
        yield machine


def png(pixels):
    """Return pixels as the bytes of a PNG file."""
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG", compress_level=1)
    return packed.getvalue()


def before_the_camera(image):
    """Return a picture of the camera's size with an enlarged model input in its middle."""
    side = HEIGHT // image.shape[0]
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    left = (WIDTH - HEIGHT) // 2
    frame[:, left : left + HEIGHT] = np.kron(image, np.ones((side, side, 1), np.uint8))
    return frame


def known_pictures(classifier, count, of_a_class=4):
    """Return drawn images, uint8 (count, height, width, channels): the model's most confident ones, with not too many of one class.

    They are drawn by the thousand, because a good network is confident about only a few drawings, mostly of one class.
    """
    contract = classifier.model.contract
    drawn = np.concatenate([golden_images(contract, seed) for seed in range(100)])
    logits = classifier.model.logits(drawn)
    ordered = np.sort(logits, axis=1)
    taken, classes = [], Counter()
    for index in np.argsort(ordered[:, -2] - ordered[:, -1], kind="stable"):
        answer = int(np.argmax(logits[index]))
        if classes[answer] < of_a_class and len(taken) < count:
            classes[answer] += 1
            taken.append(index)
    return drawn[taken]


@pytest.fixture(scope="session")
def pictures(board):
    """20 pictures of at least five classes as files on the board.

    pictures/NN.png, and next to them swapped/NN.png with red and blue swapped.
    """
    classifier = Classifier.load(
        data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn", engine="litert", precision="int8"
    )
    frames = [before_the_camera(image) for image in known_pictures(classifier, 20)]
    board.put({f"{number:02d}.png": png(frame) for number, frame in enumerate(frames)}, "/root/pictures")
    board.put({f"{number:02d}.png": png(frame[:, :, ::-1]) for number, frame in enumerate(frames)}, "/root/swapped")
    return [f"pictures/{number:02d}.png" for number in range(20)]


@pytest.fixture(scope="session")
def as_files(board, pictures):
    """The result of `edgecnn classify FILE` for each picture, including swapped ones, by path."""
    done = board.run(["edgecnn", "classify", "pictures", "swapped", "--json", "--top-k", "10"], check=True, timeout=120)
    lines = [json.loads(line) for line in done.out.splitlines()]
    return {line["source"]: line for line in lines}


@pytest.fixture(scope="session")
def colours(as_files, pictures):
    """A picture and its copy with red and blue swapped: the pair whose scores differ most."""

    def difference(path):
        one, other = (scores(as_files[name]) for name in (path, path.replace("pictures", "swapped")))
        return max(abs(one[label] - other[label]) for label in one)

    path = max(pictures, key=difference)
    assert difference(path) > 0.2, "the model ignores colours"
    return path, path.replace("pictures", "swapped")


def scores(line):
    """Return the score of each label in a line."""
    return {item["label"]: item["score"] for item in line["top"]}


class Feed:
    """The scene in front of the camera."""

    def __init__(self, process):
        self.process = process

    def tell(self, text):
        self.process.stdin.write(f"{text}\n".encode())
        self.process.stdin.flush()
        line = self.process.stdout.readline().decode().strip()
        assert line, self.process.stderr.read().decode()
        return line

    def format(self, form):
        """Give the camera a pixel format and no picture."""
        assert self.tell(f"format {form}") == f"format {form}"

    def show(self, path):
        """Show a picture; frames completed after the returned time, on the board's clock, show it."""
        return float(self.tell(f"show {path}").split()[-1])

    def close(self):
        """Let go of the camera's other end."""
        assert self.tell("close") == "closed"


class Lines:
    """The JSON lines of `edgecnn classify --json`, read as they arrive."""

    def __init__(self, board, process, number):
        self.board = board
        self.process = process
        self.number = number
        self.lines = []
        self.seen = 0
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(json.loads(line))
                self.changed.notify_all()

    def wait(self, wanted, what):
        """Return the first matching line after those of earlier waits."""
        deadline = time.monotonic() + PATIENCE_S
        with self.changed:
            while True:
                while self.seen < len(self.lines):
                    self.seen += 1
                    if wanted(self.lines[self.seen - 1]):
                        return self.lines[self.seen - 1]
                left = deadline - time.monotonic()
                if left <= 0 or not (self.thread.is_alive() or self.seen < len(self.lines)):
                    last = "\n".join(json.dumps(line) for line in self.lines[-3:])
                    pytest.fail(f"no {what} within {PATIENCE_S} s; the last lines:\n{last}\n{self.board.console()}")
                self.changed.wait(min(left, 1))

    def event(self, kind):
        """Wait for an event."""
        return self.wait(lambda line: line.get("event") == kind, f"event {kind}")

    def frame(self, after=0.0):
        """Wait for a frame that was completed after a time."""
        return self.wait(lambda line: "seq" in line and "event" not in line and time_of(line) > after, "frame")

    def signal(self, name):
        """Send a signal, and return the exit code."""
        self.board.run(["kill", f"-{name}", str(self.number)], check=True)
        return self.process.wait(timeout=PATIENCE_S)


def time_of(line):
    """Return the seconds since the epoch of a line's `ts`."""
    return datetime.strptime(line["ts"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


@pytest.fixture(scope="session")
def feed(board, pictures):
    """The scene in front of the camera: `feed.format("RGB3")`, then `feed.show(path)`."""
    with board.job(["python3.13", "/opt/board/feed.py"]) as (process, _):
        yield Feed(process)


@pytest.fixture(scope="session")
def classifying(board):
    """Run `edgecnn classify … --json` on the board: `with classifying("--camera") as lines`, or with only one pixel format."""

    @contextlib.contextmanager
    def classifying(*arguments, form=None):
        command = ["edgecnn"] if form is None else ["python3.13", "-c", AS_FORMAT, form]
        with board.job([*command, "classify", *arguments, "--json", "--top-k", "10"]) as (process, number):
            yield Lines(board, process, number)

    return classifying
