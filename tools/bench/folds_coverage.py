"""Do the figures from folds hold for new photos? Their accuracy interval and their stranger limit, over many draws.

In each draw n photos are drawn. Logistic regression on frozen features is fitted five times, each time without one fold, and once on all n
photos, like `train --folds 5` does with networks. The folds' answers give the interval and set the limit. Both are judged on all other
photos with the last fit: how often the interval contains its accuracy, and how many known photos it refuses as strangers.

    python tools/bench/folds_coverage.py --data <trash-photos.zip> <signs.zip> <grocery.zip> --photos 150 300 500
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Results, Row, about, finish, parser

FOLDS, RATE, STRENGTH = 5, 0.05, 0.1

FAMILY, RUNG, SIDE = "efficientnet_lite0", "efficientnet_lite0_1200kb", 160

HEADINGS = (
    "photos of", "n", "others", "accuracy", "folds estimate", "interval contains it", "above, below", "strangers: no limit",
    "refused, median", "5 to 95 % of draws", "3 to 7 % in",
)  # fmt: skip


def main() -> None:
    """Draw, fit, print a table and write the figures."""
    made = parser(__doc__, "folds_coverage")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument("--photos", type=int, nargs="+", default=[150, 300, 500], help="default: 150 300 500")
    made.add_argument("--draws", type=int, default=500, help="default: %(default)s")
    arguments = made.parse_args()
    context = about("folds_coverage", draws=arguments.draws, rung=RUNG, side=SIDE, rate=RATE)
    results = Results(arguments.out, context)
    for archive in arguments.data:
        left = list(results.missing(data=[archive.name], n=arguments.photos))
        features, classes = features_of(archive) if left else (np.empty(0), np.empty(0))
        for case in left:
            if 2 * case["n"] <= len(classes):
                results.add(**case, **measure(features, classes, case["n"], arguments.draws))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


def features_of(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of all photos of an archive, float32 (photos, length), and their classes."""
    from edgecnn.data import open_dataset
    from edgecnn.recipe import build_recipe
    from edgecnn.train.candidates import Photos, frozen_features

    recipe = build_recipe({"data": {"source": str(archive.resolve())}})
    dataset = open_dataset(recipe.data)
    whole = dataset.redivided({item.hash: "train" for part in dataset.items.values() for item in part})
    photos = Photos(whole, ("train",), 3, 1, 10**6, None)
    reading = recipe.input_scale, recipe.input_zero_point
    with tempfile.TemporaryDirectory() as folder:
        found = frozen_features(FAMILY, (SIDE, SIDE), photos, reading, Path(folder))[RUNG]
    centred = found - found.mean(axis=0)
    return centred / centred.std(), photos.classes


def measure(features: np.ndarray, classes: np.ndarray, n: int, draws: int) -> Row:
    """Return the accuracies, the folds' estimates and the shares refused in all draws, as lists."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        drawn = [one_draw(features, classes, n, seed) for seed in range(draws)]
    return {
        "others": len(classes) - n,
        **{name: [item[name] for item in drawn] for name in ("accuracy", "by_folds", "refused")},
    }


def one_draw(features: np.ndarray, classes: np.ndarray, n: int, seed: int) -> Row:
    from edgecnn.calibrate.confidence import known_codes, limit_of, similar_to
    from edgecnn.data.folds import stratified
    from edgecnn.runtime.decision import Strangers

    order = np.random.default_rng([seed, n]).permutation(len(classes))
    mine, others = order[:n], order[n:]
    right, scores, similar = np.zeros(n, bool), np.zeros(n), np.zeros(n)
    for held in stratified(classes[mine], [str(index) for index in mine], FOLDS, seed):
        kept = np.setdiff1d(np.arange(n), held)
        answers = fitted(features[mine[kept]], classes[mine[kept]], features[mine[held]])
        right[held], scores[held] = answers[0] == classes[mine[held]], answers[1]
        similar[held] = similar_to(features[mine[held]], known_codes(features[mine[kept]]))
    answered, best = fitted(features[mine], classes[mine], features[others])
    known = known_codes(features[mine])
    limit = limit_of(scores, similar, RATE, known)
    refused = round(float(Strangers(limit, known).refused(best, features[others]).mean()), 4) if limit else None
    return {
        "accuracy": round(float(np.mean(answered == classes[others])), 4),
        "by_folds": round(float(right.mean()), 4),
        "refused": refused,
    }


def fitted(features: np.ndarray, classes: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a regression. Returns its answers to other features, and its largest scores."""
    from edgecnn.train.candidates import regression

    model = regression(STRENGTH, 100).fit(features, classes)
    scores = model.predict_proba(asked)
    return model.classes_[scores.argmax(axis=1)], scores.max(axis=1)


def row(result: Row) -> tuple[str, ...]:
    """Return the figures for a dataset and a number of photos as text."""
    from edgecnn.evaluate.statistics import folds_interval

    truth, said = (np.array(result[name]) for name in ("accuracy", "by_folds"))
    low, high = np.array([folds_interval(round(share * result["n"]), result["n"]) for share in said]).T
    refused = np.array([share for share in result["refused"] if share is not None])
    none = len(result["refused"]) - len(refused)
    return (
        result["data"], str(result["n"]), f"{result['others']:,}", f"{truth.mean():.1%}", f"{said.mean():.1%}",
        f"{np.mean((low <= truth) & (truth <= high)):.1%}", f"{np.mean(truth > high):.1%}, {np.mean(truth < low):.1%}",
        str(none), *strangers(refused),
    )  # fmt: skip


def strangers(refused: np.ndarray) -> Iterator[str]:
    if not len(refused):
        yield from ("-", "-", "-")
        return
    yield f"{np.median(refused):.1%}"
    yield f"{np.quantile(refused, 0.05):.1%} to {np.quantile(refused, 0.95):.1%}"
    yield f"{np.mean((refused >= 0.03) & (refused <= 0.07)):.1%}"


if __name__ == "__main__":
    main()
