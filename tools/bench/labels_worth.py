"""Are labels for unsure frames worth more than labels for random ones? Logistic regression on frozen features, before and after labelling.

Each draw divides a set of photos: a quarter of each class is for testing, a few photos of each class train the first model, and the rest is
what the camera sees. Of the rest, 50, 100 or 200 are chosen to be labelled and added to the training photos:

    random    any
    unsure    those with the smallest lead of the best class over the second
    lead<0.5  any of those with a lead below 0.5, like --keep, then the next smallest
    strange   those least similar to the known photos (mean cosine similarity of features, like edgecnn.runtime.stranger)
    mixed     half unsure, half random

--foreign 0.3 mixes photos of the other sets into what the camera sees, as that share of the total. They show none of the classes, so
labelling one teaches nothing. Gains are in points of accuracy on the test photos. "over random" is the paired difference, with its 95 %
interval. --train N instead trains the network itself with edgecnn's defaults on the initial photos and 100 labels, in N draws, which
takes minutes per training.

    python tools/bench/labels_worth.py --data <trash-photos.zip> <grocery.zip> <masks.zip> <signs.zip> --foreign 0 0.3
    … --data <trash-photos.zip> --train 3 --out labels_worth_trained.json
"""

import itertools
import math
import os
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Results, Row, about, finish, parser
from photos_by_fold import listed, measure, write_split

from edgecnn.images import load

FAMILY, RUNG, SIDE = "efficientnet_lite0", "efficientnet_lite0_1200kb", 160

START = {"trash-photos": 20, "masks": 10, "signs": 10, "grocery": 5}
"""Photos per class for the first model: 20 if that leaves 200 to choose from, else fewer."""

LABELS = (50, 100, 200)

TRAINED = ("random", "unsure", "strange", "mixed")

MARGIN = 0.5

NEIGHBOURS = 5

STUDENT = {3: 4.303, 30: 2.045}
"""The 97.5th percentile of Student's t, for means over 3 and 30 draws."""

HEADINGS = ("set", "foreign", "labels", "choice", "before", "gain", "over random", "of use")


class Seen(NamedTuple):
    """The first model's view of what the camera sees: float (n,) each."""

    lead: np.ndarray
    familiar: np.ndarray


Choice = Callable[[Seen, int, np.random.Generator], np.ndarray]


