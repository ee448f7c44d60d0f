"""Do the figures from folds hold for new photos? Their accuracy interval and their stranger limit, over many draws.

In each draw n photos are drawn. They choose a network and an input. Last layers are fitted, each without one fold, and one on all n photos,
as by `train --quick` but in float. The folds' answers give the interval and set the limit. Both are judged on all other photos with the
last layer: how often the interval contains its accuracy, and how many known photos it refuses as strangers. Few other photos do not tell
that accuracy exactly, so the next column allows for their chance too.

    python tools/bench/folds_coverage.py --data <trash-photos.zip> <signs.zip> <grocery.zip> --photos 150 300 500
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Results, Row, about, finish, parser
from simplest import all_photos

from edgecnn.data.decoding import class_weights
from edgecnn.run_info import Candidate
from edgecnn.train import candidates as rules

RATE = 0.05

HEADINGS = (
    "photos of", "n", "others", "accuracy", "folds estimate", "interval contains it", "or by chance", "above, below", "strangers: no limit",
    "refused, median", "5 to 95 % of draws", "3 to 7 % in",
)  # fmt: skip


def main() -> None:
    """Draw, fit, print a table and write the figures."""
    made = parser(__doc__, "folds_coverage")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument("--photos", type=int, nargs="+", default=[150, 300, 500], help="default: 150 300 500")
    made.add_argument("--features", type=Path, help="folder that keeps the features, such as a run's")
    made.add_argument("--draws", type=int, default=500, help="default: %(default)s")
    arguments = made.parse_args()
    context = about("folds_coverage", draws=arguments.draws, rate=RATE)
    results = Results(arguments.out, context)
    for archive in arguments.data:
        left = list(results.missing(data=[archive.name], n=arguments.photos))
        photos = photos_of(archive, arguments.features) if left else None
        for case in left:
            if photos and 2 * case["n"] <= len(photos.classes):
                results.add(**case, **measure(photos, case["n"], arguments.draws))
    finish(arguments.out, {**context, "results": results.rows}, HEADINGS, map(row, results.rows))


class Seen(NamedTuple):
    """All photos of an archive: their classes, int (n,), and groups, and each candidate with its features, float32 (n, length)."""

    classes: np.ndarray
    groups: Sequence[str]
    candidates: Sequence[Candidate]
    features: Sequence[np.ndarray]


def photos_of(archive: Path, kept: Path | None) -> Seen:
    from edgecnn.stages import Silent
    from edgecnn.stages.network_choice import Choosing

    recipe, whole, photos = all_photos(archive)
    reading = recipe.input_scale, recipe.input_zero_point
    found: list[tuple[Candidate, np.ndarray]] = []
    with tempfile.TemporaryDirectory() as folder:
        choosing = Choosing(recipe, whole, Silent(), Path(folder))
        for family in rules.SIDES:
            for size in rules.sides_of(family, recipe.network):
                values = rules.frozen_features(family, size, photos, reading, kept or Path(folder))
                found += [(one, values[one.network]) for one in choosing.costed(family, size)]
    return Seen(photos.classes, photos.groups, *zip(*found, strict=True))


def measure(seen: Seen, n: int, draws: int) -> Row:
    """Return the accuracies, the folds' estimates, the chosen networks and the shares refused in all draws, as lists."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        drawn = [one_draw(seen, n, seed) for seed in range(draws)]
    return {"others": len(seen.classes) - n, **{name: [item[name] for item in drawn] for name in drawn[0]}}


def one_draw(seen: Seen, n: int, seed: int) -> Row:
    from edgecnn.calibrate.confidence import known_codes, limit_of, similar_to
    from edgecnn.evaluate.statistics import softmax
    from edgecnn.runtime.decision import Strangers

    order = np.random.default_rng([seed, n]).permutation(len(seen.classes))
    mine, others = order[:n], order[n:]
    classes, count = seen.classes[mine], int(seen.classes.max()) + 1
    weights = class_weights(classes)
    folds = rules.folds_of(classes, [seen.groups[index] for index in mine], seed)
    images = [rules.Images(values[mine], classes, weights, count) for values in seen.features]
    answers = [rules.held_out(one, folds)[:2] for one in images]
    chosen = rules.cheapest_close(
        rules.ranked_candidates(seen.candidates, [logits for logits, _ in answers], classes, weights)
    )
    place = [(one.network, one.height) for one in seen.candidates].index((chosen.network, chosen.height))
    (held, strength), features = answers[place], seen.features[place]
    similar = np.zeros(n)
    for kept, asked in rules.parts(folds):
        similar[asked] = similar_to(features[mine[asked]], known_codes(features[mine[kept]]))
    answered = rules.fit(images[place], strength).logits(features[others])
    known = known_codes(features[mine])
    limit = limit_of(softmax(held).max(axis=1), similar, RATE, known)
    best = softmax(answered).max(axis=1)
    refused = round(float(Strangers(limit, known).refused(best, features[others]).mean()), 4) if limit else None
    return {
        "accuracy": round(float(np.mean(answered.argmax(axis=1) == seen.classes[others])), 4),
        "by_folds": round(float(np.mean(held.argmax(axis=1) == classes)), 4),
        "network": f"{chosen.network} at {chosen.width}",
        "refused": refused,
    }


def row(result: Row) -> tuple[str, ...]:
    """Return the figures for a dataset and a number of photos as text."""
    from edgecnn.evaluate.statistics import folds_interval, mean_interval, wilson

    truth, said = (np.array(result[name]) for name in ("accuracy", "by_folds"))
    folds = [folds_interval(round(share * result["n"]), result["n"]) for share in said]
    low, high = np.array(folds).T
    wrong = [wilson(round((1 - share) * result["others"]), result["others"]) for share in truth]
    # they differ by chance if the interval of the mean of one's right and the other's wrong answers contains a half
    pairs = zip(zip(said, 1 - truth, strict=True), zip(folds, wrong, strict=True), strict=True)
    means = [mean_interval(shares, ends) for shares, ends in pairs]
    refused = np.array([share for share in result["refused"] if share is not None])
    none = len(result["refused"]) - len(refused)
    return (
        result["data"], str(result["n"]), f"{result['others']:,}", f"{truth.mean():.1%}", f"{said.mean():.1%}",
        f"{np.mean((low <= truth) & (truth <= high)):.1%}", f"{np.mean([one.low <= 0.5 <= one.high for one in means]):.1%}",
        f"{np.mean(truth > high):.1%}, {np.mean(truth < low):.1%}",
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
