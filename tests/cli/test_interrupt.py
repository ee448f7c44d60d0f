"""Ctrl-C and kill -9 in the middle of a real training process, then --resume."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

EPOCHS = 12
"""300 batches each, so that an epoch lasts long enough to be interrupted in time on a busy machine."""


@pytest.fixture
def start(spawn, tmp_path):
    """Start `edgecnn train …` with its own temporary folder, in which Python leaves no bytecode of TensorFlow's generated code."""

    def call(*arguments, temporary):
        command = [sys.executable, "-m", "edgecnn", "train", *arguments]
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return spawn(command, cwd=tmp_path, env=environment, **pipes)

    return call


def epochs(folder):
    try:
        with (folder / "run" / "history.csv").open() as file:
            return [(row["phase"], int(row["epoch"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


@pytest.mark.guard  # tests/stages/test_pipeline.py interrupts `edgecnn run` by default
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_training_keeps_its_last_epoch_and_resumes(start, tmp_path, tiny_network, signal_):
    few = (
        "--data",
        "digits",
        "--network",
        tiny_network,
        "--epochs",
        str(EPOCHS),
        "--qat-epochs",
        "0",
        "--batch-size",
        "4",
        "--set",
        "qat.rounding=nearest",
    )
    process = start(*few, "--out", "run", temporary=tmp_path / "interrupted")
    deadline = time.monotonic() + 120
    while len(epochs(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.02)
    process.send_signal(signal_)
    _, err = process.communicate(timeout=60)
    kept = epochs(tmp_path)
    assert 3 <= len(kept) < EPOCHS
    assert "Traceback" not in err
    if signal_ == signal.SIGINT:
        assert process.returncode == 130
        assert "edgecnn train --resume --out run" in err
    resumed = start("--resume", "--out", "run", temporary=tmp_path / "resumed")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert list((tmp_path / "resumed").iterdir()) == [], (
        "the process ends immediately, but files that libraries delete at exit are deleted"
    )
    assert epochs(tmp_path) == [("float", number) for number in range(1, EPOCHS + 1)]
    first = next(line for line in err.splitlines() if line.startswith("float epoch"))
    # the checkpoint is written before the history: a kill between the two may leave it one epoch ahead
    assert first.split()[2] in (f"{len(kept) + 1}/{EPOCHS}", f"{len(kept) + 2}/{EPOCHS}")
