"""The run folder, also on a full disk."""

import errno
import os
import re
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import OutputError, OutputExistsError, RecipeError, RunError
from edgecnn.recipe import build_recipe
from edgecnn.runs import create_run, free_path, locked, open_run
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.pipeline import run_recipe

RECIPE = build_recipe({"name": "one"})


def test_latest_is_the_last_run_made_latest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        create_run(RECIPE, tmp_path / "runs" / name).make_latest()
        assert open_run().name == name
    assert open_run().recipe == RECIPE
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b", "latest"]


def test_an_interrupted_training_continues_and_other_stages_run_again(tmp_path):
    run = create_run(RECIPE, tmp_path / "a")
    assert run.command("train") == f"edgecnn train --resume --out {tmp_path}/a"
    assert run.command("export") == f"edgecnn export {tmp_path}/a"


def test_a_run_elsewhere_can_be_the_latest(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    create_run(RECIPE, tmp_path / "elsewhere" / "c").make_latest()
    assert open_run().path == tmp_path / "elsewhere" / "c"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["c"]


def test_a_name_that_leads_out_of_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("../../x", "/x", "a/b", "..", ".", "", "latest", "a\0b", "a\nb"):
        with pytest.raises(RecipeError, match="expected the name of a new folder in runs/"):
            free_path(name)


def test_free_path_counts_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_path("x").as_posix() == "runs/x"
    create_run(RECIPE, free_path("x"))
    create_run(RECIPE, free_path("x"))
    assert free_path("x").as_posix() == "runs/x-3"


def test_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="First: edgecnn train"):
        open_run()
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        open_run(tmp_path)


def test_a_missing_last_run_is_reported_as_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_run(RECIPE, free_path("pets"))
    create_run(RECIPE, free_path("cars")).make_latest()
    (tmp_path / "runs" / "cars").rename(tmp_path / "cars")
    with pytest.raises(RunError, match=r"runs/latest leads to cars, .*runs/pets\."):
        open_run()
    (tmp_path / "runs" / "latest").unlink()
    with pytest.raises(RunError, match=r"runs/latest .*runs/pets\."):
        open_run()


def test_the_last_run_of_another_user_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create_run(RECIPE, free_path("pets"))
    run.make_latest()
    monkeypatch.chdir(run.path)
    assert open_run(Path()).name == "pets"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: run.path.stat().st_uid + 1)
    with pytest.raises(RunError, match=r"runs/latest belongs to another user.* name it: .*/runs/pets$"):
        open_run()
    assert open_run(run.path).name == "pets"


def test_an_unknown_run_lists_the_existing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_run(RECIPE, free_path("pets")).make_latest()
    with pytest.raises(RunError, match=r"nope is not a run folder .*runs here: runs/pets\."):
        open_run(tmp_path / "nope")


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "Expecting property name"), ("{}", ".* state "), ("[]", "")],
)
def test_damaged_info(tmp_path, text, why):
    run = create_run(RECIPE, tmp_path / "run")
    run.file("run.json").write_text(text)
    with pytest.raises(RunError, match=rf"run\.json: {why}.*Train again"):
        _ = run.info


def test_force_replaces_a_run_but_nothing_else(tmp_path):
    run = create_run(RECIPE, tmp_path / "run")
    for name in ("float.h5", "folds/1/float.h5", "features/a.npy", "frigate/model.tflite", "mine/notes.txt"):
        run.file(name).parent.mkdir(parents=True, exist_ok=True)
        run.file(name).write_bytes(b"old")
    with pytest.raises(
        OutputExistsError, match=r"exists\. Continue it \(--resume\), replace it \(--force\), or name another"
    ):
        create_run(RECIPE, run.path)
    with locked(run.path):
        create_run(RECIPE, run.path, force=True)
        with pytest.raises(RunError, match="is training"), locked(run.path):
            pass
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {".lock", "recipe.toml", "mine/notes.txt"}, "no fold of the former run, but a folder of the user's"
    taught = build_recipe({"teacher": {"run": str(run.path)}})
    with pytest.raises(OutputExistsError, match="which the new run needs"):
        create_run(taught, run.path, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="is a file"):
        create_run(RECIPE, tmp_path / "file", force=True)


def test_the_bundled_recipe_names_the_data_without_its_folder(tmp_path):
    run = create_run(build_recipe({"data": {"source": "/home/me/photos.zip"}}), tmp_path / "run")
    assert run.public_recipe.data.source == "photos.zip"
    assert run.recipe.data.source == "/home/me/photos.zip"


HOLD = """
import sys
from pathlib import Path
from edgecnn.runs import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_in_training_is_locked_until_its_process_ends(tmp_path, edgecnn):
    """Killing the holder also ends its lock."""
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    before = run.file("recipe.toml").read_bytes()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        for arguments in (("--resume",), ("--force", "--data", "digits")):
            result = edgecnn("train", "--out", run.path, *arguments)
            assert result.code == RunError.exit_code and f"process {holder.pid} is training" in result.err
        with pytest.raises(RunError), locked(run.path):
            pass
        holder.kill()
    with locked(run.path):
        assert run.file("recipe.toml").read_bytes() == before


def test_an_unrelated_folder_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputExistsError, match="is not a run folder"), locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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
