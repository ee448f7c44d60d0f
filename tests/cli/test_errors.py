"""Each error has its exit code, a text with a next step, and Ctrl-C is quiet."""

import ast
import csv
import dataclasses
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import typer

from edgecnn import errors
from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.cli import COMMANDS, app
from edgecnn.runtime.engines import engines_for, is_installed
from edgecnn.stages.bundle import bundle_path


def png(seed=0, size=(12, 12)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def photos(folder, classes=("cat", "dog"), count=30):
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(png(1000 * index + number))
    return folder


def failed(result, kind, *texts):
    """Check that a command failed as `kind`, in at most three lines that hold the texts."""
    assert result.code == kind.exit_code, (result.code, result.err)
    message = result.err[result.err.index("edgecnn: error: ") :]
    assert len(message.splitlines()) <= 3, message
    for text in texts:
        assert text in message, message


def test_every_kind_has_its_own_exit_code():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EdgeCNNError)]
    codes = [kind.exit_code for kind in kinds if kind is not errors.EdgeCNNError]
    assert len(codes) == len(set(codes)) and min(codes) >= 3


def test_no_such_dataset(edgecnn):
    failed(edgecnn("train", "--data", "digit"), errors.UnknownNameError, "Did you mean 'digits'")


def test_no_such_network(edgecnn):
    failed(edgecnn("train", "--data", "digits", "--network", "resnet9"), errors.UnknownNameError, "'resnet8'")
    failed(edgecnn("networks", "artikel"), errors.UnknownNameError, "'article'")


def test_empty_class_folder(edgecnn, tmp_path):
    (photos(tmp_path / "photos") / "bird").mkdir()
    failed(edgecnn("train", "--data", "photos"), errors.DatasetError, "bird")


def test_one_class_only(edgecnn, tmp_path):
    photos(tmp_path / "photos", ["cat"])
    failed(edgecnn("train", "--data", "photos"), errors.DatasetError)


def test_many_unreadable_and_truncated_images(edgecnn, tmp_path):
    folder = photos(tmp_path / "photos")
    for number in range(4):
        (folder / "cat" / f"broken{number}.png").write_bytes(png(7)[: 200 + number])
        (folder / "dog" / f"text{number}.jpg").write_bytes(b"not an image %d" % number)
    failed(edgecnn("train", "--data", "photos"), errors.DatasetError, "8 of ", "these are too many")
    assert not (tmp_path / "runs" / "latest").exists()


def test_zip_that_leads_outside(edgecnn, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("cat/../../dog/1.png", png())
    failed(edgecnn("train", "--data", "photos.zip"), errors.UnsafeArchiveError, "..")


def test_decompression_bomb(edgecnn, tmp_path, finished_run):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "png", compress_level=1)
    (tmp_path / "bomb.png").write_bytes(bomb.getvalue())
    result = edgecnn("classify", "bomb.png", "--model", bundle_path(finished_run))
    failed(result, errors.PartialFailure)
    assert "20000x20000" in result.err


def test_recipe_with_an_unknown_key(edgecnn, tmp_path):
    (tmp_path / "r.toml").write_text("[train]\nepoch = 3\n")
    failed(edgecnn("train", "r.toml"), errors.RecipeError, "train.epoch", "Did you mean 'epochs'")


def test_recipe_value_out_of_range(edgecnn):
    failed(edgecnn("train", "--set", "train.epochs=-1"), errors.RecipeError, "train.epochs")
    for option in ("--epochs", "--batch-size"):  # 0 would leave the choice to edgecnn, which needs no option
        refused = edgecnn("train", "--data", "digits", option, "0")
        assert refused.code == 2 and "0 is not in the range" in refused.err
    failed(edgecnn("train", "--set", "train.learning_rate=-1"), errors.RecipeError, "train.learning_rate")


def test_recipe_that_does_not_exist(edgecnn):
    failed(edgecnn("run", "none.toml"), errors.RecipeError, "none.toml")


def test_export_before_train(edgecnn):
    for command in (("export", "--int8"), ("verify",), ("bundle",), ("train", "--resume")):
        failed(edgecnn(*command), errors.RunError)


