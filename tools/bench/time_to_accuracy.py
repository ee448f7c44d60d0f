"""Time the article's script against `edgecnn train --network article` with a fixed schedule: training time, and the final accuracy.

The script is the article's, unmodified: tf.keras, raw pixels from 0 to 255, Adam at its default rate, batches of 64, 10 epochs, float32,
`validation_data` at every epoch. edgecnn trains with time_to_accuracy.toml, in bfloat16 and in float32; the schedule was chosen on
validation images. Both get the same files. edgecnn sets 1 % of the training images aside for validation, the script none. Runs are
interleaved, each in a separate process, with one seed per round. Both clocks run from an epoch's first step, including tracing of the
graph, to its last, and exclude validation and checkpoints. Test accuracy is measured once per run, at its end.

    python tools/bench/time_to_accuracy.py --data cifar10-jpeg.zip
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from harness import ROOT, about, finish, interleaved, parser

from edgecnn.data import open_dataset
from edgecnn.recipe import build_recipe, load_recipe, merge
from edgecnn.runs import FLOAT_MODEL, HISTORY, open_run

RECIPE = Path(__file__).with_suffix(".toml")
EDGECNN = """
from edgecnn.train import settle
settle.WARM_UP = 0.4
from edgecnn.__main__ import run
run()
"""
"""The program of an edgecnn process: with only two epochs, the rate has to rise for more than a fifth of the time."""

SCRIPT = """\
import json
import sys
import time

import numpy as np
import tensorflow as tf
from tensorflow.keras import layers, models


class Clock(tf.keras.callbacks.Callback):
    seconds = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.running = True

    def on_test_begin(self, logs=None):
        if self.running:
            self.seconds += time.perf_counter() - self.started
            self.running = False


images = np.load(sys.argv[1])
tf.keras.utils.set_random_seed(int(sys.argv[2]))

model = models.Sequential()
model.add(layers.Input((32, 32, 3)))
model.add(layers.Conv2D(32, (3, 3), activation="relu"))
model.add(layers.MaxPooling2D((2, 2)))
model.add(layers.Conv2D(64, (3, 3), activation="relu"))
model.add(layers.MaxPooling2D((2, 2)))
model.add(layers.Conv2D(64, (3, 3), activation="relu"))
model.add(layers.Flatten())
model.add(layers.Dense(64, activation="relu"))
model.add(layers.Dense(10))
model.compile(
    optimizer="adam", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
)
clock = Clock()
test = (images["test"], images["test_classes"])
history = model.fit(
    images["train"], images["train_classes"], epochs=int(sys.argv[3]), batch_size=64, validation_data=test,
    callbacks=[clock], verbose=0,
)
print(json.dumps({"seconds": clock.seconds, "accuracy": float(history.history["val_accuracy"][-1])}))
"""
Test = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "time_to_accuracy")
    made.add_argument("--data", default="cifar10-jpeg.zip", help="32x32 colour images (default: cifar10-jpeg.zip)")
    made.add_argument("--seeds", type=int, default=3, help="rounds, each with its seed (default: 3)")
    made.add_argument("--script-epochs", type=int, default=10, help="of the script; use fewer only for a trial")
    arguments = made.parse_args()
    dataset = open_dataset(
        build_recipe(merge(load_recipe(RECIPE), {"data": {"source": arguments.data}}), str(RECIPE)).data
    )
    splits = dataset.load(("train", "validation", "test"), height=32, width=32, channels=3, stage="verify")
    training, test = (splits["train"], splits["validation"]), (splits["test"].images, splits["test"].classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, classes = (np.concatenate([vars(split)[kind] for split in training]) for kind in ("images", "classes"))
        np.savez(folder / "images.npz", train=images, train_classes=classes, test=test[0], test_classes=test[1])
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "script": partial(run_script, folder, count(1), arguments.script_epochs)
        }
        for precision in ("bfloat16", "float32"):
            ways[precision] = partial(run_edgecnn, folder, arguments.data, count(1), precision, test)
        runs = interleaved(ways, arguments.seeds)
    medians = {way: statistics.median(run["seconds"] for run in found) for way, found in runs.items()}
    report = about("time_to_accuracy", data=dataset.title, script_epochs=arguments.script_epochs)
    report |= {
        "recipe": RECIPE.read_text(encoding="utf-8"),
        "test_images": len(test[1]),
        "runs": runs,
        "medians": medians,
    }
    rows = []
    for way, found in runs.items():
        accuracies = " ".join(f"{run['accuracy']:.2%}" for run in found)
        rows.append((way, f"{medians[way]:.1f}", f"{medians['script'] / medians[way]:.1f}", accuracies))
    finish(arguments.out, report, ("", "median s", "times faster", "test accuracy of each run"), rows)


def run_script(folder: Path, seeds: "count[int]", epochs: int) -> dict[str, float]:
    """Run the article's script in a separate process, with Keras 3, unmodified."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", SCRIPT, str(folder / "images.npz"), str(next(seeds)), str(epochs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_edgecnn(folder: Path, data: str, seeds: "count[int]", precision: str, test: Test) -> dict[str, float]:
    """Run `edgecnn train` in a separate process, and measure its float model on the test images."""
    from edgecnn.networks.predict import model_from_bytes, predictor

    seed = next(seeds)
    path = folder / f"{precision}-{seed}"
    command = [sys.executable, "-c", EDGECNN, "train", str(RECIPE), "--network", "article", "--data", data]
    command += ["--seed", str(seed), "--set", f"train.precision={precision}", "--out", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, env=environment)
    run = open_run(path)
    with run.file(HISTORY).open(encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file) if row["phase"] == "float")
    model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    logits = predictor(model, run.recipe.input_scale, run.recipe.input_zero_point)(test[0])
    return {"seconds": seconds, "accuracy": float(np.mean(np.argmax(logits, axis=1) == test[1]))}


if __name__ == "__main__":
    main()
