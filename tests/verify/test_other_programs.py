"""Answers of other programs with the files that a run exported for them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the frigate extra: pip install opencv-python-headless")
pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import cv2
import jsonschema

from edgecnn.data import open_dataset
from edgecnn.errors import MissingExtraError, ParityError, RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path
from edgecnn.interop import LABELMAP, MODEL, with_scores
from edgecnn.report.sections import comparisons_table, models_table, program_lines
from edgecnn.runs import PARITY, Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.stages import Silent
from edgecnn.stages.bundle import carried_models, default_model
from edgecnn.stages.pipeline import Stages, do_exports
from edgecnn.stages.verify import verify
from edgecnn.verify.matrix import frigate_resize, mediapipe_resize, program_answers
from edgecnn.verify.parity_report import Gate, require_parity

FRIGATE = """
import sys
import numpy as np
try:
    from tflite_runtime.interpreter import Interpreter
except ModuleNotFoundError:
    from ai_edge_litert.interpreter import Interpreter

folder, frames, answers = sys.argv[1:]
interpreter = Interpreter(model_path=f"{folder}/model.tflite", num_threads=2)
interpreter.allocate_tensors()
read, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
lines = open(f"{folder}/labelmap.txt", encoding="utf-8").readlines()
rows = []
for frame in np.load(frames):
    interpreter.set_tensor(read, np.expand_dims(frame, axis=0))
    interpreter.invoke()
    codes = interpreter.get_tensor(given)[0]
    rows.append(codes / codes.sum(axis=0))
np.save(answers, rows)
print(Interpreter.__module__, [line.strip() for line in lines])
"""
"""Frigate's documented steps after its resize: load both files, pass a uint8 frame, divide output 0 by its sum, name the largest."""


@pytest.fixture(scope="module")
def report(frigate_run):
    return verify(frigate_run, open_dataset(frigate_run.recipe.data), gate=Gate(max_drop=100))


@pytest.fixture
def own_door(frigate_run, tmp_path, monkeypatch):
    """A copy of the run that tests may change."""
    monkeypatch.chdir(tmp_path)
    return Run(shutil.copytree(frigate_run.path, tmp_path / "runs" / "door"))


def items(report, kind, candidate):
    return [item for item in report.comparisons if item.kind == kind and item.candidate == candidate]


@pytest.mark.parametrize("program", ["frigate", pytest.param("mediapipe", marks=pytest.mark.slow)])
def test_a_program_is_compared_with_the_float_model_and_with_edgecnns_own_path(report, program):
    by_float, by_int8 = items(report, "program", program)
    assert (by_float.reference, by_int8.reference) == ("float", "tflite-int8")
    assert by_float.n == by_int8.n == report.data.test_images > 15
    accuracies = {model.name: model.accuracy for model in report.models}
    assert by_int8.accuracy_reference == accuracies["tflite-int8"] > 0.6
    assert by_int8.accuracy_candidate == by_float.accuracy_candidate == accuracies[program]
    assert 0.5 < by_int8.agreement < 0.95, "the quarter of the images that alias differs without antialiasing"
    assert by_int8.accuracy_candidate < by_int8.accuracy_reference
    assert by_float.failed == () and by_float.limit == "drop of at most 100.00 points"


@pytest.mark.parametrize("program", ["frigate", "mediapipe"])
def test_on_the_same_pixels_the_file_answers_like_the_int8_file(report, program):
    (item,) = items(report, "conversion", program)
    assert item.reference == "tflite-int8" and item.passed
    assert item.agreement == 1 and item.largest_lsb <= 1 and item.unit == "score"


def test_the_report_is_written_and_follows_its_schema(report, frigate_run, schema_of):
    schema = schema_of("parity")
    written = json.loads(frigate_run.read(PARITY, "verify"))
    jsonschema.validate(written, schema)
    assert [model["name"] for model in written["models"]][-2:] == ["frigate", "mediapipe"]
    assert written["models"][-1]["precision"] == "int8-softmax"


def test_the_tables_name_the_basis_of_each_figure(report):
    rows = {row[0]: row for row in models_table(report).rows}
    by_float, by_int8 = items(report, "program", "frigate")
    assert rows["frigate"][5] == f"{by_float.agreement:.2%}"
    names = [row[0] for row in comparisons_table(report).rows]
    assert names[-4:] == [
        "frigate", "frigate (against tflite-int8)", "mediapipe", "mediapipe (against tflite-int8)",
    ]  # fmt: skip
    assert f"frigate, with its own resize, is right on {by_int8.accuracy_candidate:.2%}" in program_lines(report)[0]
    assert f"the same answer on {by_int8.agreement:.2%}" in program_lines(report)[0]


