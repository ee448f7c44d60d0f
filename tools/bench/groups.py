"""What a split and a head's held-out accuracy say, by photo and by group, and the truth on photos from elsewhere.

Each set is divided as in training: photos and classes per split, the largest group, copies in two splits, and the sentence about groups.
Then the head, logistic regression on the features that the search computes, is fitted by folds over single photos, and over the groups that
the names tell; each accuracy is the mean of three fold seeds. For some sets there are photos from elsewhere, which nothing sees: the head's
accuracy on them is the truth.

    EDGECNN_DATA=<folder of the sets> python tools/bench/groups.py
"""

import contextlib
import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from harness import Results, about, finish, parser
from threadpoolctl import threadpool_limits

from edgecnn.data import Dataset, open_dataset
from edgecnn.data.items import Item, Meter
from edgecnn.data.splits import SPLITS, is_users, texts_by
from edgecnn.evaluate.statistics import grouped_interval
from edgecnn.inspect import look as module
from edgecnn.inspect.inspection import find_copies, links_of
from edgecnn.inspect.look import Cache
from edgecnn.inspect.question import SEEDS, STRENGTH, ask, right
from edgecnn.recipe import DataRecipe
from edgecnn.train.candidates import regression


class Set(NamedTuple):
    """A set of photos, the pattern of its groups, if its names tell them, and photos from elsewhere."""

    pattern: str = ""
    truth: str = ""


SETS = {
    "more/coins.zip": Set(r"(.+)_\d+$", "more/coins-other.zip"),
    "more/solar-cells.zip": Set(r"^(\d+)\d\d$", "more/solar-cells-other.zip"),
    "more/screws.zip": Set(r"(.+)-\d+$"),
    "more/coffee-leaves.zip": Set(r"^(\d+)\d\d$"),
    "more/magnets.zip": Set(),
    "trash-photos.zip": Set(),
    "suite/signs.zip": Set(),
    "suite/grocery.zip": Set(),
    "suite/masks.zip": Set(),
}


def quiet(*_: object) -> None:
    """Show no progress."""


def opened(source: str, pattern: str = "") -> Dataset:
    return open_dataset(DataRecipe(source=source, group_by=pattern or None), for_training=False)


def counts_of(dataset: Dataset) -> dict[str, Any]:
    """Return the images of each split and of each class in it, the largest group, the copies in two splits, and the largest deviation."""
    items = {split: {item.hash: item for item in part}.values() for split, part in dataset.items.items()}
    total = Counter(item.label for part in items.values() for item in part)
    sizes = Counter(dataset.group_of(item) for part in items.values() for item in part)
    by_class = {split: Counter(item.label for item in part) for split, part in items.items()}
    off = max(
        abs(by_class[split][label] / len(items[split]) - count / total.total())
        for split in ("validation", "test")
        for label, count in total.items()
    )
    return {
        "splits": {split: len(items[split]) for split in SPLITS},
        "classes": {label: [by_class[split][number] for split in SPLITS] for number, label in enumerate(dataset.labels)},
        "largest_groups": [size for _, size in sizes.most_common(3)],
        "test_groups": len({dataset.group_of(item) for item in items["test"]}),
        "tied": len(dataset.tied),
        "off_points": round(100 * off, 1),
    }  # fmt: skip


def features_of(dataset: Dataset) -> tuple[list[Item], np.ndarray]:
    items = [item for part in dataset.items.values() for item in part]
    with contextlib.closing(Cache()) as cache:
        values = module.compute(items, dataset.read, cache, module.open_body, Meter(None, "", len(items)))
    return items, values


def measured(name: str, one: Set) -> dict[str, Any]:
    dataset = opened(name)
    found = find_copies(dataset, None, quiet, quiet, for_links=True)
    links = links_of(dataset, found)
    plain = dataset.with_split_groups({}, links)
    items, features = list(found.looks.items), found.features
    assert features is not None
    row: dict[str, Any] = {"by_photo": counts_of(plain), "sentence": ask(plain, items, features, quiet, quiet)}
    classes = np.array([item.label for item in items])
    mean = features.mean(axis=0)
    scale = float((features - mean).std())  # one for all features, as in `edgecnn.train.origin`
    whole = (features - mean) / scale
    with threadpool_limits(1):
        row["head_by_photo"] = right(whole, classes, np.arange(len(classes)), SEEDS)
        if one.pattern:
            row["by_group"] = counts_of(opened(name, one.pattern).with_split_groups({}, links))
            texts = texts_by(one.pattern, items)
            groups = np.unique([texts.get(item.hash, item.hash) for item in items], return_inverse=True)[1]
            row["groups"] = int(groups.max()) + 1
            row["head_by_group"] = right(whole, classes, groups, SEEDS)
            divided = opened(name, one.pattern).with_split_groups({}, links)
            row |= single_split(divided, items, whole, classes)
        if one.truth:
            others, elsewhere = features_of(opened(one.truth))
            fitted = regression(STRENGTH).fit(whole, classes)
            row["truth"] = float(fitted.score((elsewhere - mean) / scale, [item.label for item in others]))
            row["truth_images"] = len(others)
    return row


def single_split(dataset: Dataset, items: list[Item], values: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Return the head's accuracy on the test split of named groups, and its interval over these."""
    splits = np.array([dataset.split_groups[item.hash].split for item in items])
    fitted = regression(STRENGTH).fit(values[splits == "train"], classes[splits == "train"])
    correct = fitted.predict(values[splits == "test"]) == classes[splits == "test"]
    groups = [dataset.group_of(item) for item, split in zip(items, splits, strict=True) if split == "test"]
    assert any(is_users(side.rule) for side in dataset.split_groups.values())
    return {"test_by_group": float(correct.mean()), "test_interval": list(grouped_interval(correct, groups))}


HEADINGS = (
    "set", "train, validation, test", "class shares off", "largest group", "head by photo", "by group", "truth",
    "one test split by group (95 %)",
)  # fmt: skip


def rows_of(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in results:
        photo, group = row["by_photo"], row.get("by_group")
        both = [photo, *([group] if group else [])]
        interval = row.get("test_interval", (0, 0))
        rows.append(
            (
                row["name"].rpartition("/")[2].removesuffix(".zip"),
                "; ".join(", ".join(f"{one['splits'][split]:,}" for split in SPLITS) for one in both),
                "; ".join(f"{one['off_points']:.1f}" for one in both),
                "; ".join(f"{one['largest_groups'][0]:,}" for one in both),
                f"{row['head_by_photo']:.1%}",
                f"{row['head_by_group']:.1%} ({row['groups']} groups)" if group else "-",
                f"{row['truth']:.1%} (n = {row['truth_images']:,})" if "truth" in row else "-",
                f"{row['test_by_group']:.0%} ({interval[0]:.0%} to {interval[1]:.0%}, {group['test_groups']} groups)"
                if group
                else "-",
            )
        )
    return rows


def main() -> None:
    """Measure each set, print a table and write the figures."""
    made = parser(__doc__, "groups")
    made.add_argument("--sets", nargs="*", default=list(SETS), help="some of the sets (default: all)")
    arguments = made.parse_args()
    results = Results(arguments.out, about("groups", side=module.FEATURES_SIDE))
    for case in results.missing(name=arguments.sets):
        print(case["name"], file=sys.stderr, flush=True)
        results.add(**case, **measured(case["name"], SETS[case["name"]]))
    finish(arguments.out, {**results.context, "results": results.rows}, HEADINGS, rows_of(results.rows))


if __name__ == "__main__":
    main()