def test_an_output_that_exists(edgecnn, own_run, tmp_path):
    for command in ("export", "bundle"):
        result = edgecnn(command, own_run.path)
        failed(result, errors.OutputExistsError)
        assert "--out" not in result.err
    failed(edgecnn("train", "--data", "digits", "--out", own_run.path), errors.OutputExistsError)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("dear")
    failed(edgecnn("train", "--data", "digits", "--out", "notes", "--force"), errors.OutputExistsError)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "dear"


def test_an_output_that_cannot_be_written(edgecnn, own_run, tmp_path):
    (tmp_path / "file").write_text("")
    failed(edgecnn("bundle", own_run.path, "--out", "file/x.edgecnn"), errors.OutputError, "file/x.edgecnn")


def test_an_interrupted_training_should_be_resumed(edgecnn, own_run):
    for name in ("float.h5", "qat.h5", "model-int8.tflite", "model-float32.tflite"):
        own_run.file(name).unlink()
    advice = f"First: edgecnn train --resume --out {own_run.path}"
    failed(edgecnn("export", own_run.path), errors.RunError, advice)
    failed(edgecnn("train", "--data", "digits", "--init", own_run.path), errors.RunError, advice)


def test_the_advice_names_the_run(edgecnn, own_run):
    own_run.file("parity.json").unlink()
    result = edgecnn("bundle", own_run.path, "--out", "x.edgecnn")
    failed(
        result,
        errors.RunError,
        f"error: {own_run.path} has no parity.json yet. First: edgecnn verify {own_run.path}\n",
    )


def test_a_forced_training_replaces_the_previous_run(edgecnn, own_run, tmp_path, tiny_network):
    own_run.path.rename(tmp_path / "runs" / "digits-net-build")
    few = ["--data", "digits", "--epochs", "1", "--batch-size", "256", "--set", "qat.method=ptq", "--set", "seed=5"]
    assert edgecnn("train", *few, "--network", tiny_network, "--force").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-net-build", "latest"]
    replaced = tmp_path / "runs" / "digits-net-build"
    assert "seed = 5\n" in (replaced / "recipe.toml").read_text() and not (replaced / "parity.json").exists()


def test_a_card_that_cannot_be_written_leaves_no_bundle(edgecnn, own_run, tmp_path):
    own_run.file("card.md").unlink()
    own_run.file("card.md").mkdir()
    failed(edgecnn("bundle", own_run.path, "--out", "new.edgecnn"), errors.OutputError, "card.md")
    assert not (tmp_path / "new.edgecnn").exists()


def test_a_bundle_that_exists_keeps_its_card(edgecnn, own_run, tmp_path):
    own_run.file("card.md").write_text("mine")
    failed(edgecnn("bundle", own_run.path), errors.OutputExistsError)
    assert own_run.file("card.md").read_text() == "mine"


def test_usage_errors(edgecnn):
    assert edgecnn("export", "--int8", "--float32").code == 2
    assert edgecnn("export", "--format", "onx").code == 2
    assert edgecnn("train", "--resume", "--epochs", "3").code == 2
    assert edgecnn("classify").code == 2
    assert edgecnn("trian").code == 2


def test_the_gate_has_its_own_exit_code(edgecnn, own_run):
    from edgecnn.export import export_path

    wrong = export_path(own_run, "tflite", "int8")
    right = wrong.read_bytes()
    data = bytearray(right)
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    wrong.write_bytes(data)
    result = edgecnn("verify", own_run.path, "--json")
    failed(result, errors.ParityError, "tflite-int8")
    assert '"passed": false' in result.out, "the report is printed and written anyway"


