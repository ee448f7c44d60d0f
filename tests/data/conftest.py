"""Pictures, folders, and a file server that misbehaves on request."""

import contextlib
import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, height: int = 12, width: int = 12, format: str = "PNG", mode: str = "RGB", **options) -> bytes:
    """Return an encoded random picture; the seed decides its pixels."""
    shape = (height, width) if mode == "L" else (height, width, {"RGB": 3, "RGBA": 4, "CMYK": 4}[mode])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return encoded(Image.frombytes(mode, (width, height), pixels.tobytes()), format, **options)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by relative path; a path that ends in a slash makes a folder."""
    for name, data in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


def pictures(prefix: str, first: int, count: int, **options) -> dict[str, bytes]:
    """Return files "prefix/0.png" … of distinct pictures, seeds `first` and up."""
    return {f"{prefix}/{number}.png": picture(first + number, **options) for number in range(count)}


@pytest.fixture(scope="session", name="picture")
def picture_function() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session", name="pictures")
def pictures_function() -> Callable[..., dict[str, bytes]]:
    return pictures


@pytest.fixture(scope="session", name="encoded")
def encoded_function() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session", name="fill")
def fill_function() -> Callable[[Path, dict[str, bytes]], Path]:
    return fill


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of 60 cats and 60 dogs without splits."""
    return fill(tmp_path / "pets", {**pictures("cat", 0, 60), **pictures("dog", 1000, 60)})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's data, cache and proxies out of every test; the cache's parent folder is returned."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("no_proxy", "*")
    return cache


class FileServer:
    """Serves `files` by name. Each request uses up one of `cuts`, the bytes after which the connection is cut (None: not at all),
    and one of `statuses`, a code to answer instead (0: none). `asked` lists (name, Range header) of each request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: list[int | None] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name, wish = request.path[1:], request.headers["Range"]
        self.asked.append((name, wish))
        status = self.statuses.pop(0) if self.statuses else 0
        cut = self.cuts.pop(0) if self.cuts else None
        if status or name not in self.files:
            request.send_error(status or 404)
            return
        data = self.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", wish)[1]) if wish and self.ranges else 0
        if start and start >= len(data):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        with contextlib.suppress(ConnectionError):
            request.wfile.write(data[start:] if cut is None else data[start : start + cut])
        request.close_connection = True


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = FileServer()
    thread = threading.Thread(target=files.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield files
    files.server.shutdown()
    files.server.server_close()
    thread.join()
