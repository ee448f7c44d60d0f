"""Images that a client posts get the command's answer, or an error with the reason."""

import asyncio
import functools
import json
import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecnn.device.http.answers import failed, refusal
from edgecnn.device.http.inference import Busy, Inference, load
from edgecnn.errors import BundleError, EngineError, ImageError, ImageTooLargeError, OutputError
from edgecnn.runtime.classifier import Classifier


@pytest.fixture
def post(guarded):
    """Post an image; return (status, headers, body)."""
    return functools.partial(guarded.ask, "/v1/classify", **guarded.token)


def png(width, height):
    """Return a PNG that claims this many pixels, and has one row of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 + width)))
        + chunk(b"IEND", b"")
    )


def test_without_a_camera_the_memory_and_the_uptime_are_those_of_the_one_process(guarded):
    """Its parent is the larger process of these tests, which started earlier."""
    board = guarded.until(lambda: (read := guarded.state(**guarded.token)["board"])["memory_mib"] and read)
    with open(f"/proc/{guarded.process.pid}/status", encoding="ascii") as file:
        (resident,) = (int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))
    assert board["memory_mib"] == pytest.approx(resident, rel=0.3)
    started = int(Path(f"/proc/{guarded.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert 0 < board["uptime_s"] < time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK") + 0.02


def test_the_answer_equals_the_commands_line(post, edgecnn, bundle, photo):
    line = edgecnn("classify", photo, "--json", "--threshold", "0.1", "--top-k", "2", "--model", bundle).out
    expected = json.loads(line)
    status, headers, body = post(photo.read_bytes(), content_type="image/jpeg")
    assert (status, headers["content-type"]) == (200, "application/json") and body.endswith(b"}\n")
    got = json.loads(body)
    varying = {"source": "http", "latency_ms": got["latency_ms"]}
    assert got == expected | varying and len(got["top"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "code", "text"),
    [
        (b"", 400, "ImageError", ""),
        (b"GIF89a", 400, "ImageError", ""),
        (b"no image", 400, "ImageError", ""),
        (png(20_000, 20_000), 413, "ImageTooLargeError", "20000x20000"),
    ],
)
def test_an_image_that_cannot_be_classified_reports_why(post, body, status, code, text):
    got, _, answer = post(body)
    answer = json.loads(answer)
    assert (got, answer["code"]) == (status, code) and answer["error"] and text in answer["error"]
    assert post()[0] == 405


def test_a_bundle_that_was_replaced_is_not_used_and_each_error_has_its_status(bundle):
    sha256 = Classifier.load(bundle).model_sha256
    half = load(str(bundle), sha256, region=[0.5, 0.0, 0.5, 0.25])
    assert (half.model_sha256, tuple(half.region)) == (sha256, (0.5, 0.0, 0.5, 0.25))
    with pytest.raises(BundleError, match="has changed"):
        load(str(bundle), "f" * 64)
    errors = {ImageTooLargeError: 413, ImageError: 400, BundleError: 503, EngineError: 503, OutputError: 500}
    for kind, status in errors.items():
        answer = failed(kind("why"))
        assert (answer.status_code, json.loads(answer.body)) == (status, {"error": "why", "code": kind.__name__})
    assert json.loads(refusal(431, "x").body)["code"] == "RequestHeaderFieldsTooLarge"


def test_eight_requests_may_wait_and_the_ninth_is_refused():
    async def requests():
        done, inference = threading.Event(), Inference(lambda: None)
        waiting = [asyncio.create_task(inference.run(lambda _: done.wait(60))) for _ in range(8)]
        await asyncio.sleep(0)
        ninth = asyncio.create_task(inference.run(lambda _: None))
        await asyncio.sleep(0)
        done.set()
        with pytest.raises(Busy):
            await ninth
        assert await asyncio.gather(*waiting) == [True] * 8
        for _ in range(9):  # failures count no longer either
            with pytest.raises(ImageError):
                await inference.run(fail)
        assert await inference.run(lambda _: "free again") == "free again"

    def fail(_):
        raise ImageError("not an image")

    asyncio.run(requests())


def test_the_number_of_waiting_images_is_limited(post, photo):
    data = photo.read_bytes()
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: post(data), range(160)))
    statuses = {status for status, _, _ in answers}
    assert statuses <= {200, 503} and sum(status == 200 for status, _, _ in answers) >= 8
    assert all(headers["retry-after"] for status, headers, _ in answers if status == 503)
