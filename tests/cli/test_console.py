"""Lines on standard output are whole, whatever interrupts them."""

import array
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import time

import pytest

from edgecnn.runtime.engines import engines_for, is_installed

UNBUFFERED = {**os.environ, "PYTHONUNBUFFERED": "1"}

needs_engine = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


def messages(command, **options):
    """Run a command whose standard output is a socket that keeps writes separate; return the content of each write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, subprocess.Popen(command, stdout=theirs, env=UNBUFFERED, **options) as process:
        theirs.close()
        ours.settimeout(60)
        writes = []
        while data := ours.recv(1 << 20):
            writes.append(data)
    assert process.returncode == 0
    return writes


@needs_engine
@pytest.mark.parametrize(("source", "json_"), [("synthetic:64x48?frames=20", True), ("photo.png", False)])
def test_each_line_is_a_single_write(tmp_path, root, source, json_):
    from PIL import Image

    Image.new("RGB", (40, 40), (9, 99, 199)).save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "edgecnn", "classify", source, *(["--json"] if json_ else [])]
    writes = messages(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert writes
    for data in writes:
        assert data.endswith(b"\n") and data.count(b"\n") == 1
        if json_:
            json.loads(data)


@pytest.mark.parametrize("command", ["targets", "cameras"])
def test_a_document_is_a_single_write(command):
    (data,) = messages([sys.executable, "-m", "edgecnn", command, "--json"])
    json.loads(data)


INTERRUPTED = """
import signal, sys
from edgecnn.cli.console import emit_line

class Stop(Exception): pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGUSR1, stop)
try:
    emit_line('"' + "a" * 500_000 + '"')
except Stop:
    sys.stderr.write("stopped\\n")
    sys.stderr.flush()
emit_line('"the next one"')
"""


def test_a_long_line_that_a_signal_interrupts_is_finished_before_the_next(tmp_path):
    """The line fills the pipe: the write is waiting for its reader when the signal arrives."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=UNBUFFERED
    )
    size, held = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ), array.array("i", [0])
    while held[0] < size:
        assert process.poll() is None
        time.sleep(0.001)
        fcntl.ioctl(process.stdout, termios.FIONREAD, held)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr.readline() == b"stopped\n"
    out, _ = process.communicate(timeout=60)
    assert [len(json.loads(line)) for line in out.splitlines()] == [500_000, 12]


@needs_engine
def test_every_line_of_a_stream_that_is_ended_parses(tmp_path):
    for number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgecnn", "classify", "synthetic:64x48", "--json"],
            bufsize=0, cwd=tmp_path, env=UNBUFFERED, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # unbuffered: communicate would miss what readline has read ahead
        lines = [process.stdout.readline() for _ in range(2 + 9 * number)]
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        lines += process.communicate(timeout=60)[0].splitlines(keepends=True)
        assert process.returncode == (130 if number % 2 else 143)
        for line in lines:
            assert line.endswith(b"\n") and json.loads(line)
        assert json.loads(lines[-1])["event"] == "ended"
