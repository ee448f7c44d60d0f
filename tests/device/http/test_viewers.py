"""The cost of onlookers for the camera loop: 16 viewers and 4 clients that post photos, with a camera at 30 frames/s.

Runs without --http, twice, and runs with viewers are interleaved. A run's figure is the 99th percentile of the age of a frame when its
decision is known. Then one run at 100 frames/s shows whether memory grows while connections come and go. The clients run on this machine
with the lowest priority, since real ones have their own processors.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from edgecnn.bundle.read import read_bundle
from edgecnn.runtime.default import shipped_bundle

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
