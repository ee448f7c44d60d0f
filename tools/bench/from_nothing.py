"""A few photos from random weights: `edgecnn train --network …` by its defaults and a short Keras script with the same network.

The script is what a tutorial shows: image_dataset_from_directory, pixels scaled to -1 to 1, flips and small turns, Adam at its default
rate, batches of 32, a fifth of the training photos for validation, and early stopping that restores the best weights. It gets the same
network with the same parameters, the same input size, and the same stratified fold as test split, once. Accuracy is the float model's for
the script; for edgecnn the float model's and the int8 file's.

    python tools/bench/from_nothing.py --data <trash-photos.zip> --networks resnet_100kb --folds 0 1

A bench that was interrupted goes on where it ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from photos_by_fold import listed, measure, tested, write_split
from resume import about, measured

from edgecnn.files import canonical_json, write_atomic
from edgecnn.report.table import text_table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "from_nothing.json"
SIDE = 96
"""Pixels of the input's sides."""

SCRIPT = """
import json, sys
from tf_keras import Sequential, callbacks, layers, losses, utils
from edgecnn.networks import build_network

folder, network, side, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
utils.set_random_seed(seed)
load = lambda part, **options: utils.image_dataset_from_directory(
    f"{folder}/{part}", image_size=(side, side), batch_size=32, seed=seed, **options)
training, validation = load("train", validation_split=0.2, subset="both")
test = load("test", shuffle=False)
model = Sequential([
    layers.RandomFlip("horizontal"), layers.RandomRotation(0.05), layers.Rescaling(1 / 127.5, offset=-1),
    build_network(network, side, side, 3, len(training.class_names)),
])
model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
stop = callbacks.EarlyStopping("val_accuracy", patience=15, restore_best_weights=True)
history = model.fit(training.cache(), validation_data=validation.cache(), epochs=100, callbacks=[stop], verbose=0)
print(json.dumps({"epochs": len(history.epoch), "accuracy": model.evaluate(test, verbose=0)[1]}))
"""


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a zip of photos, one folder for each class")
    parser.add_argument("--networks", nargs="+", default=["resnet_100kb"], help="default: %(default)s")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--seed", type=int, default=1, help="of the folds and of the weights (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    out, archive = arguments.out.resolve(), arguments.data.resolve()
    context = about("from_nothing", data=archive.name, side=SIDE, seed=arguments.seed)
    results = measured(out, context)
    done = {(result["network"], result["fold"]) for result in results}
    members = listed(archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for network in arguments.networks:
            for fold in arguments.folds:
                if (network, fold) in done:
                    continue
                data = Path(folder) / f"photos-{fold}.zip"
                write_split(archive, data, members, tested(members, 0, fold, arguments.seed))
                found = {"network": network, "fold": fold, "script": by_script(data, network, arguments.seed)}
                found["edgecnn"] = measure(
                    data, network, arguments.seed, [f"network.height={SIDE}", f"network.width={SIDE}"]
                )
                results.append(found)
                print(*row([found]), sep="  ", file=sys.stderr, flush=True)
                write_atomic(out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {archive.name} at {SIDE}x{SIDE}")
    by_network = [[item for item in results if item["network"] == name] for name in networks_of(results)]
    print(text_table(HEADINGS, [row(items) for items in by_network]))
    print(out)


def by_script(data: Path, network: str, seed: int) -> dict[str, Any]:
    """Unpack the photos and run the script in a process of its own; accuracy in [0, 1] on the test split, epochs and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(data) as file:
            file.extractall(folder)
        command = [sys.executable, "-c", SCRIPT, folder, network, str(SIDE), str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = time.monotonic()
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=folder
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found | {"seconds": round(time.monotonic() - started, 1)}


HEADINGS = ("network", "folds", "tested", "script", "edgecnn, float", "edgecnn, int8", "min, script", "min, edgecnn")


def networks_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the networks that were measured, each once."""
    return list(dict.fromkeys(item["network"] for item in results))


def row(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the figures of one network over its folds, all test photos together, as text."""
    ours = [item["edgecnn"] for item in results]
    count = sum(item["n"] for item in ours)
    script = sum(item["script"]["accuracy"] * item["edgecnn"]["n"] for item in results) / count
    float_, int8 = (sum(item[key] for item in ours) / count for key in ("float_right", "int8_right"))
    minutes = (sum(item[way]["seconds"] for item in results) / len(results) / 60 for way in ("script", "edgecnn"))
    return (results[0]["network"], str(len(results)), f"{count:,}", f"{script:.2%}", f"{float_:.2%}", f"{int8:.2%}",
            *(f"{value:.1f}" for value in minutes))  # fmt: skip


if __name__ == "__main__":
    main()
