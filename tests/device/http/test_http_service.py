"""The service: its page, which survives a change of release, and its network, which is closed without a page."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.cli.service import publishers
from edgecnn.device.service.config import parse
from edgecnn.device.service.run import Surroundings
from edgecnn.device.slots.store import Store
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def store(bundle, tmp_path):
    made = Store(tmp_path / "slots")
    made.activate(made.add(bundle)[0])
    return made


@pytest.fixture
def run(store, tmp_path):
    """Return a function that runs the service with options; `lines` holds its journal lines."""
    started = []

    def start(options):
        file = tmp_path / "service.toml"
        file.write_text(f'source = "synthetic:64x48?fps=30"\nmax_fps = 0\n{options}')
        command = [sys.executable, "-m", "edgecnn", "service", "run", "--root", store.root, "--config", file]
        with (tmp_path / "lines").open("wb") as lines:
            process = subprocess.Popen(command, stdout=lines, env={**os.environ, "EDGECNN_HTTP_TOKEN": TOKEN})
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


def until(condition):
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def model_of(port):
    """Return the name of the model in use once it has classified a frame; None without an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/state", headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            state = json.load(answer)
    except OSError:
        return None
    return state["model"]["name"] if state["frame"] else None


def test_the_page_stays_when_another_release_is_put_in_use(run, store, bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = run(f'http = "0.0.0.0:{port}"\n')
    until(lambda: model_of(port) == "cifar10-resnet8")
    shipped = read_bundle(bundle)
    write_bundle(tmp_path / "new.edgecnn", dataclasses.replace(shipped.manifest, name="new"), shipped.files)
    store.activate(store.add(tmp_path / "new.edgecnn")[0])
    until(lambda: model_of(port) == "new")
    assert process.poll() is None
    assert TOKEN not in (tmp_path / "lines").read_text()


@pytest.fixture
def consume(bundle):
    """Return the consumers that the service makes from options, and the problems that it reports."""

    def make(options):
        reported = []
        made = publishers(parse(options, "here"), Classifier.load(bundle), Surroundings(report=reported.append))
        for consumer in made:
            consumer.finish(0)
        return made, [problem.message for problem in reported]

    return make


def test_an_open_page_is_reported_in_the_journal(consume):
    made, (problem,) = consume('http = "0.0.0.0:0"\nhttp_open = true\n')
    assert made and "who can reach this port" in problem


def test_the_network_is_closed_unless_the_options_need_it(run, tmp_path):
    """A metrics file needs no network."""
    metrics = tmp_path / "board.prom"
    process = run(f'metrics_file = "{metrics}"\n')

    def status():
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            return dict(line.split(":", 1) for line in file.read().splitlines())

    until(lambda: '"camera_opened"' in (tmp_path / "lines").read_text())
    assert status()["Seccomp"].strip() == "2"
    assert "\nedgecnn_camera_up " in until(lambda: metrics.exists() and metrics.read_text())
    code = "import socket; from edgecnn.device.service import network; print(network.close_network()); socket.socketpair(); socket.socket()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n" and "Address family not supported" in done.stderr


def test_a_port_that_is_taken_is_a_problem_without_a_page(consume):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made, (problem,) = consume(f'http = "{taken.getsockname()[1]}"\n')
    assert not made and "no page: 127.0.0.1:" in problem and "Address already in use" in problem
