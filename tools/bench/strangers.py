"""Can a classifier say "not one of these"? Each class of a set of photos is left out once and shown afterwards, as a stranger.

For each class left out, a network is trained by edgecnn's defaults on four fifths of the others' photos and quantized after training; the
last fifth are the known photos, and all of the left-out class are the strangers. With --per-class K, K photos of each other class are drawn
for training and validation, and all others are the known photos. Three scores tell them apart, all of the int8 TFLite file:

- softmax: the largest score.
- neighbours: the mean cosine similarity to the most similar training photos, in the features that the last layer reads.
- both: the familiarity by which the decision "stranger" is made.

AUROC is the share of pairs of a known photo and a stranger in which the known one scores higher. The limit of both is the decision's own;
the others' are the same quantile of the validation photos' scores. About a hundred photos set a limit, so that chance decides much of what
it refuses. Therefore the photos that no network was trained on, validation and known together, are divided at random again, into as many
that set the decision's limit and as many that are judged by it, and the means over all divisions are stated as well. What the decision
costs is timed, interleaved with the same file without it. Far strangers are scikit-learn's digits, enlarged, and noise; with
$EDGECNN_DATA, images of CIFAR-10.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/strangers.py --data <trash-photos.zip>
    … --network auto --per-class 50 --out tools/bench/results/strangers_few.json

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

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.data import Dataset, open_dataset
from edgecnn.export import export, export_path
from edgecnn.files import canonical_json, write_atomic
from edgecnn.images import load
from edgecnn.pixels import resize
from edgecnn.recipe import build_recipe, merge, parse_overrides
from edgecnn.report.table import text_table
from edgecnn.runs import Run, create_run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.stranger import Strangers, similarity, unit_rows
from edgecnn.runtime.timing import measure_interleaved
from edgecnn.train import train
from edgecnn.train.settle import settle
from edgecnn.verify.answers import input_contract
from edgecnn.verify.confidence import choose_confidence
from edgecnn.verify.strangers import NEIGHBOURS, ChosenStrangers, choose_strangers, fit_limit, known_features

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "strangers.json"
SCORES = ("softmax", "neighbours", "both")
DIVISIONS = 200
"""Random divisions of the photos that no network was trained on."""

REPEATS = 500
"""Timed decisions, of each kind."""

FAR = 300
"""Images of each kind of far strangers."""


def main() -> None:
    """Train, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a zip of photos, one folder for each class")
    parser.add_argument("--network", default="efficientnet_lite0_1200kb", help="default: %(default)s")
    parser.add_argument("--per-class", type=int, default=0, help="photos a class, in place of four fifths")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE of the recipe")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    out, archive = arguments.out.resolve(), arguments.data.resolve()
    context = about(
        "strangers",
        data=archive.name,
        network=arguments.network,
        per_class=arguments.per_class,
        seed=arguments.seed,
        neighbours=NEIGHBOURS,
        settings=arguments.settings,
    )
    results = measured(out, context)
    members = listed(archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for label in sorted({label for _, label in members} - {result["left_out"] for result in results}):
            result = measure(archive, members, label, arguments, Path(folder))
            results.append({"left_out": label} | result)
            print(*row_or_why(results[-1]), sep="  ", file=sys.stderr, flush=True)
            write_atomic(out, canonical_json({**context, "results": results}))
    print(f"{context['machine']}; {archive.name}, {arguments.network}")
    fitted = [result for result in results if "scores" in result]
    if fitted:
        print(text_table(HEADINGS, [*map(row, fitted), mean_row(fitted)]))
    for result in results:
        if "scores" not in result:
            print(*row_or_why(result))
    print(out)


def measure(
    archive: Path, members: Sequence[tuple[str, str]], label: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train without one class and score its photos, the known test photos and far strangers; say why where no limit was set."""
    known = [(name, of) for name, of in members if of != label]
    data = folder / f"without-{label}.zip"
    write_split(archive, data, known, tested(known, arguments.per_class, 0, arguments.seed))
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
    temperature, chosen = choose(run, dataset)
    if chosen.limit is None:
        return {"not_fitted": chosen.not_fitted}
    height, width, channels = recipe.network.height, recipe.network.width, recipe.network.channels
    load_splits = partial(dataset.load, height=height, width=width, channels=channels)
    splits = load_splits(("train", "validation"), stage="train") | load_splits(("test",), stage="verify")
    with zipfile.ZipFile(archive) as file:
        near = [load(file.read(name), height, width, channels, recipe.data.fit) for name, of in members if of == label]
    answer = Scorer(run, chosen.limit, temperature)
    validation, test = (answer.scores(splits[split].images) for split in ("validation", "test"))
    kinds = {"near": np.stack(near)} | far_strangers(height, width)
    found = {kind: answer.scores(images) for kind, images in kinds.items()}

    rate = recipe.stranger.rate
    untrained = np.concatenate([splits[split].images for split in ("validation", "test")])
    divided = answer.divided(untrained, len(splits["validation"].classes), kinds["near"], rate)

    def judged_by(name: str) -> dict[str, Any]:
        ranks = {kind: scores[name] for kind, scores in found.items()}
        limit = answer.limit if name == "both" else np.quantile(validation[name], rate, method="weibull")
        return judged(test[name], ranks, limit)

    return {
        "known": len(splits["test"].classes),
        "strangers": {kind: len(images) for kind, images in kinds.items()},
        "accuracy": float(np.mean(answer.classes(splits["test"].images) == splits["test"].classes)),
        "rate": rate,
        "divided": divided,
        "ms": answer.milliseconds(splits["test"].images[:1]),
        "scores": {name: judged_by(name) for name in SCORES},
    }


def choose(run: Run, dataset: Dataset) -> tuple[float, ChosenStrangers]:
    """Export a run's int8 file and choose its temperature and how it recognises strangers, as verification does."""
    export(run, "tflite", "int8", dataset=dataset)
    temperature = choose_confidence(run, dataset, "tflite", "int8", None, quiet).temperature
    chosen = choose_strangers(run, dataset, "tflite", "int8", temperature, quiet)
    assert chosen is not None
    return temperature, chosen


class Scorer:
    """A run's int8 file, and what recognises its strangers; `limit` is the familiarity below which an image is one."""

    def __init__(self, run: Run, limit: StrangerLimit, temperature: float) -> None:
        """Open the file."""
        self._temperature = temperature
        self.limit, self._codes = limit.limit, known_features(run)
        self._known, self._strangers = unit_rows(self._codes), Strangers(limit, self._codes)
        engine = open_engine(None, export_path(run, "tflite", "int8").read_bytes(), "tflite")
        self._model = Model(engine, input_contract(run))

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Return the class of each image."""
        return np.argmax(self._model.logits(images), axis=1)

    def scores(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return each score of SCORES, larger where an image is more like the known."""
        best, features = self._best_and_features(images)
        return {
            "softmax": best,
            "neighbours": similarity(features, self._known, NEIGHBOURS),
            "both": self._strangers.familiarity(best, features),
        }

    def divided(self, known: np.ndarray, setting: int, near: np.ndarray, rate: float) -> dict[str, float]:
        """Return the mean shares of known photos and near strangers refused by limits that so many known ones set, drawn at random."""
        random = np.random.default_rng(0)
        known_scores, known_features = self._best_and_features(known)
        near_scores, near_features = self._best_and_features(near)
        shares = []
        for _ in range(DIVISIONS):
            order = random.permutation(len(known))
            sets, judged_by_it = order[:setting], order[setting:]
            limit = fit_limit(known_scores[sets], known_features[sets], self._codes, rate)
            assert limit is not None
            strangers = Strangers(limit, self._codes)
            of_known = strangers.refused(known_scores[judged_by_it], known_features[judged_by_it])
            shares.append((of_known.mean(), strangers.refused(near_scores, near_features).mean()))
        false_refusals, refused = np.mean(shares, axis=0).tolist()
        return {"divisions": DIVISIONS, "false_refusals": false_refusals, "refused": refused}

    def _best_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = self._model.logits_and_features(images)
        return softmax(logits / np.float32(self._temperature)).max(axis=1), features

    def milliseconds(self, image: np.ndarray) -> dict[str, float]:
        """Return the median milliseconds from one image's pixels to a decision, without and with strangers, interleaved."""

        def without() -> None:
            softmax(self._model.logits(image)[0] / np.float32(self._temperature)).argmax()

        def with_strangers() -> None:
            logits, features = self._model.logits_and_features(image)
            scores = softmax(logits / np.float32(self._temperature))
            self._strangers.refused(scores.max(axis=1), features)

        timings = measure_interleaved({"without": without, "with": with_strangers}, warmup=20, repeats=REPEATS)
        return {name: timing.p50_ms for name, timing in timings.items()}


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def judged(test: np.ndarray, strangers: Mapping[str, np.ndarray], limit: float) -> dict[str, Any]:
    """Return AUROC and the share refused of each kind of strangers, and of the known, below a limit."""
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
            "both, divided: strangers refused", "known refused", "AUROC both: digits, noise, CIFAR-10",
            "refused both: digits, noise, CIFAR-10", "ms without, with")  # fmt: skip


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures of one class left out, as text."""
    scores = [result["scores"][name] for name in SCORES]
    far = [kinds for kind, kinds in scores[2]["kinds"].items() if kind != "near"]
    return (
        result["left_out"],
        str(result["strangers"]["near"]),
        str(result["known"]),
        f"{result['accuracy']:.2%}",
        *(f"{score['kinds']['near']['auroc']:.3f}" for score in scores),
        *(f"{score['kinds']['near']['refused']:.1%}" for score in scores),
        *(f"{score['false_refusals']:.1%}" for score in scores),
        *(f"{result['divided'][share]:.1%}" for share in ("refused", "false_refusals")),
        ", ".join(f"{kind['auroc']:.3f}" for kind in far),
        ", ".join(f"{kind['refused']:.1%}" for kind in far),
        "{without:.3f}, {with:.3f}".format(**result["ms"]),
    )


def row_or_why(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures of one class left out, as text, or why there are none."""
    return row(result) if "scores" in result else (result["left_out"], f"no limit: {result['not_fitted']}")


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
        f"{mean(lambda result: result['divided']['refused']):.1%}",
        f"{mean(lambda result: result['divided']['false_refusals']):.1%}",
        "",
        "",
        "",
    )


if __name__ == "__main__":
    main()
