"""The cost of onlookers for the camera loop: 16 viewers and 4 clients that post photos, with a camera at 30 frames/s.

Runs without --http, twice, and runs with viewers are interleaved. A run's figure is the 99th percentile of the age of a frame when its
decision is known. Then one long run at 100 frames/s shows whether memory grows while connections come and go. The clients run on this
machine with the lowest priority, since real ones have their own processors.

    python tools/bench/viewers.py
    python tools/bench/viewers.py --quick
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
import tempfile
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness import Row, about, edgecnn_command, environment, finish, interleaved, parser
from PIL import Image

from edgecnn.bundle.read import read_bundle
from edgecnn.runtime.default import shipped_bundle

VIEWERS, POSTERS = 16, 4

CASES = ("without", "without again", "with viewers")

WARM_UP_S = 2.0  # untimed start of each run, while processes start

BOUNDARY = b"--edgecnn-frame\r\n"

HEADINGS = ("", "p50 ms", "p99 ms", "frames dropped", "of")


def main() -> None:
    """Measure, print a table and write the figures; or act as the clients of a run."""
    if sys.argv[1:2] == ["clients"]:
        print(json.dumps(asyncio.run(clients(int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])))))
        return
    made = parser(__doc__, "viewers")
    made.add_argument("--quick", action="store_true", help="one minute in total instead of ten")
    arguments = made.parse_args()
    report = measure(**QUICK if arguments.quick else FULL)
    finish(arguments.out, report, HEADINGS, rows(report))
    print(sentence(report))


FULL: Row = {"rounds": 5, "seconds": 8.0, "long_s": 270.0}
QUICK: Row = {"rounds": 3, "seconds": 4.0, "long_s": 15.0}


def measure(rounds: int, seconds: float, long_s: float) -> Row:
    """Run all cases, `rounds` times for `seconds` each, then the long one. Returns the report."""
    bundle = read_bundle(shipped_bundle())
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        photo.write_bytes(bundle.files["golden/encoded/camera.jpg"])
        frame = Path(folder, "frame.png")
        Image.open(photo).convert("RGB").resize((640, 480)).save(frame)
        one = partial(run, folder=Path(folder), frame=frame, photo=photo)
        calls = {name: partial(one, fps=30, seconds=seconds, looked_at=name == CASES[2]) for name in CASES}
        found = interleaved(calls, rounds, warmup=1)
        lasting = one(fps=100, seconds=long_s, looked_at=True)
    cases = {
        name: {
            field: statistics.median(each[field] for each in runs)
            for field in ("p50_ms", "p99_ms", "dropped", "frames")
        }
        | {"p99_ms_each": [round(each["p99_ms"], 3) for each in runs]}
        for name, runs in found.items()
    }
    served = {
        name: statistics.median(each["served"][name] for each in found[CASES[2]])
        for name in found[CASES[2]][0]["served"]
    }
    spread = abs(cases[CASES[0]]["p99_ms"] - cases[CASES[1]]["p99_ms"])
    without = statistics.median([*cases[CASES[0]]["p99_ms_each"], *cases[CASES[1]]["p99_ms_each"]])
    return {
        **about(
            "viewers", bundle_sha256=bundle.sha256, viewers=VIEWERS, posters=POSTERS, rounds=rounds, seconds=seconds
        ),
        "load": [round(load, 1) for load in os.getloadavg()],
        "cases": cases,
        "served": served,
        "later_ms": cases[CASES[2]]["p99_ms"] - without,
        "spread_ms": spread,
        "long": lasting,
    }


def run(fps: int, seconds: float, looked_at: bool, folder: Path, frame: Path, photo: Path) -> Row:
    """Run `edgecnn classify` once, with clients or without --http, and return its figures."""
    lines, notes = folder / "lines", folder / "notes"
    command = [
        *edgecnn_command(),
        "classify",
        f"synthetic:?fps={fps}&pattern={frame}",
        "--json",
        "--model",
        str(shipped_bundle()),
    ]
    with lines.open("wb") as out, notes.open("wb") as err:
        loop = subprocess.Popen(
            [*command, *(["--http", "0"] if looked_at else [])], stdout=out, stderr=err, env=environment()
        )
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
    figures: dict[str, Any] = {
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


def seconds_of(ts: str) -> float:
    return datetime.fromisoformat(ts).timestamp()


def top(values: list[float]) -> float:
    return round(max(values, default=0.0), 1)


def resident_mib(pid: int) -> float:
    """Return the unshared resident memory of a process and its children."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        processes = [str(pid), *file.read().split()]
    pages = 0
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process}/statm", encoding="ascii") as file:
            resident, shared = (int(field) for field in file.read().split()[1:3])
            pages += resident - shared
    return pages * resource.getpagesize() / 2**20


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            sys.exit("the camera loop does not start")
        time.sleep(0.05)


async def clients(port: int, photo: Path, seconds: float) -> dict[str, float]:
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


async def view(port: int, end: float) -> list[float]:
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


async def post(port: int, data: bytes, end: float) -> list[float]:
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


def rows(report: Row) -> list[tuple[str, ...]]:
    cases = [(name, report["cases"][name]) for name in CASES]
    return [
        (name, f"{case['p50_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['dropped']:g}", f"{case['frames']:g}")
        for name, case in cases
    ]


def sentence(report: Row) -> str:
    """Summarise the results in words."""
    served, lasting, later = report["served"], report["long"], report["later_ms"]
    return (
        f"p99 is {abs(later):.2f} ms {'later' if later > 0 else 'earlier'} with viewers; two runs without differ by "
        f"{report['spread_ms']:.2f} ms. A viewer gets {served['frames_per_viewer_s']:.1f} pictures per second; {served['posts_s']:.0f} "
        f"posts per second are answered in {served['post_ms']:.0f} ms each. {lasting['frames']:,} frames and "
        f"{lasting['served']['connections']:,} connections: {lasting['mib']['second quarter']} MiB, then {lasting['mib']['last quarter']}."
    )


if __name__ == "__main__":
    main()
