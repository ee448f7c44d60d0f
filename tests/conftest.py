"""Fixtures for all tests: one tiny real run, which the real pipeline makes once for all workers, and the command line."""

import contextlib
import dataclasses
import fcntl
import importlib.util
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

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
method = "qat"
"""


TINY_NETWORK = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(inputs)))
    return Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))
"""


class Silent:
    """A Reporter for the pipeline that records its messages."""

    def __init__(self):
        self.notes = []
        self.epochs = []

    def note(self, text):
        self.notes.append(text)

    def detail(self, text):
        self.note(text)

    def training(self, progress):
        if progress.validation_accuracy is not None:
            self.epochs.append((progress.phase, progress.epoch))

    def working(self, what, done, total):
        assert done <= total or not total


def pytest_addoption(parser):
    parser.addoption("--rewrite", action="store_true", help="write the files in tests/cli/golden again")
    parser.addoption(
        "--once", metavar="FILE", help="as --once=FILE: leave out tests that FILE names, and add those that pass to it"
    )


def pytest_configure():
    """Give each of several workers one TensorFlow thread: on two processors, two workers with two threads each take a quarter longer."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_runtest_setup(item):
    """Skip a test marked `needs` if a program is missing."""
    for mark in item.iter_markers("needs"):
        missing = [program for program in mark.args if shutil.which(program) is None]
        if missing:
            package = mark.kwargs.get("package", " ".join(mark.args))
            pytest.skip(f"{' and '.join(missing)} missing on this machine: apt-get install {package}")


FIRST = (
    "emulated/test_service",
    "train/test_phases",
    "train/test_origin",
    "train",
    "export",
    "verify",
    "test_disk_full",
    "stages",
    "cli",
)
"""The slowest files in tests/, in the order in which workers get them: short files fill the gaps at the end. The emulated board
keeps one worker busy for minutes. Without it, the next file makes `finished_run` while the one after, which does not use it, keeps the
other worker busy."""


def pytest_collection_modifyitems(config, items):
    """Start with the slowest files, and leave out what `--once` names."""
    once = config.getoption("--once")
    if once and os.path.exists(once):
        done = set(Path(once).read_text(encoding="utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def turn(item):
        path = item.path.relative_to(ROOT / "tests").as_posix()
        return next((index for index, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))

    items.sort(key=turn)


def pytest_sessionfinish(session):
    once = session.config.getoption("--once")
    if once and "PYTEST_XDIST_WORKER" not in os.environ:
        passed = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("passed", [])
        with open(once, "a", encoding="utf-8") as file:
            file.writelines(f"{report.nodeid}\n" for report in passed)


@pytest.fixture(scope="session")
def root():
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def schema_of():
    """Return the schema of a kind of JSON by name, as in the site and in a release."""
    specification = importlib.util.spec_from_file_location("schema", ROOT / "tools" / "schema.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    return tool.schema


@pytest.fixture(scope="session", autouse=True)
def no_state(tmp_path_factory):
    """Ignore what the developer has bundled, and write nothing to the checkout, such as runs/latest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setattr(os, "fsync", os.fstat)  # no test survives a real power cut, and waiting for the disk takes long
        yield


@pytest.fixture(scope="session", autouse=True)
def signals():
    """Let a test's child process be interrupted and hung up, even if nohup or a shell's `&` makes this process ignore the signals.

    A child program inherits an ignored signal, but not a handler.
    """
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[1] == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


