"""The round trip with Frigate on photos: the answers of Frigate and MediaPipe with our files, compared with edgecnn's own.

The photos become a dataset in Frigate's layout, clips/material/dataset/CLASS/*. A network is trained on it, unless the run already exists,
and its files for both programs are made and verified. Then the programs run on the test split:

- the file for Frigate with Frigate's documented steps, in each --python (LiteRT here; an environment with tflite-runtime), once on photos
  resized by edgecnn, and once on photos resized by OpenCV;
- the file for MediaPipe in its ImageClassifier, in --mediapipe-python, on photos resized by edgecnn, and on the original photos.

    EDGECNN_DATA=<folder of trash-photos.zip> python tools/bench/frigate.py --run /tmp/material \\
        --python .venv-tflite-3.11/bin/python --mediapipe-python .venv-mediapipe-3.11/bin/python
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, edgecnn, finish, parser

from edgecnn.data import Dataset, open_dataset
from edgecnn.data.places import data_home
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path
from edgecnn.interop.programs import FRIGATE, LABELMAP, MEDIAPIPE, MODEL, PROGRAMS, export_program, program_path
from edgecnn.recipe import build_recipe
from edgecnn.runs import Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.stages.verify import verify
from edgecnn.verify import Gate
from edgecnn.verify.other_programs import frigate_resize

TIE = 2 / 256
"""Two scores closer than this may swap places: their resolution is 1/256."""

STEPS = """
import sys
import numpy as np
try:
    from tflite_runtime.interpreter import Interpreter
except ModuleNotFoundError:
    from ai_edge_litert.interpreter import Interpreter
model, frames, answers = sys.argv[1:]
interpreter = Interpreter(model_path=model, num_threads=2)
interpreter.allocate_tensors()
read, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
rows = []
for frame in np.load(frames):
    interpreter.set_tensor(read, np.expand_dims(frame, axis=0))
    interpreter.invoke()
    codes = interpreter.get_tensor(given)[0]
    rows.append(codes / codes.sum(axis=0))
np.save(answers, rows)
print(Interpreter.__module__.partition(".")[0])
"""
"""Frigate's documented steps after its resize, frigate/data_processing/real_time/custom_classification.py."""

CLASSIFY = """
import sys
from importlib.metadata import version
import mediapipe as mp
import numpy as np
from mediapipe.tasks import python
from mediapipe.tasks.python import vision
model, images, answers = sys.argv[1:]
options = vision.ImageClassifierOptions(base_options=python.BaseOptions(model_asset_path=model), max_results=-1)
with vision.ImageClassifier.create_from_options(options) as classifier, np.load(images) as file:
    rows = []
    for name in sorted(file.files):
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=file[name])
        categories = classifier.classify(image).classifications[0].categories
        rows.append([item.score for item in sorted(categories, key=lambda item: item.index)])
np.save(answers, rows)
print("mediapipe", version("mediapipe"))
"""


def trained(path: Path, media: Path, network: str | None, epochs: int | None) -> tuple[Run, Dataset]:
    """Return the run at `path`, trained on Frigate's dataset if it does not exist yet, with files for both programs."""
    source = f"frigate:{media}"
    if not path.exists():
        chosen = {"--network": network, "--epochs": epochs}
        options = [f"{name}={value}" for name, value in chosen.items() if value]
        edgecnn("train", "--data", source, *options, "--out", path)
    run = Run(path)
    for program in PROGRAMS:
        export_program(run, program, force=True)
    return run, open_dataset(build_recipe({"data": {"source": source}}).data)


def raw_images(run: Run, dataset: Dataset) -> list[np.ndarray]:
    """Return the test split's original photos, uint8 (rows, columns, 3)."""
    images: list[np.ndarray] = []

    def keep(image: np.ndarray) -> np.ndarray:
        images.append(image)
        return frigate_resize(image, 224, 224)

    dataset.load(("test",), **vars(run.info.input), stage="verify", other_resize=keep)
    return images


def answered(python: Path, script: str, model: Path, images: Path) -> tuple[str, np.ndarray]:
    """Run a script and return its printed text and the scores that it wrote."""
    scores = images.with_suffix(".scores.npy")
    done = subprocess.run([python, "-c", script, model, images, scores], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python}: {done.stderr}")
    return done.stdout.strip(), np.load(scores)


def figures(what: str, scores: np.ndarray, ours: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Compare a program's scores with edgecnn's on n images: accuracy, agreement, and the number of answers further apart than a tie."""
    top = scores.argmax(axis=1)
    behind = ours.max(axis=1) - ours[np.arange(len(ours)), top]
    return {
        "what": what,
        "n": len(classes),
        "accuracy": float(np.mean(top == classes)),
        "accuracy_edgecnn": float(np.mean(ours.argmax(axis=1) == classes)),
        "agreement": float(np.mean(top == ours.argmax(axis=1))),
        "apart_by_more_than_a_tie": int(np.sum(behind > TIE)),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the dataset, the run and the files, and compare every path."""
    with zipfile.ZipFile(arguments.photos) as archive:
        for name in archive.namelist():
            if name.endswith(".jpg"):
                place = folder / "clips" / "material" / "dataset" / Path(name).parent.name / Path(name).name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(name))
    run, dataset = trained(arguments.run, folder, arguments.network, arguments.epochs)
    report = verify(run, dataset, gate=Gate(max_drop=100))
    test = dataset.load(("test",), **vars(run.info.input), stage="verify")["test"]
    model = Model(open_engine(None, export_path(run, "tflite", "int8").read_bytes(), "tflite"), input_contract(run))
    ours = softmax(model.dequantize(model.outputs(test.images)))
    raw = raw_images(run, dataset)
    np.save(folder / "same.npy", test.images)
    np.save(folder / "resized.npy", [frigate_resize(image, 224, 224) for image in raw])
    for name, images in (("same", test.images), ("raw", raw)):
        np.savez(folder / f"{name}.npz", **{f"{number:06}": image for number, image in enumerate(images)})
    rows = []
    file = program_path(run, FRIGATE) / MODEL
    assert (file.parent / LABELMAP).read_text().splitlines() == list(dataset.labels)
    for python in (Path(sys.executable), *arguments.python):
        for name, what in (("same", "224x224 photos"), ("resized", "photos, cv2.resize")):
            engine, scores = answered(python, STEPS, file, folder / f"{name}.npy")
            rows.append(figures(f"Frigate's steps, {engine}, {what}", scores, ours, test.classes))
    if arguments.mediapipe_python:
        file = program_path(run, MEDIAPIPE) / MODEL
        for name, what in (("same", "224x224 photos"), ("raw", "photos")):
            engine, scores = answered(arguments.mediapipe_python, CLASSIFY, file, folder / f"{name}.npz")
            rows.append(figures(f"{engine}, {what}", scores, ours, test.classes))
    shapes = sorted({image.shape[:2] for image in raw})
    return {
        **about("frigate", network=run.recipe.network.name, photos=[f"{width}x{height}" for height, width in shapes]),
        "epochs": run.recipe.train.epochs,
        "training_photos": dataset.sizes["train"],
        "verify": {item.name: item.accuracy for item in report.models},
        "rows": rows,
    }


def main() -> None:
    """Train, run the programs, print a table and write the figures."""
    made = parser(__doc__, "frigate")
    photos = (data_home() or Path()) / "trash-photos.zip"
    made.add_argument("--photos", type=Path, default=photos, help="a zip of class folders")
    made.add_argument("--run", type=Path, required=True, help="the run folder, trained if it does not exist")
    made.add_argument("--network", help="default: chosen by the images")
    made.add_argument("--epochs", type=int, help="of the float phase; default: chosen by the images")
    made.add_argument("--python", type=Path, action="append", default=[], help="of an environment with tflite-runtime")
    made.add_argument("--mediapipe-python", type=Path, help="of an environment with mediapipe")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    shares = ("accuracy", "accuracy_edgecnn", "agreement")
    rows = [(row["what"], f"{row['n']:,}", *(f"{row[share]:.2%}" for share in shares)) for row in report["rows"]]
    finish(arguments.out, report, ("path", "photos", "accuracy", "edgecnn's", "agreement"), rows)


if __name__ == "__main__":
    main()