def random(seen: Seen, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose at random."""
    return generator.permutation(len(seen.lead))[:count]


def unsure(seen: Seen, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose those with the smallest lead."""
    return np.argsort(seen.lead)[:count]


def below(seen: Seen, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose any of those with a lead below MARGIN, then those with the next smallest lead."""
    order = np.argsort(seen.lead)
    low = order[seen.lead[order] < MARGIN]
    return np.concatenate([generator.permutation(low), order[len(low) :]])[:count]


def strange(seen: Seen, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose those least similar to the known photos."""
    return np.argsort(seen.familiar)[:count]


def mixed(seen: Seen, count: int, generator: np.random.Generator) -> np.ndarray:
    """Choose half with `unsure`, half with `random`."""
    first = unsure(seen, count // 2, generator)
    rest = np.setdiff1d(np.arange(len(seen.lead)), first)
    return np.concatenate([first, generator.permutation(rest)[: count - len(first)]])


CHOICES: dict[str, Choice] = {
    "random": random,
    "unsure": unsure,
    "lead<0.5": below,
    "strange": strange,
    "mixed": mixed,
}


class Photos(NamedTuple):
    """A set's features, float32 (n, length), its classes, int (n,), and the names in its archive."""

    features: np.ndarray
    classes: np.ndarray
    names: list[str]


def main() -> None:
    """Choose, fit, print a table and write the figures."""
    made = parser(__doc__, "labels_worth")
    made.add_argument("--data", type=Path, nargs="+", required=True, help="zips of photos, with one folder per class")
    made.add_argument(
        "--foreign", type=float, nargs="+", default=[0.0], help="shares of other sets' photos (default: 0)"
    )
    made.add_argument("--draws", type=int, default=30, help="default: 30")
    made.add_argument(
        "--train", type=int, default=0, metavar="DRAWS", help="train the whole network, in this many draws"
    )
    made.add_argument("--choices", nargs="+", choices=TRAINED, default=TRAINED, help="what --train compares")
    made.add_argument("--features", type=Path, default=Path("/tmp/edgecnn-features"), help="where to cache features")
    arguments = made.parse_args()
    archives = {path.stem: path.resolve() for path in arguments.data}
    context = about("labels_worth", data=sorted(archives), family=RUNG, side=SIDE, start=START)
    sets = {name: featured(path, arguments.features) for name, path in archives.items()}
    if arguments.train:
        results = Results(arguments.out, context)
        cases = results.missing(set=list(sets), draw=range(arguments.train), choice=arguments.choices)
        train_all(results, cases, archives, sets)
        return
    rows = []
    for name, foreign, draw in itertools.product(sets, arguments.foreign, range(arguments.draws)):
        others = [photos.features for other, photos in sets.items() if other != name]
        rows += [
            {"set": name, "foreign": foreign, "draw": draw, **row}
            for row in drawn(sets[name], name, others, foreign, draw)
        ]
    summary = summarised(rows)
    finish(arguments.out, {**context, "draws": arguments.draws, "results": summary}, HEADINGS, map(line, summary))


def train_all(results: Results, cases: Iterable[Row], archives: Mapping[str, Path], sets: Mapping[str, Photos]) -> None:
    """Train RUNG on the initial photos and 100 chosen ones, in each case; print a table and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs/latest goes there
        for case in cases:
            photos = sets[case["set"]]
            first, seen, test = divided(photos.classes, START[case["set"]], np.random.default_rng([case["draw"], 5]))
            chosen = choose_all(photos, first, seen, photos.features[:0], case["draw"])[2](case["choice"], 100)
            taught = np.concatenate([first, seen[chosen]])
            splits = dict.fromkeys((photos.names[index] for index in taught), "train")
            splits |= dict.fromkeys((photos.names[index] for index in test), "test")
            archive = archives[case["set"]]
            data = write_split(archive, Path(folder) / "photos.zip", listed(archive), splits)
            results.add(**case, **measure(data, RUNG, case["draw"], []))
    shares = {(row["set"], row["draw"], row["choice"]): 100 * row["int8_right"] / row["n"] for row in results.rows}
    rows = []
    for (name, draw, choice), share in sorted(shares.items()):
        over = f"{share - shares[name, draw, 'random']:+.1f}" if (name, draw, "random") in shares else ""
        rows.append((name, str(draw), choice, f"{share:.1f}%", over))
    headings = ("set", "draw", "choice", "int8", "over random")
    finish(results.path, {**results.context, "results": results.rows}, headings, rows)


class Archive:
    """A zip of photos in the form that `frozen_features` accepts."""

    channels, progress = 3, None

    def __init__(self, path: Path) -> None:
        self.photos, self._file = listed(path), zipfile.ZipFile(path)
        self.places = [("", photo.name) for photo in self.photos]
        self.hashes = [f"{path.stem} {photo.name}" for photo in self.photos]

    def at_size(self, places: Sequence[tuple[str, str]], shape: tuple[int, int, int]) -> np.ndarray:
        return np.stack([load(self._file.read(name), *shape) for _, name in places])


def featured(path: Path, folder: Path) -> Photos:
    """Return a set with the features that a frozen ImageNet network computes from it."""
    from edgecnn.train.frozen import frozen_features

    archive = Archive(path)
    features = frozen_features(FAMILY, (SIDE, SIDE), archive, (1 / 128, 0), folder / path.stem)[RUNG]  # type: ignore[arg-type]
    labels = [photo.label for photo in archive.photos]
    return Photos(features, np.unique(labels, return_inverse=True)[1], [photo.name for photo in archive.photos])


def divided(
    classes: np.ndarray, start: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the first model's photos, the photos the camera sees, and the test photos."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for one in np.unique(classes):
        order = generator.permutation(np.flatnonzero(classes == one))
        test = len(order) // 4
        for part, indices in zip(parts, np.split(order, [start, len(order) - test]), strict=True):
            part.append(indices)
    first, seen, test_ = (np.concatenate(part) for part in parts)
    return first, seen, test_


def choose_all(
    photos: Photos, first: np.ndarray, seen: np.ndarray, foreign: np.ndarray, draw: int
) -> tuple[Callable, Callable, Callable[[str, int], np.ndarray]]:
    """Fit the first model. Returns functions that fit another one on more photos, scale features, and choose among the photos seen."""
    from edgecnn.runtime.stranger import similarity, unit_rows
    from edgecnn.train.regression import choose_strength, regression

    mean = photos.features[first].mean(axis=0)
    deviation = float((photos.features[first] - mean).std())

    def scaled(features: np.ndarray) -> np.ndarray:
        return (features - mean) / deviation

    strength = choose_strength(scaled(photos.features[first]), photos.classes[first], draw)

    def fit(taught: np.ndarray) -> Any:
        return regression(strength).fit(scaled(photos.features[taught]), photos.classes[taught])

    asked = np.concatenate([photos.features[seen], foreign])
    scores = np.sort(fit(first).predict_proba(scaled(asked)), axis=1)
    shown = Seen(scores[:, -1] - scores[:, -2], similarity(asked, unit_rows(photos.features[first]), NEIGHBOURS))

    def choose(name: str, labels: int) -> np.ndarray:
        return CHOICES[name](shown, labels, np.random.default_rng([draw, labels]))

    return fit, scaled, choose


def drawn(photos: Photos, name: str, others: Sequence[np.ndarray], share: float, draw: int) -> list[Row]:
    """Return the gain of each choice for each number of labels in one draw. `share` of the photos seen come from the other sets."""
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng([draw, 5])
    first, seen, test = divided(photos.classes, START[name], generator)
    count = round(len(seen) * share / (1 - share))
    foreign = np.concatenate(others) if count else photos.features[:0]
    foreign = foreign[generator.permutation(len(foreign))[:count]]
    rows = []
    with threadpool_limits(1):
        fit, scaled, choose = choose_all(photos, first, seen, foreign, draw)

        def accuracy(taught: np.ndarray) -> float:
            return float(np.mean(fit(taught).predict(scaled(photos.features[test])) == photos.classes[test]))

        before = accuracy(first)
        for labels, choice in itertools.product((one for one in LABELS if one <= len(seen)), CHOICES):
            chosen = choose(choice, labels)
            useful = seen[chosen[chosen < len(seen)]]
            after = accuracy(np.concatenate([first, useful]))
            rows.append(
                {"labels": labels, "choice": choice, "before": before, "after": after, "useful": len(useful) / labels}
            )
    return rows


def summarised(rows: Sequence[Row]) -> list[Row]:
    """Return means over the draws of each set, and of all sets, with the paired difference from random and its interval."""
    found: dict[tuple, dict[tuple, Row]] = defaultdict(dict)
    for row in rows:
        for name in (row["set"], "all"):
            found[name, row["foreign"], row["labels"], row["choice"]][row["set"], row["draw"]] = row
    summary = []
    for key in sorted(found, key=lambda key: (key[0] == "all", *key)):
        members = found[key]
        gains = {draw: 100 * (row["after"] - row["before"]) for draw, row in members.items()}
        over = np.array(
            [100 * (row["after"] - found[(*key[:3], "random")][draw]["after"]) for draw, row in members.items()]
        )
        half = STUDENT.get(len(over), 1.96) * over.std(ddof=1) / math.sqrt(len(over)) if len(over) > 1 else 0.0
        summary.append(
            dict(zip(("set", "foreign", "labels", "choice"), key, strict=True))
            | {
                "draws": len(over),
                "before": 100 * float(np.mean([row["before"] for row in members.values()])),
                "gain": float(np.mean(list(gains.values()))),
                "over_random": float(over.mean()),
                "half_interval": float(half),
                "useful": float(np.mean([row["useful"] for row in members.values()])),
            }
        )
    return summary


def line(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    over = "" if row["choice"] == "random" else f"{row['over_random']:+.1f} ± {row['half_interval']:.1f}"
    return (
        row["set"], f"{row['foreign']:.0%}", str(row["labels"]), row["choice"], f"{row['before']:.1f}", f"{row['gain']:+.1f}",
        over, f"{row['useful']:.0%}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