@pytest.fixture(scope="session")
def keep_pictures():
    """Keep pictures as a board does, `group` frames of each of `scenes`; return them. The first ones belong to the random sample."""
    from edgecnn.device.keep.folder import (
        Facts,
        KeptModel,
        KeptPicture,
        KeptScore,
        documents,
        kept_pictures,
        name_of,
        write_files,
    )
    from edgecnn.files import sha256

    def keep(folder, scenes, group=1, labels=("cat", "dog", "fox"), sample=0, seed=1):
        chance = np.random.default_rng(seed)
        for scene, frame in itertools.product(range(scenes), range(group)):
            if frame == 0:
                tiles = chance.integers(10, 245, (6, 8, 3))
            pixels = tiles.repeat(20, 0).repeat(20, 1) + chance.integers(-5, 6, (120, 160, 3))
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "jpeg", quality=85)
            number, why = scene * group + frame, "random" if scene < sample else "unsure"
            best = [labels[(scene + other) % len(labels)] for other in range(len(labels))]
            facts = Facts(
                ts=1795860902.5 + 60 * number, why=why, source="camera", seq=number, model=KeptModel(name="door", sha256="ab" * 32),
                scores=tuple(KeptScore(label=label, score=0.5**place) for place, label in enumerate(best, 1)),
                label=best[0] if why == "random" else None, reason=None if why == "random" else "below_threshold", region=None,
                picture=KeptPicture(sha256=sha256(buffer.getvalue()), width=160, height=120),
            )  # fmt: skip
            write_files(folder, name_of(facts.ts, facts.seq), documents(facts, buffer.getvalue()))
        return kept_pictures(folder)

    return keep


@pytest.fixture
def spawn():
    """Start a process like `subprocess.Popen`, in its own session; anything of it still running at the test's end is killed."""
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


@pytest.fixture(scope="session")
def free_port():
    """Return another free port of 127.0.0.1 each time. To whoever asks for any port, Linux gives one above these."""
    ports = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))

    def free_port():
        while True:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", next(ports))) as free:
                return free.getsockname()[1]

    return free_port


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, driven by selenium. Mark a test that uses it with `needs("chromium", "chromedriver")`."""
    pytest.importorskip("selenium", reason="selenium is in the dev extra")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(300)  # axe reads every element, and a table of 1,000 classes has thousands
    yield driver
    driver.quit()


@pytest.fixture
def looks(browser):
    """Give the browser a phone's and a desktop's width, each in light and dark; yield each (width, theme)."""

    def each():
        for width, height in ((390, 844), (1280, 900)):
            for theme in ("light", "dark"):
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                media = [{"name": "prefers-color-scheme", "value": theme}]
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
                yield width, theme

    return each


@pytest.fixture
def serious(browser):
    """Return axe-core's serious and critical findings in the open page."""
    package = pytest.importorskip("axe_core_python", reason="axe-core-python is in the dev extra")
    axe = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

    def find():
        browser.execute_script(axe)
        found = browser.execute_async_script(
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done, error => done({error: String(error)}))"
        )
        return [
            (item["id"], item["impact"], item["nodes"][0]["html"][:200])
            for item in found["violations"]
            if item["impact"] in ("serious", "critical")
        ]

    return find


@pytest.fixture(scope="session")
def states(tmp_path_factory):
    """The names of folders that do not exist. mktemp reads the names of all others first, so thousands of its folders take seconds."""
    folder = tmp_path_factory.mktemp("states")
    return map(str, map(folder.joinpath, map(str, itertools.count())))


@pytest.fixture(autouse=True)
def own_state(no_state, states, monkeypatch):
    """Keep one test's state out of another."""
    monkeypatch.setenv("XDG_STATE_HOME", next(states))


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
    """A network with one convolution, for tests that do not depend on the network: large ones take seconds to build."""
    path = tmp_path_factory.mktemp("network") / "net.py"
    path.write_text(TINY_NETWORK)
    return f"{path}:build"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_recipe):
    """A run through every stage, shared by all workers: do not change it."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.recipe import build_recipe, load_recipe
    from edgecnn.stages.pipeline import run_recipe

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first worker makes it; the others find every stage done
        patch.chdir(folder)  # runs/latest goes there
        patch.setattr("edgecnn.report.page.svg", blank_svg)
        run, _ = run_recipe(build_recipe(load_recipe(tiny_recipe)), folder / "runs" / "tiny", Silent(), max_drop=100.0)
    return run


def blank_svg(draw, name):
    return "<svg></svg>"


@pytest.fixture
def blank_plots(monkeypatch):
    """Pages whose plots are empty, for what stands outside of them: matplotlib takes most of a page's time."""
    pytest.importorskip("scipy", reason="the workstation side needs the train extra")
    monkeypatch.setattr("edgecnn.report.page.svg", blank_svg)


