"""A client's view of a camera: its state, lines and picture, and a server that comes back."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from email.utils import parsedate_to_datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.http.door import open_door
from edgecnn.device.http.link import Opening
from edgecnn.device.http.live import REPLAYED, Live
from edgecnn.device.http.opening import model_facts
from edgecnn.device.http.viewers import LINGER_S
from edgecnn.device.stream.events import CameraOpenedEvent, ProblemEvent
from edgecnn.device.stream.results import FrameResult
from edgecnn.device.stream.settings import Http
from edgecnn.region import WHOLE
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import Score

CAMERA = "synthetic:64x48?fps=30&pattern=noise"


def test_the_state_the_lines_and_the_picture_of_a_camera(serve):
    serving = serve(CAMERA, "--json", "--rotate", "90").ready()
    state = serving.state()
    assert state["schema"] == "edgecnn.state/1" and state["camera"] == "open" and state["source"] == CAMERA
    assert state["frame"]["width"] == 48 and state["frame"]["height"] == 64, "upright"
    assert state["state"] in state["model"]["labels"] and state["since"] <= state["time"]
    assert state["top"][0]["label"] in state["counts"]["decisions"]
    assert sum(state["counts"]["decisions"].values()) == state["counts"]["frames"]
    assert state["model"]["images"] == 5000 and state["model"]["interval"][0] < state["model"]["accuracy"]

    with urllib.request.urlopen(f"{serving.url}/v1/events", timeout=10) as events:
        sent = [line.decode() for line in (events.readline() for _ in range(12)) if line.startswith(b"data: ")]
    assert len(sent) >= 5
    serving.until(lambda: sent[-1].removeprefix("data: ") in serving.lines)
    assert {line.removeprefix("data: ") for line in sent} <= set(serving.lines)

    status, headers, jpeg = serving.ask("/v1/frame.jpg")
    assert (status, headers["content-type"]) == (200, "image/jpeg") and headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(jpeg)).size == (48, 64)
    assert abs(parsedate_to_datetime(headers["last-modified"]).timestamp() - time.time()) < 20
    with urllib.request.urlopen(f"{serving.url}/v1/stream.mjpeg", timeout=10) as stream:
        parts = stream.read(20_000).split(b"--edgecnn-frame\r\n")
    assert len({part for part in parts if part.startswith(b"Content-Type: image/jpeg")}) >= 2, "two pictures differ"


def test_a_slow_cameras_picture_is_there_for_later_viewers_too(serve):
    serving = serve("synthetic:64x48?fps=0.01", "--warm-up", "0").ready()
    for wait_s in (0.0, LINGER_S + 0.5):  # by then nobody is watching any more
        time.sleep(wait_s)
        assert serving.ask("/v1/frame.jpg")[0] == 200


def test_a_server_that_dies_comes_back_and_the_camera_loop_continues(serve):
    serving = serve(CAMERA, "--json").ready()
    before = serving.state()
    os.kill(serving.children()[0], signal.SIGKILL)
    problem = json.loads(serving.until(lambda: next((line for line in serving.lines if '"problem"' in line), None)))
    assert problem["about"] == "http" and "signal 9" in problem["message"]

    lines = len(serving.lines)
    serving.ready()
    assert len(serving.lines) > lines + 10, "frames are classified meanwhile"
    after = serving.state()
    assert after["camera_since"] == before["camera_since"] and after["counts"]["frames"] > before["counts"]["frames"]
    assert serving.close() == 143


def test_the_server_ends_with_the_camera_loop(serve):
    serving = serve(CAMERA).ready()
    (server,) = serving.children()
    serving.process.kill()
    serving.process.wait()

    def gone():
        try:
            with open(f"/proc/{server}/stat", encoding="ascii") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    serving.until(gone, 5.0)


def test_without_a_source_there_is_no_camera(serve):
    serving = serve().ready()
    state = serving.state()
    assert state["camera"] == "none" and state["frame"] is None
    assert serving.ask("/v1/frame.jpg")[0] == 404
    assert serving.close() == 143


def test_a_restarted_server_knows_the_camera_and_counts_nothing_twice(bundle):
    door = open_door(Http(address="0"))
    opening = Opening(port=door.address[1], model=model_facts(Classifier.load(bundle)))
    live = Live(opening, door.listener, ("pets", "0" * 64), WHOLE)

    def frames(count, decision):
        for seq in range(count):
            top = (Score(decision, 0, 0.9),)
            result = FrameResult(
                seq=seq, ts=time.time(), age_ms=1.0, source="door", image=np.zeros((4, 6, 3), np.uint8), top=top, decision=decision,
                reason=None, lead=0.9, state=None, state_since=None, dropped=0,
                latency_ms={"decode": 0.0, "preprocess": 0.0, "infer": 0.1},
            )  # fmt: skip
            live.take(result)
            live.poll()

    def board():
        live.poll()
        try:
            with urllib.request.urlopen(f"{door.url}v1/state", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def until(condition):
        end = time.monotonic() + 30
        while not ((state := board()) and condition(state)):
            assert time.monotonic() < end, state
            time.sleep(0.05)
        return state

    try:
        live.hear(CameraOpenedEvent(ts=time.time(), source="door", about="a camera", live=True))
        for _ in range(REPLAYED + 100):
            live.hear(ProblemEvent(ts=time.time(), source="door", about="clock", message="it is late"))
        frames(500, "cat")
        assert until(lambda state: state["counts"]["frames"] == 500)["camera"] == "open"
        live._process.send_signal(signal.SIGSTOP)
        frames(3000, "dog")  # more than the link has room for
        live._process.kill()
        state = until(lambda state: state["counts"]["decisions"].get("dog"))
        assert state["counts"]["decisions"] == {"cat": 500, "dog": 3000} and state["camera"] == "open"
        frames(1, "cat")
        state = until(lambda state: state["counts"]["frames"] == 3501)
        assert state["counts"]["decisions"] == {"cat": 501, "dog": 3000}
    finally:
        assert list(live.finish(1.0)) == []


def test_the_server_imports_nothing_from_the_folder_that_the_command_runs_in(bundle, tmp_path):
    installed = Path(sys.executable).with_name("edgecnn")
    if not installed.exists():
        pytest.skip("edgecnn is not installed in this interpreter: make test installs it")
    (tmp_path / "uvicorn.py").write_text("open('imported', 'w')\n")
    command = [installed, "classify", "synthetic:8x8?fps=20&frames=60", "--http", "0", "--model", bundle]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / "imported").exists()