def test_the_gate_applies_the_drop_to_a_program(own_door):
    report = verify(own_door, open_dataset(own_door.recipe.data))
    assert not report.passed
    by_program = [item for item in report.comparisons if item.kind == "program"]
    assert [item.failed for item in by_program] == [("drop",)] * 4
    assert all(item.passed for item in report.comparisons if item.kind == "conversion" and item not in by_program)
    with pytest.raises(ParityError, match=r"frigate .* float") as caught:
        require_parity(replace(report, comparisons=tuple(by_program)))
    assert "without antialiasing" in str(caught.value)


@pytest.mark.parametrize("python", [sys.executable, ".venv-tflite-3.11"], ids=["litert", "tflite_runtime"])
def test_frigates_documented_steps(frigate_run, root, tmp_path, python):
    """On 224x224 images, the top label is edgecnn's own unless scores tie within 2/256; on others, agreement is as verify reports."""
    if python != sys.executable:
        python = root / python / "bin" / "python"
        if not python.exists():
            pytest.skip(f"no virtual environment {python.parents[1].name}: make test makes it")
    dataset = open_dataset(frigate_run.recipe.data)
    shape = vars(frigate_run.info.input)
    ours = dataset.load(("test",), **shape, stage="verify")["test"]
    raw = dataset.load(("test",), **shape, stage="verify", other_resize=lambda image: cv2.resize(image, (224, 224)))[
        "test"
    ]
    frames = np.concatenate([ours.images, raw.images])
    np.save(tmp_path / "frames.npy", frames)
    files = [frigate_run.path / "frigate", tmp_path / "frames.npy", tmp_path / "answers.npy"]
    done = subprocess.run([python, "-c", FRIGATE, *files], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    module, labels = done.stdout.split(" ", 1)
    assert module.startswith("tflite_runtime" if "tflite" in str(python) else "ai_edge_litert")
    assert labels.strip() == "['closed', 'none', 'open']"
    answers = np.load(tmp_path / "answers.npy")
    same, theirs = answers[: len(ours.images)], answers[len(ours.images) :]
    data = export_path(frigate_run, "tflite", "int8").read_bytes()
    model = Model(open_engine(None, data, "tflite"), input_contract(frigate_run))
    expected = softmax(model.dequantize(model.outputs(ours.images)))
    rows = np.arange(len(same))
    differ = same.argmax(axis=1) != expected.argmax(axis=1)
    behind = expected.max(axis=1) - expected[rows, same.argmax(axis=1)]
    assert np.all(behind[differ] <= 2 / 256)
    assert np.abs(same - expected).max() <= 3 / 256
    own, _ = program_answers(frigate_run, "frigate", dataset, ours, lambda *progress: None)
    assert np.abs(theirs - own.values).max() <= 2 / 256
    assert np.mean(theirs.argmax(axis=1) == own.values.argmax(axis=1)) >= 0.95


def test_an_image_of_the_models_size_is_unchanged():
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    for resize in (frigate_resize, mediapipe_resize):
        assert np.array_equal(resize(image, 224, 224), image)


def test_neither_resize_has_antialiasing_and_they_sample_different_places():
    """A row of single white pixels: the result depends on where between the pixels it is sampled."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[::4, ::4] = 255
    assert frigate_resize(image, 2, 2).max() == 0, "between pixels 1 and 2, and 5 and 6"
    assert np.array_equal(mediapipe_resize(image, 2, 2), np.full((2, 2, 3), 255)), "at pixels 0 and 4"


def test_files_from_an_earlier_model_are_not_judged(own_door):
    path = own_door.path / "frigate" / MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match=r"First: edgecnn export .*door --for frigate --force"):
        verify(own_door, open_dataset(own_door.recipe.data))
    shutil.rmtree(own_door.path / "frigate")
    (own_door.path / "mediapipe" / MODEL).write_bytes(with_scores(export_path(own_door, "tflite", "int8").read_bytes()))
    with pytest.raises(RunError, match="--for mediapipe --force"):
        verify(own_door, open_dataset(own_door.recipe.data))


@pytest.mark.slow
def test_edgecnn_run_updates_existing_files(own_door):
    shutil.rmtree(own_door.path / "mediapipe")
    path = own_door.path / "frigate" / MODEL
    current = path.read_bytes()
    path.write_bytes(b"of an earlier model")
    do_exports(Stages(own_door, lambda text: None), open_dataset(own_door.recipe.data), Silent())
    assert path.read_bytes() == current
    assert not (own_door.path / "mediapipe").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_plots")
def test_the_command_line_from_the_run_to_two_files(own_door, edgecnn, monkeypatch):
    shutil.rmtree(own_door.path / "frigate")
    shutil.rmtree(own_door.path / "mediapipe")
    export_path(own_door, "tflite", "int8").unlink()
    out = own_door.path.parent / "model_cache" / "front door"
    result = edgecnn("export", own_door.path, "--for", "frigate", "--out", out, "--json")
    assert result.code == 0, result.err
    assert [file["path"] for file in json.loads(result.out)["files"]] == [str(out / MODEL), str(out / LABELMAP)]
    assert (out / LABELMAP).read_text() == "closed\nnone\nopen\n"
    assert (out / MODEL).read_bytes() == (own_door.path / "frigate" / MODEL).read_bytes()
    assert edgecnn("export", own_door.path, "--for", "frigate", "--out", out).code == 20
    assert edgecnn("export", own_door.path, "--for", "frigate", "--out", out, "--force").code == 0
    result = edgecnn("verify", own_door.path, "--max-drop", "100", "--json")
    assert result.code == 0, result.err
    assert "frigate" in [model["name"] for model in json.loads(result.out)["models"]]
    monkeypatch.setitem(sys.modules, "cv2", None)
    result = edgecnn("verify", own_door.path, "--max-drop", "100")
    assert result.code == MissingExtraError.exit_code
    assert "needs cv2" in result.err and "[frigate]'" in result.err


def test_a_bundle_carries_only_the_devices_models(report, frigate_run):
    assert [model[:2] for model in carried_models(frigate_run, report, ())] == [("tflite", "int8")]
    assert default_model(report, "tflite", {"int8"}) == "models/int8.tflite"


CLASSIFY = """
import json, sys
import mediapipe as mp
import numpy as np
from mediapipe.tasks import python
from mediapipe.tasks.python import vision

model, images, answers = sys.argv[1:]
options = vision.ImageClassifierOptions(base_options=python.BaseOptions(model_asset_path=model), max_results=-1)
with vision.ImageClassifier.create_from_options(options) as classifier, np.load(images) as file, open(answers, "w") as out:
    for name in sorted(file.files):
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=file[name])
        categories = classifier.classify(image).classifications[0].categories
        out.write(json.dumps({item.category_name: item.score for item in categories}) + "\\n")