@pytest.fixture
def own_run(finished_run, tmp_path, monkeypatch, blank_plots):
    """A copy of the finished run that the test may change, as the last run of the working folder."""
    from edgecnn.runs import Run

    monkeypatch.chdir(tmp_path)

    path = tmp_path / "runs" / finished_run.name
    shutil.copytree(finished_run.path, path)
    run = Run(path)
    run.make_latest()
    return run


@pytest.fixture
def file_limit(monkeypatch):
    """Make every write beyond a file size fail, as on a full disk."""

    @contextlib.contextmanager
    def limited(size):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would store a module imported here cut off
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


class Finished(NamedTuple):
    """A command's output and exit code."""

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


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script on the PATH under a name: `program("apt-get", "echo hello")`; with `alone`, nothing else is on it."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def put(name, text, alone=False):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder) if alone else f"{folder}{os.pathsep}{os.environ['PATH']}")
        return path

    return put


@pytest.fixture
def ssh_config(tmp_path, monkeypatch):
    """The file, not yet written, that ssh reads as its user's configuration in this test and its child processes."""
    program = tmp_path / "programs" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{tmp_path}/ssh_config" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return tmp_path / "ssh_config"


@pytest.fixture
def release(edgecnn, tmp_path, monkeypatch):
    """Release the shipped bundle under a name and a serial number, in the repository `releases`."""
    pytest.importorskip("tuf", reason="releases need the release extra")
    from edgecnn.bundle.file import read_bundle, write_bundle
    from edgecnn.runtime.default import shipped_bundle

    (tmp_path / "passphrase").write_text("a long passphrase\n")
    (tmp_path / "passphrase").chmod(0o600)
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert edgecnn("release", "init", "releases").code == 0

    def release(name, serial):
        shipped, path = read_bundle(shipped_bundle()), tmp_path / f"{name}-{serial}"
        write_bundle(path, dataclasses.replace(shipped.manifest, name=name, serial=serial), shipped.files)
        done = edgecnn("release", "add", path, "--to", "door", "--share", 100, "--accept", "a test")
        assert done.code == 0, done.err

    return release


