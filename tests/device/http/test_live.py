"""The camera loop's side of the server, and its viewers.

Runs without --http, twice, and runs with viewers are interleaved. A run's figure is the 99th percentile of the age of a frame when its
decision is known. Then one run at 100 frames/s shows whether memory grows while connections come and go. The clients run on this machine
with the lowest priority, since real ones have their own processors.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from edgecnn.bundle.file import read_bundle
from edgecnn.device.address import open_listener
from edgecnn.device.http import live as lives
from edgecnn.device.http.link import AWAY, EVENT, LOOK, PICTURE, RESULT, UNSURE, Opening, Picture, Shared
from edgecnn.device.http.live import REPLAYED, Live, model_facts
from edgecnn.device.http.routes import Viewers, all_routes, make_app
from edgecnn.device.http.serve import make_site
from edgecnn.device.stream.events import CameraOpenedEvent, FrameResult, ProblemEvent
from edgecnn.device.stream.settings import Http
from edgecnn.region import WHOLE
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import Score
from edgecnn.runtime.default import shipped_bundle

CAMERA = "synthetic:64x48?fps=30&pattern=noise"

PATIENT = """if True:
    from edgecnn.cli import main
    from edgecnn.device.http import live
    from edgecnn.device.stream import feed
    feed.STALL_S, live.RETRY_S = 100, (0.5,)
    main()
"""
PROGRAM = (sys.executable, "-P", "-c", PATIENT)
"""edgecnn, but the server restarts soon after it has died, and a camera may be silent for longer."""


def children(process, text):
    """Return the child processes whose command contains a text."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if text in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.fixture(scope="module")
def watched(serve):
    return serve(CAMERA, "--json", "--rotate", "90", program=PROGRAM).ready()


def test_the_state_the_lines_and_the_picture_of_a_camera(watched):
    state = watched.state()
    assert state["schema"] == "edgecnn.state/1" and state["camera"] == "open" and state["source"] == CAMERA
    assert state["frame"]["width"] == 48 and state["frame"]["height"] == 64, "upright"
    assert state["state"] in state["model"]["labels"] and state["since"] <= state["time"]
    assert state["top"][0]["label"] in state["counts"]["decisions"]
    assert sum(state["counts"]["decisions"].values()) == state["counts"]["frames"]
    assert state["model"]["images"] == 5000 and state["model"]["interval"][0] < state["model"]["accuracy"]

    with urllib.request.urlopen(f"{watched.url}/v1/events", timeout=10) as events:
        received = [events.readline() for _ in range(12)]
        sent = [line.decode() for line in received if line.startswith(b"data: ")]
    assert received[:2] == [b"retry: 1000\n", b"\n"], "a browser asks again after a second"
    assert len(sent) >= 5
    watched.until(lambda: sent[-1].removeprefix("data: ") in watched.lines)
    assert {line.removeprefix("data: ") for line in sent} <= set(watched.lines)

    status, headers, jpeg = watched.ask("/v1/frame.jpg")
    assert (status, headers["content-type"]) == (200, "image/jpeg") and headers["cache-control"] == "no-store"
    assert Image.open(io.BytesIO(jpeg)).size == (48, 64)
    assert abs(parsedate_to_datetime(headers["last-modified"]).timestamp() - time.time()) < 20
    with urllib.request.urlopen(f"{watched.url}/v1/stream.mjpeg", timeout=10) as stream:
        parts = stream.read(20_000).split(b"--edgecnn-frame\r\n")
    assert len({part for part in parts if part.startswith(b"Content-Type: image/jpeg")}) >= 2, "two pictures differ"
    head, _, picture = parts[1].partition(b"\r\n\r\n")
    size, seq = (int(re.search(rb"%b: (\d+)" % name, head)[1]) for name in (b"Content-Length", b"Edgecnn-Frame"))
    assert size == len(picture) - 2 and picture.endswith(b"\xff\xd9\r\n")
    watched.until(lambda: any(f'"seq": {seq},' in line for line in watched.lines))


def test_a_server_that_dies_comes_back_and_ends_with_the_camera_loop(watched):
    before = watched.state()
    os.kill(watched.children()[0], signal.SIGKILL)
    problem = json.loads(watched.until(lambda: next((line for line in watched.lines if '"problem"' in line), None)))
    assert problem["about"] == "http" and "SIGKILL" in problem["message"]

    lines = len(watched.lines)
    watched.ready()
    assert len(watched.lines) > lines + 10, "frames are classified meanwhile"
    after = watched.state()
    assert after["camera_since"] == before["camera_since"] and after["counts"]["frames"] > before["counts"]["frames"]

    (server,) = watched.children()
    watched.process.kill()
    watched.process.wait()

    def gone():
        try:
            with open(f"/proc/{server}/stat", encoding="ascii") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    watched.until(gone, 5.0)