"""

SHAPES = ((224, 224), (240, 320), (480, 640), (1080, 1920), (97, 211), (1, 1), (225, 223), (672, 672))


@pytest.fixture(scope="session")  # before the run, which takes seconds
def python_mediapipe(root):
    path = root / ".venv-mediapipe-3.11" / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no virtual environment {path.parents[1].name}, of 650 MB: make .venv-mediapipe-3.11/.done")
    return path


def test_its_scores_equal_those_that_verify_reports(python_mediapipe, frigate_run, tmp_path):
    """Every score matches to the last code on images of many shapes: this tests the metadata, the labels and the imitated resize."""
    random = np.random.default_rng(4)
    images = [random.integers(0, 256, (*shape, 3), np.uint8) // np.uint8(1 + n % 3) for n, shape in enumerate(SHAPES)]
    for n, image in enumerate(images):
        image[..., n % 3] //= 2
    np.savez(tmp_path / "images.npz", **{f"{n:02}": image for n, image in enumerate(images)})
    model = frigate_run.path / "mediapipe" / MODEL
    files = [model, tmp_path / "images.npz", tmp_path / "answers.jsonl"]
    done = subprocess.run(
        [python_mediapipe, "-c", CLASSIFY, *files], capture_output=True, text=True, env={"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    labels = frigate_run.info.data.labels
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    theirs = np.array([[answer.get(label, 0.0) for label in labels] for answer in answers])
    engine = open_engine(None, model.read_bytes(), "tflite")
    ours = engine.run(np.stack([mediapipe_resize(image, 224, 224) for image in images])) / 256
    assert len({tuple(row) for row in ours}) > 5, "the answers differ between the images"
    assert np.array_equal(theirs, ours)
