"""Time the article's script against `edgecnn train --network article` with a fixed schedule: training time to the script's accuracy.

The script is the article's as written: tf.keras unmodified, raw pixels of 0 to 255, Adam at its default rate, batches of 64, 10 epochs,
float32, `validation_data` at every epoch. edgecnn trains by tools/bench/time_to_accuracy.toml, once in bfloat16 and once in float32; the
schedule was chosen on validation images. Both get the same files, decoded once; of the training images edgecnn sets 1 % aside for
validation, the script none. Runs are interleaved (script, bfloat16, float32, script, …), each in a process of its own, a seed a round.

Both clocks run from an epoch's first step, the tracing of the graph within, to its last, over all epochs; validation and checkpoints stand
outside of them. Beside it: the whole process, its imports, and the decoding of the images. Test accuracy is measured once a run, at
its end. edgecnn has reached the script's accuracy where each of its runs ends at or above the median of the script's.

    python tools/bench/time_to_accuracy.py --data cifar10-jpeg.zip
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from resume import about

from edgecnn.data import open_dataset
from edgecnn.errors import EdgeCNNError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import build_recipe, load_recipe, merge
from edgecnn.report.table import text_table
from edgecnn.runs import FLOAT_MODEL, HISTORY, open_run

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_suffix(".toml")
RESULT = ROOT / "tools" / "bench" / "results" / "time_to_accuracy.json"
REQUIRED = {"bfloat16": 8.0, "float32": 4.0}
"""How many times sooner edgecnn has to be, by precision."""

SCRIPT = """\
import json
import sys
import time

started = time.perf_counter()
import numpy as np
import tensorflow as tf
from tensorflow.keras import layers, models

imported = time.perf_counter() - started


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
accuracy = float(history.history["val_accuracy"][-1])
print(json.dumps({"seconds": clock.seconds, "import_seconds": imported, "accuracy": accuracy}))
"""


def main() -> None:
    """Measure, print a table, write the figures; exit code 1 if edgecnn is not as much sooner as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10-jpeg.zip", help="32x32 colour images (default: cifar10-jpeg.zip)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one a round (default: 1 2 3)")
    parser.add_argument("--script-epochs", type=int, default=10, help="of the script; fewer only to try it out")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"the figures (default: {RESULT.relative_to(ROOT)})")
    arguments = parser.parse_args()
    try:
        report = measure(arguments.data, arguments.seeds, arguments.script_epochs)
    except EdgeCNNError as error:
        parser.exit(error.exit_code, f"{error}\n")
    write_atomic(arguments.out, canonical_json(report))
    print(
        f"{report['machine']}; load {report['load_average']:.1f} before; {report['data']}, decoded in {report['decode_seconds']:.1f} s"
    )
    headings = ("", "median s", "times sooner", "test accuracy of each run", "whole process s")
    print(text_table(headings, rows(report)))
    if not report["passed"]:
        sys.exit("not as much sooner as required, or not as accurate")


def measure(data: str, seeds: list[int], script_epochs: int) -> dict[str, Any]:
    """Run every contender once a seed, interleaved, and return all figures."""
    load = os.getloadavg()[0]
    started = time.perf_counter()
    recipe = build_recipe(merge(load_recipe(RECIPE), {"data": {"source": data}}), str(RECIPE))
    dataset = open_dataset(recipe.data)
    splits = dataset.load(("train", "validation", "test"), height=32, width=32, channels=3, stage="verify")
    decode_seconds = time.perf_counter() - started
    training = (splits["train"], splits["validation"])
    test = splits["test"].images, splits["test"].classes
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("script", *REQUIRED)}
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "images.npz"
        np.savez(
            arrays,
            train=np.concatenate([split.images for split in training]),
            train_classes=np.concatenate([split.classes for split in training]),
            test=test[0],
            test_classes=test[1],
        )
        for seed in seeds:
            for name in runs:
                if name == "script":
                    runs[name].append(run_script(Path(folder), arrays, seed, script_epochs))
                else:
                    runs[name].append(run_edgecnn(Path(folder) / f"{name}-{seed}", data, seed, name, test))
                print(f"seed {seed} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    return {
        **about("time_to_accuracy"),
        "load_average": load,
        "data": dataset.title,
        "images": {"train": sum(len(split.classes) for split in training), "test": len(test[1])},
        "validation_images": len(splits["validation"].classes),
        "decode_seconds": decode_seconds,
        "script_epochs": script_epochs,
        "recipe": RECIPE.read_text(encoding="utf-8"),
        "runs": runs,
        **compare(runs),
    }


def run_script(folder: Path, arrays: Path, seed: int, epochs: int) -> dict[str, float]:
    """Run the article's script in a process of its own, with Keras 3, unmodified."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, str(script), str(arrays), str(seed), str(epochs)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": time.perf_counter() - started}


def run_edgecnn(
    path: Path, data: str, seed: int, precision: str, test: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Run `edgecnn train` in a process of its own; measure its float model on the test images."""
    command = [sys.executable, "-m", "edgecnn", "train", str(RECIPE), "--network", "article", "--data", data]
    command += ["--seed", str(seed), "--set", f"train.precision={precision}", "--out", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=path.parent, stdout=subprocess.DEVNULL, env=environment)
    whole = time.perf_counter() - started
    run = open_run(path)
    with run.file(HISTORY).open(encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file) if row["phase"] == "float")
    recipe = run.recipe
    model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    logits = predictor(model, recipe.input_scale, recipe.input_zero_point)(test[0])
    accuracy = float(np.mean(np.argmax(logits, axis=1) == test[1]))
    return {"seconds": seconds, "accuracy": accuracy, "process_seconds": whole}


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians, how many times sooner edgecnn is, and whether it is as soon and as accurate as required."""
    medians = {
        name: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for name, results in runs.items()
    }
    sooner = {name: medians["script"]["seconds"] / medians[name]["seconds"] for name in REQUIRED}
    target = medians["script"]["accuracy"]
    reached = {name: min(run["accuracy"] for run in runs[name]) >= target for name in REQUIRED}
    passed = all(reached[name] and sooner[name] >= least for name, least in REQUIRED.items())
    return {"medians": medians, "times_sooner": sooner, "reached": reached, "required": REQUIRED, "passed": passed}


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the contenders' figures as text."""
    result: list[tuple[str, ...]] = []
    for name, runs in report["runs"].items():
        median = report["medians"][name]
        sooner = f"{report['times_sooner'][name]:.1f} (of {REQUIRED[name]:.0f})" if name in REQUIRED else "-"
        accuracies = " ".join(f"{run['accuracy']:.2%}" for run in runs)
        label = name if name == "script" else f"edgecnn {name}"
        result.append((label, f"{median['seconds']:.1f}", sooner, accuracies, f"{median['process_seconds']:.1f}"))
    return result


if __name__ == "__main__":
    main()