def test_a_slow_cameras_picture_is_there_for_later_viewers_and_servers_too(serve, tmp_path):
    """The server imports nothing from the folder that the command runs in, unless the command does."""
    (tmp_path / "uvicorn.py").write_text("open('imported', 'w')\n")
    serving = serve("synthetic:64x48?fps=0.01", "--warm-up", "0", cwd=tmp_path, program=PROGRAM)
    serving.until(lambda: (tmp_path / "imported").exists() or serving.is_ready())
    assert not (tmp_path / "imported").exists()
    first = serving.ask("/v1/frame.jpg")
    os.kill(serving.children()[0], signal.SIGKILL)
    serving.until(lambda: '"problem"' in "".join(serving.lines) or "the page's server" in "".join(serving.notes))
    later = serving.ask("/v1/frame.jpg")  # the new server waits for a picture
    assert first[0] == later[0] == 200 and first[1]["last-modified"] == later[1]["last-modified"]


def test_the_camera_loop_hears_whether_somebody_is_watching(monkeypatch):
    monkeypatch.setattr("edgecnn.device.http.routes.LINGER_S", 0.0)
    heard = []

    async def visits():
        viewers = Viewers(None, heard.append)
        for visit in (1, 2):
            assert await viewers.newest(wait_s=0.01) is None
            async with asyncio.timeout(10):
                while len(heard) < 2 * visit:
                    await asyncio.sleep(0.01)

        stream = viewers.stream()
        visit = asyncio.create_task(anext(stream))
        while len(heard) < 5:
            await asyncio.sleep(0)
        visit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await visit

    asyncio.run(visits())
    assert heard == [True, False] * 3


