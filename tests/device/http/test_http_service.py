"""The service: its page, which tests/device/mqtt/test_service.py looks at, and its network, which is closed without one."""

import socket
import subprocess
import sys
import time

import pytest

from edgecnn.cli.service import publishers
from edgecnn.device.service.config import parse
from edgecnn.device.service.run import Surroundings
from edgecnn.device.slots.store import Store
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")


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


def test_the_network_is_closed_unless_the_options_need_it(bundle, spawn, tmp_path):
    """A metrics file needs no network."""
    store, metrics, options = Store(tmp_path / "slots"), tmp_path / "board.prom", tmp_path / "service.toml"
    store.activate(store.add(bundle)[0])
    options.write_text(f'source = "synthetic:64x48?fps=30"\nmetrics_file = "{metrics}"\n')
    command = [sys.executable, "-m", "edgecnn", "service", "run", "--slots", store.root, "--config", options]
    process = spawn(command, stdout=subprocess.PIPE, text=True)

    def status():
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            return dict(line.split(":", 1) for line in file.read().splitlines())

    assert any('"camera_opened"' in line for line in process.stdout)
    assert status()["Seccomp"].strip() == "2"
    end = time.monotonic() + 20
    while not metrics.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "\nedgecnn_camera_up " in metrics.read_text()


def test_a_port_that_is_taken_is_a_problem_without_a_page(consume):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made, (problem,) = consume(f'http = "{taken.getsockname()[1]}"\n')
    assert not made and "no page: 127.0.0.1:" in problem and "Address already in use" in problem