def test_engine_that_is_not_installed(edgecnn, finished_run, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    result = edgecnn("classify", "a.png", "--model", bundle_path(finished_run), "--engine", "tflite_runtime")
    failed(result, errors.EngineError, "pip install tflite-runtime")


def test_requested_cuda_is_missing(edgecnn, finished_run, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    model = bundle_path(finished_run)
    result = edgecnn("classify", "a.png", "--model", model, "--engine", "onnxruntime", "--provider", "cuda")
    failed(result, errors.ProviderError, "CUDAExecutionProvider", "pip install onnxruntime-gpu")


def test_damaged_bundle(edgecnn, finished_run, tmp_path):
    data = bytearray(bundle_path(finished_run).read_bytes())
    data[1234] ^= 4
    (tmp_path / "bad.edgecnn").write_bytes(data)
    (tmp_path / "a.png").write_bytes(png())
    failed(edgecnn("classify", "a.png", "--model", "bad.edgecnn"), errors.BundleError, "bad.edgecnn")
    failed(edgecnn("selftest", "--model", "bad.edgecnn"), errors.BundleError)


def test_a_broken_image_is_reported_counted_and_skipped(edgecnn, finished_run, tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "1.png").write_bytes(png(1)[:100])
    result = edgecnn("classify", "0.png", "1.png", "2.png", "--model", bundle_path(finished_run), "--json")
    failed(result, errors.PartialFailure)
    assert len(result.out.splitlines()) == 3
    assert '"error"' in result.out.splitlines()[1]


def test_no_network_for_a_download(edgecnn, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    monkeypatch.setattr("edgecnn.data.named.time.sleep", lambda seconds: None)
    result = edgecnn("train", "--data", "cifar10")
    failed(result, errors.DownloadError, "cifar-10-binary.tar.gz", "EDGECNN_DATA")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("train photos", "edgecnn train --data photos"),
        ("run photos", "edgecnn train --data photos"),
        ("train digits", "edgecnn train --data digits"),
        ("run outside.toml", "'../../x'"),
        ("train runs/tiny", "edgecnn train --resume --out runs/tiny"),
        ("train --data digits --network mobilenet_v2", "FILE.py:FUNCTION"),
        ("bundle --serial abc", "received 'abc', expected a whole number from 0 to"),
        ("classify 0", "0: no such file or folder. For a camera, use --camera"),
        ("explain webcam", "webcam: no such file or folder. For a camera, use --camera"),
        ("classify photos --model runs/tiny", "Its bundle is runs/tiny/tiny.edgecnn."),
        ("classify photos --model photos", "edgecnn bundle photos"),
        ("classify photos --model runs/tiny/model-int8.tflite", "edgecnn bundle RUN"),
        ("service check --config none.toml", "none.toml does not exist"),
        ("stress moved.edgecnn", "photos, are not here. Say where they are: --data"),
    ],
)
def test_a_wrong_first_command_gets_an_answer_with_the_right_one(edgecnn, own_run, tmp_path, command, answer):
    (tmp_path / "photos").mkdir()
    (tmp_path / "outside.toml").write_text('name = "../../x"')
    bundle = read_bundle(bundle_path(own_run))
    provenance = dict(bundle.manifest.provenance)
    provenance["recipe"] = {"data": {"source": "their-photos"}}
    manifest = dataclasses.replace(bundle.manifest, provenance=provenance)
    write_bundle(tmp_path / "moved.edgecnn", manifest, dict(bundle.files))
    result = edgecnn(*command.split())
    assert result.code and answer in result.err, result.err
    assert "Did you mean" not in result.err


def test_each_action_has_its_own_help(edgecnn):
    added = edgecnn("slot", "add", "--help").out
    assert added.startswith("Usage: edgecnn slot add BUNDLE [OPTIONS]\n")
    assert "edgecnn slot add cats.edgecnn" in added and "edgecnn slot rollback" not in added
    assert "--activate" in added and "--slots" in added and "--keep" not in added
    assert "--keep" in edgecnn("slot", "prune", "-h").out
    everything = edgecnn("slot", "--help").out
    assert all(text in everything for text in ("ACTION", "--activate", "--keep", "edgecnn slot rollback"))


def test_a_review_into_a_new_folder_says_that_it_is_new(edgecnn, tmp_path):
    pytest.importorskip("starlette", reason="the page needs the http extra")
    (tmp_path / "kept").mkdir()
    (tmp_path / "photos").mkdir()
    assert "photso is a new folder" in edgecnn("review", "kept", "--into", "photso").err
    assert "new folder" not in edgecnn("review", "kept", "--into", "photos").err


PACKAGE = Path(errors.__file__).parent
OTHER_PROGRAMS = {"--codec", "--upgrade"}  # options of rpicam-vid and pip
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def texts():
    """Yield each constant text in a call that creates an error, with its location."""
    names = {kind.__name__ for kind in KINDS}
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                for part in ast.walk(call):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"{path.relative_to(PACKAGE)}:{part.lineno}", part.value


def test_options_that_errors_name_exist():
    group = typer.main.get_command(app)
    known = {option for name in COMMANDS for item in group.get_command(None, name).params for option in item.opts}
    named = {(place, option) for place, text in texts() for option in re.findall(r"(?<![\\w-])--[a-z][a-z0-9-]+", text)}
    assert len(named) > 20
    assert not [(place, option) for place, option in sorted(named) if option not in known | OTHER_PROGRAMS]


def test_an_error_keeps_its_text_through_a_pickle():
    for kind in KINDS:
        assert str(pickle.loads(pickle.dumps(kind("x.tflite exists.")))) == "x.tflite exists.", kind


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


# tests/stages/test_pipeline.py interrupts `edgecnn run` by default, and tests/train/test_phases.py kills `train`
@pytest.mark.parametrize(
    "signal_",
    [pytest.param(signal.SIGINT, marks=pytest.mark.guard), pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)
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


INTERRUPT = """
import os, runpy, signal, sys

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        pass

class Dropped:
    __del__ = interrupt

class Name:
    __set_name__ = interrupt

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.stderr.write("now\\n")
            sys.stderr.flush()
            {act}

sys.meta_path.insert(0, Interrupt())
sys.argv = ["edgecnn", *{arguments!r}]
{start}
"""
AT_ONCE = "os.kill(os.getpid(), signal.SIGINT)"
AS_MODULE = 'runpy.run_module("edgecnn", run_name="__main__", alter_sys=True)'


@pytest.fixture(scope="module")
def as_script(root):
    """The code that an installed `edgecnn` runs."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["edgecnn"].partition(":")
    return f"from {module} import {function}\nsys.exit({function}())"


MODULES = (
    "edgecnn.cli", "typer", "typer.core", "edgecnn.errors", "edgecnn.cli.classify", "edgecnn.runtime.classifier", "numpy", "PIL.Image",
    "ai_edge_litert",
)  # fmt: skip


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize(
    ("module", "script"),
    [("edgecnn.cli", False), *((name, True) for name in MODULES)],
)
def test_ctrl_c_while_it_starts_is_quiet(tmp_path, as_script, module, script):
    if module == "ai_edge_litert" and not is_installed("litert"):
        pytest.skip("LiteRT is not installed")
    code = INTERRUPT.format(
        module=module,
        act=AT_ONCE,
        arguments=["classify", "synthetic:64x48?frames=1", "--json"],
        start=as_script if script else AS_MODULE,
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    assert result.stderr.startswith("now\n")
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize("module", ["edgecnn.cli", "edgecnn.cli.classify", "edgecnn.runtime.classifier"])
@pytest.mark.parametrize("act", ["Dropped()", "type('Settings', (), {'name': Name()})"])
def test_ctrl_c_is_not_lost_if_python_ignores_or_wraps_it(tmp_path, as_script, module, act):
    """It ignores one in a destructor, as in the callbacks with which imports free their locks, and wraps one in `__set_name__`."""
    arguments = ["classify", "synthetic:64x48", "--json"]
    code = INTERRUPT.format(module=module, act=act, arguments=arguments, start=as_script)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr


AT_A_CALL = """
import os, signal, sys
from edgecnn.__main__ import run

def count(frame, event, argument):
    global left
    left -= event == "call"
    if not left:
        sys.setprofile(None)
        sys.stderr.write("now\\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGINT)

left = {call}
sys.argv = ["edgecnn", *{arguments!r}]
sys.setprofile(count)
run()
"""


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize("arguments", [["train", "--help"], ["classify", "synthetic:64x48?frames=50"]])
@pytest.mark.parametrize("call", [2, 300, 10_000])
def test_ctrl_c_at_one_call_after_another_is_quiet(tmp_path, arguments, call):
    """From the first line of `edgecnn` on; Python's own start is outside our control."""
    code = AT_A_CALL.format(call=call, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stderr.startswith("now\n") and result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr
