"""The real command with --http in a separate process, and a client's requests to it."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

import pytest


class Serving:
    """A running `edgecnn classify … --http 0`: `url` is its address, `lines` its standard output so far, `notes` its standard error.

    `page` is the address that it shows to people. `edgecnn review` also serves. `program` is how to start edgecnn.
    """

    def __init__(self, *arguments, cwd, environment=None, name="classify", program=(sys.executable, "-m", "edgecnn")):
        command = [*program, name, *arguments]
        if "--http" not in arguments:
            command += ["--http", "0"]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines, self.notes = [], []
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.notes)):
            threading.Thread(target=lambda stream=stream, kept=kept: kept.extend(stream), daemon=True).start()
        self.page = self.until(self._url)
        self.port = urlsplit(self.page).port
        self.url = f"http://127.0.0.1:{self.port}"

    def _url(self):
        assert self.process.poll() is None, self.notes
        return next((match[1] for note in list(self.notes) if (match := re.match(r"page: (http\S+)", note))), None)

    def until(self, condition, seconds=20.0):
        """Return the first true value of `condition`."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, (condition, self.notes)
            time.sleep(0.02)
        return value

    def ask(self, path, data=None, **headers):
        """Return (status, headers, body) of a request."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, names)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def state(self, **headers):
        return json.loads(self.ask("/v1/state", **headers)[2])

    def ready(self):
        self.until(self.is_ready)
        return self

    def is_ready(self):
        try:
            return self.ask("/readyz")[0] == 200
        except OSError:  # a server that has just died
            return False

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]

    def close(self):
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture(scope="session")
def bundle(root):
    return root / "models/cifar10-resnet8/cifar10-resnet8.edgecnn"


@pytest.fixture(scope="session")
def photo(bundle, tmp_path_factory):
    from edgecnn.bundle.file import read_bundle

    path = tmp_path_factory.mktemp("photo") / "camera.jpg"
    path.write_bytes(read_bundle(bundle).files["golden/encoded/camera.jpg"])
    return Path(path)


@pytest.fixture(scope="module")
def serve(bundle, tmp_path_factory):
    """Return a function that starts `edgecnn classify` with arguments, --http 0 and the shipped bundle, and waits for its port."""
    started = []

    def start(*arguments, cwd=None, **more):
        model = () if "--model" in arguments or "name" in more else ("--model", str(bundle))
        started.append(Serving(*arguments, *model, cwd=cwd or tmp_path_factory.mktemp("served"), **more))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
        serving.process.wait()


@pytest.fixture
def serve_here():
    """Serve routes in this process, `with serve_here(Route(…), token=None) as port`."""
    from edgecnn.device.http.access import AccessControl
    from edgecnn.device.http.routes import make_app
    from edgecnn.device.http.serve import make_server, serve

    @contextlib.contextmanager
    def start(*routes, token=None):
        loop = Future()

        async def serve_until_ended():
            loop.set_result(asyncio.get_running_loop())
            await serve(server, listener)

        with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
            port = listener.getsockname()[1]
            server = make_server(make_app(AccessControl(token, (), port), routes))
            thread = threading.Thread(target=asyncio.run, args=[serve_until_ended()])
            thread.start()
            try:
                yield port
            finally:
                loop.result().call_soon_threadsafe(server.end)
                thread.join()

    return start


@pytest.fixture(scope="session")
def guarded(bundle, tmp_path_factory):
    """Only the API, for this machine's names and cam.example, on every address; `token` is what a client has to send."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text("correct-horse-battery-staple")
    (folder / "token").chmod(0o600)
    door = ("--http", "0.0.0.0:0", "--http-token-file", "token", "--http-hosts", "cam.example")
    serving = Serving("--threshold", "0.1", "--top-k", "2", *door, "--model", str(bundle), cwd=folder).ready()
    serving.token = {"authorization": "Bearer correct-horse-battery-staple"}
    yield serving
    serving.process.kill()
    serving.process.wait()


class Page:
    """The page as its reader sees it."""

    def __init__(self, browser):
        self.browser = browser

    def __getitem__(self, name):
        """The text of a visible element, None for a hidden one."""
        script = (
            "const item = document.getElementById(arguments[0]); return item?.checkVisibility() ? item.innerText : null"
        )
        return self.browser.execute_script(script, name)

    def until(self, name, pattern, seconds=20.0):
        """Wait until an element's text matches, and return how long it took."""
        start = time.monotonic()
        while not re.search(pattern, self[name] or ""):
            took = time.monotonic() - start
            assert took < seconds, f"{name} is {self[name]!r} after {took:.1f} s, not {pattern}; {self['notices']}"
            time.sleep(0.02)
        return time.monotonic() - start

    @property
    def picture(self):
        """The picture on screen, as (width, mean brightness of its middle); the loaded data may differ from what is drawn."""
        return self.browser.execute_script("""
            const from = document.getElementById("picture"), to = document.createElement("canvas");
            if (!from.width) return null;
            Object.assign(to, {width: 1, height: 1});
            to.getContext("2d").drawImage(from, 90, 45, 140, 110, 0, 0, 1, 1);
            return [from.width, ...to.getContext("2d").getImageData(0, 0, 1, 1).data];
        """)

    def until_picture(self, differs_from=None):
        end = time.monotonic() + 20
        while (shown := self.picture) is None or shown == differs_from:
            assert time.monotonic() < end, f"the picture is {shown}"
            time.sleep(0.05)
        return shown


@pytest.fixture
def page(browser):
    yield Page(browser)
    browser.delete_all_cookies()  # those of the open page
    browser.get("about:blank")  # or it would ask the next test's board
