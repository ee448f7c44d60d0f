"""How long a reviewer waits from a key press to the next picture on the screen, in Chromium, for 200 pictures of 640x480.

The time runs from the key's event to the frame that paints the next picture; by then the label is on disk. Most of it is fsync, which
depends on the disk, so a bare fsync is timed too. On a busy machine the processor time is more informative: that of the server and of all
of Chromium's threads, from key to key.

    python tools/bench/review.py
"""

import contextlib
import io
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Row, about, edgecnn_command, finish, parser
from PIL import Image

from edgecnn.device.keep.folder import Facts, KeptModel, KeptPicture, KeptScore, write_kept
from edgecnn.files import sha256

PICTURES = 200
SIZE = 640, 480
LABELS = ("cat", "dog", "fox")

WATCH = """
window.took = [];
document.addEventListener("keydown", () => {
  window.pressed = performance.now();
  window.before = document.querySelector("#pictures img")?.src;
}, true);
new MutationObserver(() => {
  const picture = document.querySelector("#pictures img");
  if (!picture || picture.src === window.before) return;
  window.before = picture.src;
  picture.decode().then(() => requestAnimationFrame(() => setTimeout(() => window.took.push(performance.now() - window.pressed))));
}).observe(document.getElementById("pictures"), {childList: true});
"""


def main() -> None:
    """Measure, print a table and write the figures."""
    arguments = parser(__doc__, "review").parse_args()
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        report = {
            **about("review", pictures=PICTURES, size=list(SIZE)),
            "load": os.getloadavg()[0],
            **measure(Path(folder)),
        }
    names = ("key_to_picture_ms", "server_cpu_ms", "chromium_cpu_ms", "fsync_ms")
    rows = [(name, *(f"{report[name][at]:.1f}" for at in ("p50", "p95", "p99"))) for name in names]
    finish(arguments.out, report, ("", "p50", "p95", "p99"), rows)


def measure(folder: Path) -> Row:
    keep(folder / "kept")
    command = [*edgecnn_command(), "review", "kept", "--into", "photos"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    browser = chromium()
    try:
        assert server.stderr
        url = next(match[1] for line in server.stderr if (match := re.match(r"page: (\S+)", line)))
        browser.get(url)
        wait(browser, f"return document.getElementById('left')?.innerText.startsWith('{PICTURES} ')")
        browser.execute_script(WATCH)
        used = []
        for count in range(PICTURES - 1):
            wait(browser, f"return took.length === {count} && seen && !busy")
            before = cpu_ms(server.pid), cpu_ms(browser.service.process.pid)
            browser.find_element("tag name", "body").send_keys(str(1 + count % len(LABELS)))
            wait(browser, f"return took.length === {count + 1}")
            used.append(
                [
                    after - one
                    for after, one in zip(
                        (cpu_ms(server.pid), cpu_ms(browser.service.process.pid)), before, strict=True
                    )
                ]
            )
        took = browser.execute_script("return took")
    finally:
        browser.quit()
        server.terminate()
        server.wait()
    assert len(list((folder / "photos").glob("*/*.jpg"))) == PICTURES - 1
    return {
        "key_to_picture_ms": percentiles(took),
        "fsync_ms": percentiles(bare_syncs(folder / "probe")),
        "server_cpu_ms": percentiles([server for server, _ in used]),
        "chromium_cpu_ms": percentiles([chromium for _, chromium in used]),
    }


def keep(folder: Path) -> None:
    """Keep pictures with photo-like detail: coarse tiles, finer ones and noise."""
    chance = np.random.default_rng(1)
    width, height = SIZE
    for number in range(PICTURES):
        pixels = np.zeros((height, width, 3))
        for tile, strength in ((80, 160), (16, 50), (4, 30), (1, 15)):
            pixels += strength * chance.random((height // tile, width // tile, 3)).repeat(tile, 0).repeat(tile, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "jpeg", quality=90)
        picture = KeptPicture(sha256=sha256(buffer.getvalue()), width=width, height=height)
        scores = tuple(KeptScore(label=label, score=1 / 3) for label in LABELS)
        facts = Facts(
            ts=1.79e9 + number, why="unsure", source="camera", seq=number, model=KeptModel(name="door", sha256="0" * 64), scores=scores,
            label=None, reason="below_margin", region=None, picture=picture,
        )  # fmt: skip
        write_kept(folder, facts, buffer.getvalue())


def chromium():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def wait(browser, script: str) -> None:
    deadline = time.monotonic() + 60
    while not browser.execute_script(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.01)


def cpu_ms(process: int) -> float:
    """Return the processor milliseconds of a process and its children, from the scheduler's accounting."""
    total = 0.0
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            total += int((task / "schedstat").read_text().split()[0]) / 1e6
            total += sum(cpu_ms(int(child)) for child in (task / "children").read_text().split())
    return total


def bare_syncs(path: Path) -> list[float]:
    took = []
    with path.open("wb") as file:
        for _ in range(PICTURES):
            file.write(b"a line of a file\n")
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            took.append(1000 * (time.perf_counter() - started))
    return took


def percentiles(values: list[float]) -> Row:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


if __name__ == "__main__":
    main()
