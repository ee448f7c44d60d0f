"""Can a classifier say "not one of these"? Each class of a photo set is left out once and then shown as a stranger.

For each class left out, edgecnn's defaults train a network on four fifths of the other photos and quantize it after training. The last
fifth are the known photos, and all of the left-out class are the strangers. With --per-class K, K photos of each other class are drawn for
training and validation, and all others are the known photos. Figures are for the int8 TFLite file and the decision `stranger` at its own
limit: AUROC, and the shares refused. About a hundred photos set a limit, so chance matters a lot. Therefore the photos that no network was
trained on are also divided at random many times, and the means over all divisions are reported. Far strangers are enlarged digits and
noise.

    python tools/bench/strangers.py --data <trash-photos.zip>
    … --network auto --per-class 50 --out tools/bench/results/strangers_few.json
"""

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from harness import Results, Row, about, finish, parser
from photos_by_fold import Photo, divided, listed, write_split

from edgecnn.pixels import resize

DIVISIONS = 200
"""Random divisions of the photos that no network was trained on."""

FAR = 300
"""Images per kind of far stranger."""

HEADINGS = (
    "left out", "strangers", "known", "accuracy", "AUROC", "strangers refused", "known refused",
    "divided: strangers refused", "known refused", "far: digits, noise refused",
)  # fmt: skip


def main() -> None:
    """Train, print a table and write the figures."""
    made = parser(__doc__, "strangers")
    made.add_argument("--data", type=Path, required=True, help="a zip of photos, with one folder per class")
    made.add_argument("--network", default="efficientnet_lite0_1200kb", help="default: %(default)s")
    made.add_argument("--per-class", type=int, default=0, help="photos per class, instead of four fifths")
    made.add_argument("--seed", type=int, default=1, help="default: 1")
    made.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE of the recipe")
    arguments = made.parse_args()
    archive, out = arguments.data.resolve(), arguments.out.resolve()
    settings = {name: getattr(arguments, name) for name in ("network", "per_class", "seed", "settings")}
    context = about("strangers", data=archive.name, **settings)
    results = Results(out, context)
    photos = listed(archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for case in results.missing(left_out=sorted({photo.label for photo in photos})):
            results.add(**case, **measure(archive, photos, case["left_out"], arguments, Path(folder)))
    rows = [row(result) for result in results.rows]
    if fitted := [result for result in results.rows if "divided" in result]:
        rows.append(mean_row(fitted))
    finish(out, {**context, "results": results.rows}, HEADINGS, rows)


def measure(archive: Path, photos: Sequence[Photo], label: str, arguments: argparse.Namespace, folder: Path) -> Row:
    """Train without one class and score its photos, the known test photos and far strangers, or report why no limit was set."""
    from edgecnn.calibrate.strangers import fit_limit
    from edgecnn.data import open_dataset
    from edgecnn.evaluate.answers import input_contract
    from edgecnn.export import export, export_path
    from edgecnn.images import load
    from edgecnn.recipe import build_recipe, merge, parse_overrides
    from edgecnn.runs import create_run
    from edgecnn.runtime.decision import softmax
    from edgecnn.runtime.engines import open_engine
    from edgecnn.runtime.model import Model
    from edgecnn.runtime.stranger import Strangers
    from edgecnn.stages.choose import Choosing
    from edgecnn.train import train
    from edgecnn.train.settle import settle
    from edgecnn.verify.strangers import known_features

    known = [photo for photo in photos if photo.label != label]
    splits = divided(known, arguments.per_class, 0, arguments.seed)
    data = write_split(archive, folder / f"without-{label}.zip", known, splits)
    tables = {
        "data": {"source": str(data)},
        "network": {"name": None if arguments.network == "auto" else arguments.network},
        "seed": arguments.seed,
    }
    tables["qat"] = {"epochs": 0, "method": "ptq"}
    recipe = build_recipe(merge(tables, parse_overrides(arguments.settings)))
    dataset = open_dataset(recipe.data)
    recipe = settle(recipe, dataset)
    run = create_run(recipe, folder / f"run-{label}")
    train(recipe, dataset, run, lambda progress: None)
    export(run, "tflite", "int8", dataset=dataset)
    choosing = Choosing(run, dataset, ("tflite", "int8"), quiet)
    chosen = choosing.strangers(choosing.confidence(None).temperature)
    if chosen is None:
        sys.exit(
            f"{recipe.network.name} outputs no features, which are needed to detect strangers. Choose a network from ImageNet."
        )
    if chosen.limit is None:
        return {"not_fitted": chosen.not_fitted}
    height, width, channels = recipe.network.height, recipe.network.width, recipe.network.channels
    load_split = partial(dataset.load, height=height, width=width, channels=channels)
    validation, test = (
        load_split(("validation",), stage="train")["validation"],
        load_split(("test",), stage="verify")["test"],
    )
    with zipfile.ZipFile(archive) as file:
        near = [
            load(file.read(name), height, width, channels, recipe.data.fit) for name, of, _ in photos if of == label
        ]
    codes = known_features(run)
    model = Model(open_engine(None, export_path(run, "tflite", "int8").read_bytes(), "tflite"), input_contract(run))

    def best_and_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = model.logits_and_features(images)
        return softmax(logits / np.float32(chosen.temperature)).max(axis=1), features

    decision = Strangers(chosen.limit, codes)
    tested, strange = best_and_features(test.images), best_and_features(np.stack(near))
    untrained = best_and_features(np.concatenate([validation.images, test.images]))
    fit = partial(fit_limit, codes=codes, rate=recipe.stranger.rate)
    random, shares = np.random.default_rng(0), []
    for _ in range(DIVISIONS):
        order = random.permutation(len(untrained[0]))
        sets, judged = order[: len(validation.classes)], order[len(validation.classes) :]
        limit = fit(untrained[0][sets], untrained[1][sets])
        assert limit is not None
        again = Strangers(limit, codes)
        shares.append((again.refused(*(part[judged] for part in untrained)).mean(), again.refused(*strange).mean()))
    false_refusals, refused = np.mean(shares, axis=0).tolist()
    far = far_strangers(height, width)
    return {
        "known": len(test.classes),
        "strangers": len(near),
        "accuracy": float(np.mean(np.argmax(model.logits(test.images), axis=1) == test.classes)),
        "auroc": auroc(decision.familiarity(*tested), decision.familiarity(*strange)),
        "refused": float(decision.refused(*strange).mean()),
        "false_refusals": float(decision.refused(*tested).mean()),
        "divided": {"divisions": DIVISIONS, "refused": refused, "false_refusals": false_refusals},
        "far": {kind: float(decision.refused(*best_and_features(images)).mean()) for kind, images in far.items()},
    }


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def auroc(known: np.ndarray, strangers: np.ndarray) -> float:
    """Return the share of pairs in which the known image scores higher. A tie counts half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([True] * len(known) + [False] * len(strangers), np.concatenate([known, strangers])))


def far_strangers(height: int, width: int) -> dict[str, np.ndarray]:
    """Return images that nobody would mistake for the photos, uint8 (FAR, height, width, 3) of each kind."""
    from sklearn.datasets import load_digits

    digits = (load_digits().images[:FAR, :, :, np.newaxis] * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
    noise = np.random.default_rng(0).integers(0, 256, (FAR, height, width, 3), dtype=np.uint8)
    return {"digits": np.stack([resize(digit, height, width) for digit in digits]), "noise": noise}


def row(result: Row) -> tuple[str, ...]:
    """Return the figures for one left-out class as text, or why there are none."""
    if "divided" not in result:
        return (result["left_out"], f"no limit: {result['not_fitted']}", *[""] * (len(HEADINGS) - 2))
    shares = (
        result["refused"],
        result["false_refusals"],
        *(result["divided"][key] for key in ("refused", "false_refusals")),
    )
    far = ", ".join(f"{share:.0%}" for share in result["far"].values())
    counts = (str(result["strangers"]), str(result["known"]), f"{result['accuracy']:.2%}", f"{result['auroc']:.3f}")
    return (result["left_out"], *counts, *(f"{share:.1%}" for share in shares), far)


def mean_row(results: Sequence[Row]) -> tuple[str, ...]:
    """Return the means over all left-out classes, as text."""

    def mean(key: str, within: str | None = None) -> float:
        return float(np.mean([result[within][key] if within else result[key] for result in results]))

    shares = (mean("refused"), mean("false_refusals"), mean("refused", "divided"), mean("false_refusals", "divided"))
    figures = (f"{mean('accuracy'):.2%}", f"{mean('auroc'):.3f}", *(f"{share:.1%}" for share in shares))
    return ("mean", "", "", *figures, ", ".join(f"{mean(kind, 'far'):.0%}" for kind in results[0]["far"]))


if __name__ == "__main__":
    main()
