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
"""Of 300 batches each, so that one takes long enough to be interrupted in time on a busy machine."""


@pytest.fixture
def start(spawn, tmp_path):
    """Start `edgecnn train …`."""

    def call(*arguments):
        command = [sys.executable, "-m", "edgecnn", "train", *arguments]
        return spawn(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return call


def epochs(folder):
    try:
        with (folder / "run" / "history.csv").open() as file:
            return [(row["phase"], int(row["epoch"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(
    "signal_",
    [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_an_interrupted_training_keeps_its_last_epoch_and_goes_on(start, tmp_path, tiny_network, signal_):
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
    process = start(*few, "--out", "run")
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
    resumed = start("--resume", "--out", "run")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert epochs(tmp_path) == [("float", number) for number in range(1, EPOCHS + 1)]
    first = next(line for line in err.splitlines() if line.startswith("float epoch"))
    # the checkpoint is written before the history: a kill between the two may leave it one epoch ahead
    assert first.split()[2] in (f"{len(kept) + 1}/{EPOCHS}", f"{len(kept) + 2}/{EPOCHS}")


def test_a_training_leaves_nothing_in_the_temporary_folder(tmp_path, tiny_network):
    """The process ends at once, and yet what libraries delete at exit is deleted."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "edgecnn",
            "train",
            "--data",
            "digits",
            "--network",
            tiny_network,
            "--epochs",
            "1",
            "--qat-epochs",
            "1",
            "--batch-size",
            "256",
        ],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert list(temporary.iterdir()) == []
