"""Fixtures for all tests: one tiny real run, made once a session by the real pipeline, and the command line."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

TINY_RECIPE = """
name = "tiny"
seed = 3

[data]
source = "digits"

[train]
epochs = 6
batch_size = 64
shift = 0

[qat]
epochs = 1
batch_size = 64
calibration_batches = 10
"""


TINY_NETWORK = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(inputs)))
    return Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))
"""


class Silent:
    """A pipeline's Reporter that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.epochs = []

    def note(self, text):
        self.notes.append(text)

    def training(self, progress):
        if progress.validation_accuracy is not None:
            self.epochs.append((progress.phase, progress.epoch))

    def working(self, what, done, total):
        assert done <= total or not total


def pytest_runtest_setup(item):
    """Skip a test marked `needs` where a program is missing."""
    for mark in item.iter_markers("needs"):
        missing = [program for program in mark.args if shutil.which(program) is None]
        if missing:
            package = mark.kwargs.get("package", " ".join(mark.args))
            pytest.skip(f"{' and '.join(missing)} not on this machine: apt-get install {package}")


@pytest.fixture(scope="session")
def root():
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def no_tuned_setting(tmp_path_factory):
    """What the developer has tuned is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def signals():
    """A process that a test starts can be ended by Ctrl-C and by SIGHUP, also where a shell's `&` or nohup has this one ignore them."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def spawn():
    """Start a process as `subprocess.Popen` does, in a session of its own; what still runs of it at the test's end is killed."""
    processes = []

    def start(command, **options):
        processes.append(subprocess.Popen(command, start_new_session=True, **options))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()


@pytest.fixture
def reporter():
    return Silent()


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory):
    """Path of a recipe that trains in seconds on data that ships with scikit-learn."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_network(tmp_path_factory):
    """A network of one convolution, for what is the same whatever the network: the large ones take seconds to build."""
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(TINY_NETWORK)
    return f"{path}:build"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_recipe):
    """A run that went through every stage, shared: do not change it."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.pipeline import run_recipe
    from edgecnn.recipe import build_recipe, load_recipe

    path = tmp_path_factory.mktemp("session") / "runs" / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent.parent)  # that is where runs/latest goes
        run, _ = run_recipe(build_recipe(load_recipe(tiny_recipe)), path, Silent(), max_drop=100.0)
    return run


@pytest.fixture
def own_run(finished_run, tmp_path, monkeypatch):
    """A copy of the finished run, to be changed at will, as the last run of the working folder."""
    from edgecnn.runs import Run

    monkeypatch.chdir(tmp_path)

    path = tmp_path / "runs" / finished_run.name
    shutil.copytree(finished_run.path, path)
    run = Run(path)
    run.make_latest()
    return run


class Finished(NamedTuple):
    """What a command printed and how it exited."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgecnn(monkeypatch, capfd, tmp_path):
    """Run the command line in this process, in a temporary folder: `edgecnn("train", "--data", …)`."""
    from edgecnn.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgecnn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capfd.readouterr()
        code = exit_.value.code
        assert "Traceback" not in err, err
        return Finished(code if isinstance(code, int) else int(bool(code)), out, err)

    return call
