"""A full disk at every write: one clear error, nothing half-written, and the same command continues once there is room."""

import errno
import os
import resource
import subprocess
import sys
from importlib import import_module

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import OutputError
from edgecnn.recipe import build_recipe
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.pipeline import run_recipe


@pytest.mark.usefixtures("blank_plots")
@pytest.mark.guard  # about fifty runs; a disk that is full at each stage is tested below
def test_each_write_of_the_pipeline_can_fail_once(tmp_path, monkeypatch, reporter, tiny_network):
    """Let the first attempt at every write fail, rerun each time, and compare with a run that nothing stopped."""
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(
        {
            "name": "full",
            "data": {"source": "digits"},
            "network": {"name": tiny_network},
            "train": {"epochs": 1, "batch_size": 256},
            "qat": {"epochs": 1, "batch_size": 256, "rounding": "nearest"},
        }
    )
    # after one epoch, chance decides which method ships; this method has a fake-quantized model to verify
    monkeypatch.setattr(import_module("edgecnn.train.train"), "better_method", lambda asked, qat, ptq: ("qat", None))
    real = os.fsync
    failed = []
    written = set()

    def full(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).rsplit(".", 2)[0]
        version = name, os.fstat(descriptor).st_size
        if version not in written:
            written.add(version)
            failed.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    run = None
    while run is None:
        before = len(failed)
        try:
            run, _ = run_recipe(recipe, tmp_path / "run", reporter, max_drop=100.0)
        except OutputError as error:
            assert "No space left on device" in str(error) and "Free some space" in str(error)
            assert "--out" not in str(error), "an option that most commands do not have"
            assert len(failed) == before + 1
        assert not list(tmp_path.rglob("*.tmp")), "a temporary file was left"
    expected = {
        ".recipe.toml", ".network.py", ".run.json", ".checkpoint.npz", ".history.csv", ".float.h5", ".qat.h5", ".curves.png",
        ".stages.json", ".model-int8.tflite", ".model-int8-ptq.tflite", ".model-float32.tflite", ".model-int8.onnx", ".model-float32.onnx",
        ".parity.json", ".confidence.json", ".run.edgecnn", ".card.md", ".predictions.npz", ".report.json",
        ".report.html", ".validation.json",
    }  # fmt: skip
    assert set(failed) == expected

    monkeypatch.setattr(os, "fsync", real)
    whole, _ = run_recipe(recipe, tmp_path / "whole", reporter, max_drop=100.0)
    for name in ("model-int8.tflite", "model-float32.tflite", "model-int8.onnx", "model-float32.onnx", "float.h5"):
        assert run.file(name).read_bytes() == whole.file(name).read_bytes(), name


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (500, ("train", "--data", "digits", "--epochs", "1", "--out", "new")),
        (50_000, ("export", "RUN", "--format", "tflite", "--force")),
        pytest.param(50_000, ("export", "RUN", "--format", "onnx", "--force"), marks=pytest.mark.slow),
        (1_000, ("verify", "RUN")),
        (50_000, ("bundle", "RUN", "--force")),
    ],
)
def test_a_real_limit_on_file_sizes(own_run, edgecnn, file_limit, limit, arguments):
    before = {path: path.read_bytes() for path in own_run.path.rglob("*") if path.is_file()}
    arguments = [own_run.path if argument == "RUN" else argument for argument in arguments]
    with file_limit(limit):
        result = edgecnn(*arguments)
    assert result.code == OutputError.exit_code, result.err
    assert "edgecnn: error: " in result.err and "File too large" in result.err
    after = {path: path.read_bytes() for path in own_run.path.rglob("*") if path.is_file()}
    assert after == before, "the old files are whole, and nothing was added"


def test_results_that_do_not_fit(finished_run, tmp_path):
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("L", (8, 8), 200).save(image)
    with (tmp_path / "out.json").open("w") as out:
        result = subprocess.run(
            [sys.executable, "-m", "edgecnn", "classify", *[image] * 3, "--model", bundle_path(finished_run), "--json"],
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
        )
    assert result.returncode == OutputError.exit_code, result.stderr
    assert "cannot write standard output" in result.stderr and "Traceback" not in result.stderr