def test_a_later_viewer_gets_no_old_picture_and_a_stream_can_be_asked_for_its_headers_only(monkeypatch):
    """A picture of 32 x 24 pixels, turned upright; the picture after it is damaged, and the next one never arrives."""
    monkeypatch.setattr("edgecnn.device.http.routes.LINGER_S", 0.05)
    shared, heard, taken = Shared.create(), [], 1_800_000_000.0
    facts = {"name": "m", "serial": 0, "labels": ["cat"], "shape": [2, 3, 3]}
    viewers = Viewers(Shared(shared.file), heard.append, rotation=90)
    site = make_site(Opening(port=80, model=facts), viewers, None)

    async def visit():
        transport = httpx.ASGITransport(make_app(site.gate, all_routes(site)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            first = [asyncio.create_task(client.get("/v1/frame.jpg")) for _ in range(2)]
            while not heard:
                await asyncio.sleep(0.001)
            pixels = np.zeros((24, 32, 3), np.uint8)
            pixels[:, :16] = 250  # its left half, which is the upper one after a quarter turn to the right
            viewers.picture(shared.write(pixels, taken, 0))
            answers = [await answer for answer in first]
            monkeypatch.setattr("edgecnn.device.http.routes.PICTURE_S", 0.05)
            while len(heard) < 2:
                await asyncio.sleep(0.01)
            viewers.picture(shared.write(b"\xff\xd8\xff broken", taken + 1, 1))
            answers.append(await client.get("/v1/frame.jpg"))
            heads = [await client.head(path) for path in ("/v1/events", "/v1/stream.mjpeg")]
            site.board.camera = "none"
            answers += [await client.get(path) for path in ("/v1/frame.jpg", "/v1/stream.mjpeg")]
            return answers, heads

    answers, heads = asyncio.run(visit())
    assert [answer.status_code for answer in answers] == [200, 200, 503, 404, 404]
    assert answers[0].content == answers[1].content
    picture = np.asarray(Image.open(io.BytesIO(answers[0].content)).convert("L")).astype(int)
    assert picture.shape == (32, 24) and picture[:14].min() > 200 and picture[18:].max() < 50
    assert parsedate_to_datetime(answers[0].headers["last-modified"]).timestamp() == taken
    assert answers[2].json()["error"] == "no picture arrived within 0.05 s."
    types = [head.headers["content-type"].partition(";")[0] for head in heads]
    assert types == ["text/event-stream", "multipart/x-mixed-replace"] and heard == [True, False, True]
    assert {head.headers["cache-control"] for head in (*heads, *answers)} == {"no-store"}


def result(decision, seq=0, size=(4, 6), **changed):
    fields = {
        "seq": seq, "ts": time.time(), "age_ms": 1.0, "source": "door", "image": np.zeros((*size, 3), np.uint8),
        "top": (Score(decision, 0, 0.9),), "decision": decision, "reason": None, "lead": 0.9, "state": None, "state_since": None,
        "dropped": 0, "latency_ms": {"decode": 0.0, "preprocess": 0.0, "infer": 0.1},
    }  # fmt: skip
    return FrameResult(**fields | changed)


class Server:
    """Stands for the server's process: it has read its opening, reads messages when it is asked to, and ends with a given code."""

    def __init__(self, command, stdin, pass_fds, **_):
        self.opening, self.returncode, self.waits = json.loads(stdin.read()), None, []
        self.link = socket.socket(fileno=os.dup(pass_fds[0]))
        self.shared = Shared(os.dup(pass_fds[2]))

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self.waits.append(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("server", timeout)

    def kill(self):
        self.returncode = -9

    def messages(self, kind):
        """Return the bodies of the waiting messages of a kind; the others are lost."""
        found = []
        while True:
            try:
                message = self.link.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found += [message[1:]] if message[:1] == kind else []


@pytest.fixture
def alone(monkeypatch):
    """A Live whose servers are in the list `servers`, and whose clock is `now[0]`."""
    servers, now = [], [1000.0]
    monkeypatch.setattr(lives, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 1.8e9))
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **more: servers.append(Server(*given, **more)) or servers[-1]
    )
    listener = socket.create_server(("127.0.0.1", 0))
    live = Live(Opening(port=0, kept=({"name": "earlier"},)), listener, ("pets", "0" * 64), WHOLE)
    yield SimpleNamespace(live=live, servers=servers, now=now, listener=listener)
    live.finish(0)


def test_a_server_that_ends_again_and_again_is_restarted_later_each_time_with_everything_so_far(alone):
    live, servers, now = alone.live, alone.servers, alone.now
    live.hear(CameraOpenedEvent(ts=1.0, source="door", about="a camera", live=True))
    for decision in ("cat", "dog", "dog"):
        live.take(result(decision))
    assert [json.loads(message)["event"] for message in servers[0].messages(EVENT)] == ["camera_opened"]
    live.kept(
        "a/b.jpg",
        result("abstain", ts=5.5, top=(Score("dog", 1, 0.12345678), Score("cat", 0, 0.1)), reason="below_threshold"),
    )
    kept = {"name": "a/b.jpg", "ts": 5.5, "guess": "dog", "reason": "below_threshold", "score": 0.123457}
    assert [json.loads(message) for message in servers[0].messages(UNSURE)] == [kept]
    ran_s = [0, 0, 0, 0, 60.0, 0, 60.5, 0]
    for count, (ran, delay) in enumerate(zip(ran_s, (2, 5, 10, 30, 30, 30, 1, 2), strict=True), 1):
        now[0] += ran
        assert list(live.poll()) == [] and len(servers) == count
        servers[-1].returncode = 7 if count % 2 else -11
        (problem,) = live.poll()
        how = "exit code 7" if count % 2 else "segmentation fault (SIGSEGV)"
        assert problem.message == f"the page's server has ended: {how}; it restarts in {delay} s"
        now[0] += delay - 0.01
        assert list(live.poll()) == [] and len(servers) == count
        now[0] += 0.02
        assert list(live.poll()) == [] and len(servers) == count + 1
    opening = servers[-1].opening
    assert opening["decisions"] == {"cat": 1, "dog": 2} and opening["kept"] == [{"name": "earlier"}, kept]
    assert [json.loads(line)["event"] for line in opening["replay"]] == ["camera_opened"]
    live.finish(0.0)
    assert servers[-1].waits == [0.5, None] and servers[-1].returncode == -9 and alone.listener.fileno() == -1


def test_a_viewer_gets_ten_new_pictures_a_second_and_a_large_one_at_half_its_size(alone):
    live, (server,), now = alone.live, alone.servers, alone.now
    frames = iter(range(100))

    def seen(*sizes, after_s=0.0, message=None):
        """Return (frame's number, shape) of each picture that is sent for new frames of some sizes, a time after the last."""
        if message is not None:
            server.link.send(message)
        now[0] += after_s
        for size in sizes:
            live.take(result("cat", next(frames), size))
        live.poll()
        places = map(Picture.parse, server.messages(PICTURE))
        return [(place.seq, server.shared.read(place).shape) for place in places]

    assert seen((6, 4), (4, 6)) == [], "nobody is watching"
    assert seen(message=LOOK) == [(1, (4, 6, 3))], "the newest"
    assert seen(after_s=0.2) == [], "it is already there"
    assert seen((30, 2559), (40, 60)) == [(2, (30, 2559, 3))], "the next one is too early"
    assert seen((31, 2560), after_s=0.09) == []
    assert seen((31, 2560), (4, 6), after_s=0.02) == [(5, (16, 1280, 3))]
    assert seen(message=AWAY) == seen((4, 6), (6, 4), after_s=1.0) == [], "nobody is watching any more"
    live.hear(CameraOpenedEvent(ts=1.0, source="door", about="a camera", live=True))
    live.take(result("cat", next(frames), (31, 2560)))
    live.hear(CameraOpenedEvent(ts=1.0, source="door", about="another camera", live=True))
    jpeg = io.BytesIO()
    Image.new("RGB", (30, 20)).save(jpeg, "jpeg")
    for decision, image in (("cat", jpeg.getvalue()), ("dog", b"not an image")):
        live.take(result(decision, next(frames), image=image))
    heads = [json.loads(message.partition(b"\n")[0]) for message in server.messages(RESULT)]
    assert heads == [[[2560, 31], {"cat": 1}], [[30, 20], {"cat": 1}], [[30, 20], {"dog": 1}]], "width and height"
    sizes = []
    for width, after_s in ((50, 0.05), (60, 0.06), (70, 0.1), (80, 0.0)):
        now[0] += after_s
        jpeg = io.BytesIO()
        Image.new("RGB", (width, 20)).save(jpeg, "jpeg")
        live.take(result("cat", next(frames), image=jpeg.getvalue()))
        sizes += [json.loads(message.partition(b"\n")[0])[0][0] for message in server.messages(RESULT)]
    assert sizes == [30, 60, 70, 70], "an encoded frame's size is read ten times a second"
    live.take(result("cat", next(frames), (24, 32)))
    (message,) = server.messages(RESULT)
    assert json.loads(message.partition(b"\n")[0])[0] == [32, 24]
    for rotation, size in ((90, [2, 3]), (180, [3, 2]), (270, [2, 3])):
        turned = Live(Opening(port=0, rotation=rotation), socket.socket(), ("pets", "0" * 64), WHOLE)
        turned.take(result("owl", 0, (2, 3)))
        (message,) = alone.servers[-1].messages(RESULT)
        assert json.loads(message.partition(b"\n")[0]) == [size, {"owl": 1}]
        turned.finish(0)


def test_a_restarted_server_knows_the_camera_and_counts_nothing_twice(bundle, monkeypatch):
    monkeypatch.setattr("edgecnn.device.http.live.RETRY_S", (0.0,))
    door = open_listener(Http(address="0"))
    opening = Opening(port=door.address[1], model=model_facts(Classifier.load(bundle)))
    live = Live(opening, door.listener, ("pets", "0" * 64), WHOLE)

    def frames(count, decision):
        for seq in range(count):
            live.take(result(decision, seq))
            live.poll()

    def board():
        live.poll()  # restarts the server; a request to a dead one waits for the next
        try:
            with urllib.request.urlopen(f"{door.url}v1/state", timeout=0.5) as answer:
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
        (server,) = children(os.getpid(), "\0edgecnn.device.http.serve\0")
        os.kill(server, signal.SIGSTOP)
        frames(1000, "dog")  # more than the link has room for
        os.kill(server, signal.SIGKILL)
        state = until(lambda state: state["counts"]["decisions"].get("dog"))
        assert state["counts"]["decisions"] == {"cat": 500, "dog": 1000} and state["camera"] == "open"
        frames(1, "cat")
        state = until(lambda state: state["counts"]["frames"] == 1501)
        assert state["counts"]["decisions"] == {"cat": 501, "dog": 1000}
    finally:
        assert list(live.finish(1.0)) == []


VIEWERS, POSTERS = 16, 4
ROUNDS, SECONDS, LONG_S = 3, 4.0, 15.0
WARM_UP_S = 2.0  # untimed start of each run, while processes start
BOUNDARY = b"--edgecnn-frame\r\n"


@pytest.mark.slow
def test_viewers_cost_the_camera_loop_nothing(tmp_path, root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(read_bundle(shipped_bundle()).files["golden/encoded/camera.jpg"])
    Image.open(photo).convert("RGB").resize((640, 480)).save(tmp_path / "frame.png")
    alone, looked_at = [], []
    for _ in range(ROUNDS + 1):
        alone += [run(30, SECONDS, False, tmp_path), run(30, SECONDS, False, tmp_path)]
        looked_at.append(run(30, SECONDS, True, tmp_path))
    alone, looked_at = alone[2:], looked_at[1:]  # the first round warms up
    lasting = run(100, LONG_S, True, tmp_path)
    said = (alone, looked_at, lasting, os.getloadavg())

    def middle(runs, name):
        return statistics.median(each[name] for each in runs)

    later_ms = middle(looked_at, "p99_ms") - middle(alone, "p99_ms")
    assert later_ms <= 5 or middle(looked_at, "p99_ms") <= max(each["p99_ms"] for each in alone), said
    assert middle(looked_at, "dropped") <= max(2, middle(alone, "dropped")), said
    assert statistics.median(each["served"]["frames_per_viewer_s"] for each in looked_at) > 2, said
    assert lasting["served"]["connections"] > 200, said
    assert lasting["mib"]["last quarter"] < lasting["mib"]["second quarter"] + 2, said


def run(fps, seconds, looked_at, folder):
    """Run `edgecnn classify` once, with clients or without --http, and return its figures."""
    lines, notes, frame, photo = (folder / name for name in ("lines", "notes", "frame.png", "photo.jpg"))
    command = [sys.executable, "-m", "edgecnn", "classify", f"synthetic:?fps={fps}&pattern={frame}", "--json"]
    with lines.open("wb") as out, notes.open("wb") as err:
        loop = subprocess.Popen([*command, *(["--http", "0"] if looked_at else [])], stdout=out, stderr=err)
    try:
        until(lambda: lines.read_bytes().count(b"\n") > 2)
        served = {}
        time.sleep(WARM_UP_S)
        start, memory = time.time(), []
        if looked_at:
            port = int(notes.read_text().partition("page: http://127.0.0.1:")[2].partition("/")[0])
            command = [sys.executable, __file__, "clients", str(port), str(photo), str(seconds)]
            asking = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(19))
            while asking.poll() is None:
                memory.append(resident_mib(loop.pid))
                time.sleep(1.0)
            served = json.loads(asking.communicate()[0])
            start = served.pop("start")
        else:
            time.sleep(seconds)
        end = time.time()
    finally:
        loop.send_signal(signal.SIGTERM)
        loop.wait(30)
    every = [json.loads(line) for line in lines.read_bytes().splitlines()]
    results = [line for line in every if "top" in line and start <= seconds_of(line["ts"]) <= end]
    ages = sorted(line["age_ms"] for line in results)
    figures = {
        "p50_ms": statistics.median(ages),
        "p99_ms": ages[int(0.99 * (len(ages) - 1))],
        "frames": len(ages),
        "dropped": results[-1]["dropped"] - results[0]["dropped"],
        "served": served,
    }
    if memory:
        quarter = max(1, len(memory) // 4)
        figures["mib"] = {"second quarter": top(memory[quarter : 2 * quarter]), "last quarter": top(memory[-quarter:])}
    return figures


def seconds_of(ts):
    return datetime.fromisoformat(ts).timestamp()


def top(values):
    return round(max(values, default=0.0), 1)


def resident_mib(pid):
    """Return the unshared resident memory of a process and its children."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        processes = [str(pid), *file.read().split()]
    pages = 0
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process}/statm", encoding="ascii") as file:
            resident, shared = (int(field) for field in file.read().split()[1:3])
            pages += resident - shared
    return pages * resource.getpagesize() / 2**20


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            sys.exit("the camera loop does not start")
        time.sleep(0.05)


async def clients(port, photo, seconds):
    """View and post for some seconds, each post over a new connection. Returns what was served."""
    start, end = time.time(), time.monotonic() + seconds
    data = photo.read_bytes()
    looked = await asyncio.gather(
        *(view(port, end) for _ in range(VIEWERS)), *(post(port, data, end) for _ in range(POSTERS))
    )
    frames, posted = looked[:VIEWERS], [took for each in looked[VIEWERS:] for took in each]
    return {
        "start": start,
        "frames_per_viewer_s": statistics.median(len(each) for each in frames) / seconds,
        "posts_s": len(posted) / seconds,
        "post_ms": statistics.median(posted) * 1000,
        "connections": VIEWERS + len(posted),
    }


async def view(port, end):
    """Read the picture stream. Returns the time at which each picture began."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/stream.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    seen = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + end - time.monotonic()):
            while data := await reader.read(1 << 18):
                seen += [time.monotonic()] * data.count(BOUNDARY)
    writer.close()
    return seen


async def post(port, data, end):
    """Post a photo repeatedly. Returns the seconds until each answer."""
    took = []
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    while (start := time.monotonic()) < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + data)
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a post was refused: {answer[:200]!r}")
        took.append(time.monotonic() - start)
    return took


if __name__ == "__main__" and sys.argv[1:2] == ["clients"]:
    print(json.dumps(asyncio.run(clients(int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])))))
