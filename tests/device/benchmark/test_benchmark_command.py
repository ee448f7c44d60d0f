"""`edgecnn benchmark` as a command."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest

from edgecnn.errors import ImageError, UnknownNameError
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)
FEW = ("--threads", "1", "--precision", "int8", "--n", "10", "--warmup", "1")


@pytest.fixture
def digits(root):
    return ("--model", root / "models" / "digits" / "digits.edgecnn")


@pytest.fixture
def engine():
    return ("--engine", next(name for name in engines_for("tflite") if is_installed(name)))


def test_the_table_ends_with_options_that_classify_takes(edgecnn, digits, engine, folder):
    result = edgecnn("benchmark", *digits, *engine, "--threads", "2", *FEW[2:])
    assert result.code == 0, result.err
    assert f"{engine[1]} int8, 2 threads " in result.out and "winner: " in result.out and "fastest first" in result.out
    assert "the bundle's golden photos, 8 images" in result.err and "measuring (10)" in result.err
    *command, engine_option, name, precision_option, precision, threads_option, threads = result.out.split()
    assert command[-2:] == ["edgecnn", "classify"]
    chosen = (engine_option, name, precision_option, precision, threads_option, threads)
    used = edgecnn("classify", folder / "b.jpg", *digits, *chosen)
    assert used.code == 0 and f"int8 .tflite on {engine[1]} " in used.err and ", 2 threads)" in used.err


def test_json(edgecnn, digits, engine, folder):
    result = edgecnn("benchmark", folder / "b.jpg", *digits, *engine, *FEW, "--json")
    report = json.loads(result.out)
    (one,) = report["configurations"]
    assert one["whole"]["n"] == 10 and one["gate"] is True and one["peak_mib"] > 10
    assert report["winner"]["engine"] == engine[1] and report["images"]["names"] == [str(folder / "b.jpg")]
    assert report["hardware"] and report["versions"]["numpy"] and report["interrupted"] is False


def test_sustained(edgecnn, digits, engine, monkeypatch):
    """On a clock that advances by 10 ms at each look."""
    from edgecnn.device.benchmark import sustained

    seconds = itertools.count(0, 0.01)
    monkeypatch.setattr(sustained, "sustain", functools.partial(sustained.sustain, clock=lambda: next(seconds)))
    report = json.loads(edgecnn("benchmark", *digits, *engine, "--sustained", "0.01", "--json").out)
    assert len(report["windows"]) == 2 and report["drift"] is not None and engine[1] in report["about"]
    result = edgecnn("benchmark", *digits, *engine, "--sustained", "0.01")
    assert "drift of p50: " in result.out and result.out.count("p90") == 2


def test_nonsense(edgecnn, digits, monkeypatch):
    for arguments in (
        ("--n", "5"),
        ("--threads", "0"),
        ("--warmup", "0"),
        ("--sustained", "0"),
        ("--sustained", "nan"),
        ("--sustained", "1", "--threads", "1", "--threads", "2"),
    ):
        assert edgecnn("benchmark", *digits, *arguments).code == 2, arguments
    assert edgecnn("benchmark", *digits, "--engine", "litrt").code == UnknownNameError.exit_code
    assert edgecnn("benchmark", *digits, "none.jpg").code == ImageError.exit_code


def test_ctrl_c(root, digits, engine, spawn):
    endless = ("--precision", "int8", "--threads", "1", "--n", "1000000")
    command = [sys.executable, "-m", "edgecnn", "benchmark", *map(str, digits), *engine, *endless]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = spawn(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "measuring" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    assert "measured" in out or "int8, 1 thread" in out
