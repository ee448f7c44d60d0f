"""Can a classifier say "not one of these"? Each class of a set of photos is left out once and shown afterwards, as a stranger.

For each class left out, a network is trained by edgecnn's defaults on four fifths of the others' photos; the last fifth are the known
photos, and all of the left-out class are the strangers. Three scores tell them apart, all of the float model:

- softmax: the largest score.
- neighbours: the mean cosine similarity to the NEIGHBOURS most similar training photos, in the features that the head reads.
- both: the sum of the two, each as a rank among the validation photos.

AUROC is the share of pairs of a known photo and a stranger in which the known one scores higher. The limit is the one at which RATE of
the validation photos are refused. Far strangers are scikit-learn's digits, enlarged, and noise; with $EDGECNN_DATA, images of CIFAR-10.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/strangers.py --data <trash-photos.zip>

A bench that was interrupted goes on where it ended.
"""

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from photos_by_fold import listed, tested, write_split
from resume import about, measured

from edgecnn.data import open_dataset
from edgecnn.files import canonical_json, write_atomic
from edgecnn.images import load
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.pixels import resize
from edgecnn.recipe import build_recipe, merge, parse_overrides
from edgecnn.report.table import text_table
from edgecnn.runs import FLOAT_MODEL, create_run
from edgecnn.train import train
from edgecnn.train.settle import settle

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "strangers.json"
SCORES = ("softmax", "neighbours", "both")
NEIGHBOURS = 5
RATE = 0.05
FAR = 300
"""Images of each kind of far strangers."""


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a zip of photos, one folder for each class")
    parser.add_argument("--network", default="efficientnet_lite0_1200kb", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE of the recipe")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    out, archive = arguments.out.resolve(), arguments.data.resolve()
    context = about(
        "strangers",
        data=archive.name,
        network=arguments.network,
        seed=arguments.seed,
        neighbours=NEIGHBOURS,
        rate=RATE,
        settings=arguments.settings,
    )
    results = measured(out, context)
    members = listed(archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for label in sorted({label for _, label in members} - {result["left_out"] for result in results}):
            result = measure(archive, members, label, arguments, Path(folder))
            results.append({"left_out": label} | result)
            print(*row(results[-1]), sep="  ", file=sys.stderr, flush=True)
            write_atomic(out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {archive.name}, {arguments.network}")
    print(text_table(HEADINGS, [*map(row, results), mean_row(results)]))
    print(out)


def measure(
    archive: Path, members: Sequence[tuple[str, str]], label: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train without one class and score its photos, the known test photos and far strangers."""
    known = [(name, of) for name, of in members if of != label]
    data = folder / f"without-{label}.zip"
    write_split(archive, data, known, tested(known, 0, 0, arguments.seed))
    tables = {
        "data": {"source": str(data)},
        "network": {"name": arguments.network},
        "qat": {"epochs": 0, "method": "ptq"},
        "seed": arguments.seed,
    }
    recipe = build_recipe(merge(tables, parse_overrides(arguments.settings)))
    dataset = open_dataset(recipe.data)
    recipe = settle(recipe, dataset)
    run = create_run(recipe, folder / f"run-{label}")
    train(recipe, dataset, run, lambda progress: None)
    height, width, channels = recipe.network.height, recipe.network.width, recipe.network.channels
    load_splits = partial(dataset.load, height=height, width=width, channels=channels)
    splits = load_splits(("train", "validation"), stage="train") | load_splits(("test",), stage="verify")
    with zipfile.ZipFile(archive) as file:
        near = [load(file.read(name), height, width, channels, recipe.data.fit) for name, of in members if of == label]
    answer = Scorer(run.read(FLOAT_MODEL, "train"), recipe, splits["train"].images)
    validation, test = (answer.scores(splits[split].images) for split in ("validation", "test"))
    kinds = {"near": np.stack(near)} | far_strangers(height, width)
    found = {kind: answer.scores(images) for kind, images in kinds.items()}

    def judged_by(name: str) -> dict[str, Any]:
        ranks = {kind: ranked(scores, validation)[name] for kind, scores in found.items()}
        return judged(ranked(validation, validation)[name], ranked(test, validation)[name], ranks)

    return {
        "known": len(splits["test"].classes),
        "strangers": {kind: len(images) for kind, images in kinds.items()},
        "accuracy": float(np.mean(answer.classes(splits["test"].images) == splits["test"].classes)),
        "scores": {name: judged_by(name) for name in SCORES},
    }


class Scorer:
    """A trained network's answers and its features, compared with those of its training photos."""

    def __init__(self, model: bytes, recipe: Any, images: np.ndarray) -> None:
        """Compute the training photos' features."""
        network = model_from_bytes(model)
        both = keras.Model(network.inputs, keras.layers.Concatenate()([network.layers[-1].input, network.output]))
        self._classes = network.output_shape[-1]
        self._predict = predictor(both, recipe.input_scale, recipe.input_zero_point, 50)
        self._known = self._answers(images)[0]

    def _answers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._predict(images)
        features, logits = found[:, : -self._classes], found[:, -self._classes :]
        return features / np.linalg.norm(features, axis=1, keepdims=True), logits

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Return the class of each image."""
        return np.argmax(self._answers(images)[1], axis=1)

    def scores(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return softmax and neighbours of each image, larger where it is more like the known."""
        features, logits = self._answers(images)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        similar = np.sort(features @ self._known.T, axis=1)[:, -NEIGHBOURS:]
        return {"softmax": 1 / odds.sum(axis=1), "neighbours": similar.mean(axis=1)}


def ranked(scores: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores and their sum as ranks among the validation photos; below all of them, the distance goes on to count."""

    def rank(name: str) -> np.ndarray:
        order = np.sort(validation[name])
        places = np.interp(scores[name], order, np.linspace(0, 1, len(order)))
        return places - np.maximum(order[0] - scores[name], 0)

    return {**scores, "both": rank("softmax") + rank("neighbours")}


def judged(validation: np.ndarray, test: np.ndarray, strangers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return AUROC and the share refused of each kind of strangers, and of the known, at the limit from validation."""
    limit = np.quantile(validation, RATE)
    return {
        "false_refusals": float(np.mean(test < limit)),
        "kinds": {
            kind: {"auroc": auroc(test, scores), "refused": float(np.mean(scores < limit))}
            for kind, scores in strangers.items()
        },
    }


def auroc(known: np.ndarray, strangers: np.ndarray) -> float:
    """Return the share of pairs in which the known scores higher; a tie counts half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([True] * len(known) + [False] * len(strangers), np.concatenate([known, strangers])))


def far_strangers(height: int, width: int) -> dict[str, np.ndarray]:
    """Return images that nobody would take for the photos, uint8 (FAR, height, width, 3) of each kind."""
    from sklearn.datasets import load_digits

    random = np.random.default_rng(0)
    digits = (load_digits().images[:FAR, :, :, np.newaxis] * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
    kinds = {
        "digits": np.stack([resize(digit, height, width) for digit in digits]),
        "noise": random.integers(0, 256, (FAR, height, width, 3), dtype=np.uint8),
    }
    path = Path(os.environ.get("EDGECNN_DATA", ".")) / "cifar10-jpeg.zip"
    if path.exists():
        with zipfile.ZipFile(path) as file:
            names = sorted(name for name in file.namelist() if "/test/" in name and name.endswith(".jpg"))
            chosen = random.choice(names, FAR, replace=False)
            kinds["cifar10"] = np.stack([load(file.read(str(name)), height, width, 3) for name in chosen])
    return kinds


HEADINGS = ("left out", "strangers", "known", "accuracy", *(f"AUROC {name}" for name in SCORES),
            *(f"refused {name}" for name in SCORES), *(f"known refused {name}" for name in SCORES),
            "AUROC both: digits, noise, CIFAR-10")  # fmt: skip


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures of one class left out, as text."""
    scores = [result["scores"][name] for name in SCORES]
    far = [kinds["auroc"] for kind, kinds in scores[2]["kinds"].items() if kind != "near"]
    return (
        result["left_out"],
        str(result["strangers"]["near"]),
        str(result["known"]),
        f"{result['accuracy']:.2%}",
        *(f"{score['kinds']['near']['auroc']:.3f}" for score in scores),
        *(f"{score['kinds']['near']['refused']:.1%}" for score in scores),
        *(f"{score['false_refusals']:.1%}" for score in scores),
        ", ".join(f"{value:.3f}" for value in far),
    )


def mean_row(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the means over the classes left out, as text."""

    def mean(pick: Any) -> float:
        return float(np.mean([pick(result) for result in results]))

    scores = [[result["scores"][name] for result in results] for name in SCORES]
    return (
        "mean",
        "",
        "",
        f"{mean(lambda result: result['accuracy']):.2%}",
        *(f"{np.mean([score['kinds']['near']['auroc'] for score in group]):.3f}" for group in scores),
        *(f"{np.mean([score['kinds']['near']['refused'] for score in group]):.1%}" for group in scores),
        *(f"{np.mean([score['false_refusals'] for score in group]):.1%}" for group in scores),
        "",
    )


if __name__ == "__main__":
    main()
