"""MediaPipe's own ImageClassifier on its file, in a separate environment: its absl-py is not the one that TensorFlow needs."""

import json
import subprocess

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
pytest.importorskip("cv2", reason="the frigate extra: pip install opencv-python-headless")

from edgecnn.interop import MODEL
from edgecnn.runtime.engines import open_engine
from edgecnn.verify.matrix import mediapipe_resize

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
def python(root):
    path = root / ".venv-mediapipe-3.11" / "bin" / "python"
    if not path.exists():
        pytest.skip(f"no virtual environment {path.parents[1].name}, of 650 MB: make .venv-mediapipe-3.11/.done")
    return path


def test_its_scores_equal_those_that_verify_reports(python, frigate_run, tmp_path):
    """Every score matches to the last code on images of many shapes: this tests the metadata, the labels and the imitated resize."""
    random = np.random.default_rng(4)
    images = [random.integers(0, 256, (*shape, 3), np.uint8) // np.uint8(1 + n % 3) for n, shape in enumerate(SHAPES)]
    for n, image in enumerate(images):
        image[..., n % 3] //= 2
    np.savez(tmp_path / "images.npz", **{f"{n:02}": image for n, image in enumerate(images)})
    model = frigate_run.path / "mediapipe" / MODEL
    files = [model, tmp_path / "images.npz", tmp_path / "answers.jsonl"]
    done = subprocess.run([python, "-c", CLASSIFY, *files], capture_output=True, text=True, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    labels = frigate_run.info.data.labels
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    theirs = np.array([[answer.get(label, 0.0) for label in labels] for answer in answers])
    engine = open_engine(None, model.read_bytes(), "tflite")
    ours = engine.run(np.stack([mediapipe_resize(image, 224, 224) for image in images])) / 256
    assert len({tuple(row) for row in ours}) > 5, "the answers differ between the images"
    assert np.array_equal(theirs, ours)
