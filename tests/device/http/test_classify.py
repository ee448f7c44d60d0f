"""Images that a client posts get the command's answer, or an error with the reason."""

import json
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def api(serve):
    return serve("--threshold", "0.1", "--top-k", "2").ready()


def png(width, height):
    """Return a PNG of a few kilobytes that claims this many black pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_answer_equals_the_commands_line(api, bundle, photo):
    command = [sys.executable, "-m", "edgecnn", "classify", str(photo), "--json", "--threshold", "0.1", "--top-k", "2"]
    expected = json.loads(subprocess.run([*command, "--model", str(bundle)], capture_output=True, check=True).stdout)
    status, headers, body = api.ask("/v1/classify", photo.read_bytes(), content_type="image/jpeg")
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
def test_an_image_that_cannot_be_classified_reports_why(api, body, status, code, text):
    got, _, answer = api.ask("/v1/classify", body)
    answer = json.loads(answer)
    assert (got, answer["code"]) == (status, code) and answer["error"] and text in answer["error"]
    assert api.ask("/v1/classify")[0] == 405


def test_the_number_of_waiting_images_is_limited(api, photo):
    data = photo.read_bytes()
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: api.ask("/v1/classify", data), range(160)))
    statuses = {status for status, _, _ in answers}
    assert statuses <= {200, 503} and sum(status == 200 for status, _, _ in answers) >= 8
    assert all(headers["retry-after"] for status, headers, _ in answers if status == 503)
