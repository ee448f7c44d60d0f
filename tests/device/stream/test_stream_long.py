"""Two hours' worth of frames at 30 per second, as fast as possible: memory stays flat, and no thread, file or process is left."""

import json
import os
import subprocess
import sys

import pytest

from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

LONG = """
import json, os, sys, threading, time
from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings
from edgecnn.device.stream.feed import Feed
from edgecnn.device.stream.events import Event
from edgecnn.device.stream.results import event_line, result_line
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