def onnx_model(
    element="int8",
    batch="batch",
    raw=True,
    scale=1 / 128,
    zero_point=0,
    output_scale=0.25,
    output_zero_point=-7,
    metadata=True,
):
    """Return an ONNX file: channel means times 4, quantized in and out unless `element` is float32, with edgecnn's metadata or without."""
    onnx = pytest.importorskip("onnx", reason="test models are made with onnx")
    from onnx import TensorProto, helper, numpy_helper

    quantized = element != "float32"
    kind = getattr(TensorProto, element.upper() if quantized else "FLOAT")
    nodes, constants = [], []

    def constant(name, value, dtype):
        if raw:
            constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        else:
            kind_of = TensorProto.FLOAT if dtype == np.float32 else getattr(TensorProto, np.dtype(dtype).name.upper())
            constants.append(helper.make_tensor(name, kind_of, [], [value]))

    constant("four", 4.0, np.float32)
    value = "pixels"
    if quantized:
        constant("in_scale", scale, np.float32)
        constant("in_zero", zero_point, np.dtype(element))
        nodes.append(helper.make_node("Transpose", [value], ["moved"], perm=[0, 3, 1, 2]))
        nodes.append(helper.make_node("DequantizeLinear", ["moved", "in_scale", "in_zero"], ["real"]))
    else:
        nodes.append(helper.make_node("Transpose", [value], ["real"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("ReduceMean", ["real"], ["means"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("Mul", ["means", "four"], ["product" if quantized else "logits"]))
    if quantized:
        constant("out_scale", output_scale, np.float32)
        constant("out_zero", output_zero_point, np.dtype(element))
        nodes.append(helper.make_node("QuantizeLinear", ["product", "out_scale", "out_zero"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind, [batch, 8, 8, 3])],
        [helper.make_tensor_value_info("logits", kind, [batch, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if quantized and metadata:
        numbers = {
            "input": {"scale": scale, "zero_point": zero_point},
            "output": {"scale": output_scale, "zero_point": output_zero_point},
        }
        text = json.dumps(numbers) if metadata is True else metadata
        helper.set_model_props(model, {"edgecnn.quantization": text})
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def make_bundle(tmp_path):
    """Write a bundle of 2 kB with a meaningless model, which reading the bundle does not reveal. `passed` is the result of its gate,
    `verdict` its verdict against the bundle with the SHA-256 `old`, which passed against those in `earlier`."""
    from edgecnn.bundle.file import write_bundle
    from edgecnn.bundle.manifest import InputContract, Manifest, ModelEntry
    from edgecnn.files import sha256

    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()

    def make_bundle(
        name, serial=0, format_="tflite", passed=None, labels=("cat", "dog"), verdict=None, old="0" * 64, earlier=()
    ):
        model = f"models/int8.{format_}"
        entry = ModelEntry(
            file=model,
            format=format_,
            precision="int8",
            golden="golden/int8.npy",
            tolerance=1.0,
            tolerance_unit="LSB",
            tolerance_reason="rounding",
            golden_engine="none 0.0 (none)",
        )
        manifest = Manifest(
            name=name,
            title=name,
            labels=labels,
            input=InputContract(height=4, width=5, channels=3, fit="crop", scale=1 / 128, zero_point=0),
            models=(entry,),
            defaults={format_: model},
            serial=serial,
            provenance={},
        )
        files = {
            "golden/inputs.npy": npy(np.zeros((2, 4, 5, 3), np.uint8)),
            "golden/int8.npy": npy(np.zeros((2, 2), np.int8)),
            model: name.encode() * 20,
        }
        if passed is not None:
            files["parity.json"] = json.dumps({"passed": passed}).encode()
        if verdict is not None:
            models = {"old": {"name": "o\x1b", "sha256": old}, "new": {"model_sha256": sha256(files[model])}}
            against = {"verdict": verdict, "why": "it drops", **models, "earlier": earlier}
            files["against.json"] = json.dumps(against).encode()
        path = tmp_path / f"{name}.edgecnn"
        write_bundle(path, manifest, files, force=True)
        return path

    return make_bundle


@pytest.fixture(scope="session")
def make_onnx():
    return onnx_model


COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of noisy images in which only the colour determines the class, some of them hard to classify."""
    folder = tmp_path_factory.mktemp("photos") / "colours"
    random = np.random.default_rng(5)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(60):
            mix = random.uniform(0.1, 1)
            pixels = 128 + mix * (np.array(colour) - 128) + random.normal(0, 25, (12, 12, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def network(photos):
    """A Keras 2 network with softmax inside that reads 0 to 1, trained on the folder."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.data import open_dataset
    from edgecnn.networks.keras import keras
    from edgecnn.recipe import DataRecipe

    train = open_dataset(DataRecipe(source=str(photos))).load(
        ("train",), height=12, width=12, channels=3, stage="train"
    )["train"]
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(train.images / np.float32(255), train.classes, epochs=15, verbose=0)
    return model, train.images


@pytest.fixture(scope="session")
def fold_info():
    """Return a function that makes the record of a fold, with the values given."""
    from edgecnn.run_info import FoldInfo

    usual = {
        "network": "article", "height": 96, "width": 128, "images": 7, "epochs": 10, "method": "qat", "rounding": "nearest",
        "epoch": 2, "qat_epochs": 4, "float_accuracy": 0.93, "int8_accuracy": 0.917, "seconds": 1.0,
    }  # fmt: skip
    return lambda **values: FoldInfo(**usual | values)
