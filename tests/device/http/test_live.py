"""What a client sees of a camera: its state, its lines, its picture, and a server that comes back."""

import io
import json
import os
import signal
import urllib.request

from PIL import Image

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
    with urllib.request.urlopen(f"{serving.url}/v1/stream.mjpeg", timeout=10) as stream:
        parts = stream.read(20_000).split(b"--edgecnn-frame\r\n")
    assert len({part for part in parts if part.startswith(b"Content-Type: image/jpeg")}) >= 2, "two pictures differ"


def test_a_server_that_dies_comes_back_and_the_camera_loop_goes_on(serve):
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
