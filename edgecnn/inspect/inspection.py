"""The inspection itself: every part of it in turn."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgecnn import __version__
from edgecnn.data import Dataset, Progress
from edgecnn.data.dataset import PRECEDENCE
from edgecnn.data.items import Item, Meter
from edgecnn.data.splits import SPLITS
from edgecnn.inspect import features as features_module
from edgecnn.inspect import findings
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.features import Body
from edgecnn.inspect.groups import Pair, Search, connected
from edgecnn.inspect.inspection_report import (
    ClassFigures,
    Copy,
    Group,
    Inspection,
    Lost,
    Method,
    Odd,
    Same,
    SizeFigures,
    WrongLabel,
)
from edgecnn.inspect.look import Looks, look_at
from edgecnn.inspect.odd import OddOnes, blurred, far_from_the_rest
from edgecnn.inspect.pairs import Limits, Pictures
from edgecnn.inspect.wrong_labels import FEWEST, distinct, doubts, out_of_fold

SEED = 1
SIZES = 20
"""Sizes that are listed, the most frequent ones."""

BY = {"content": 0, "hash": 1, "features": 2}


class _Network:
    """The network, opened when its features are first needed."""

    def __init__(self) -> None:
        self._body: Body | None = None

    def open(self) -> Body:
        """Return the function that computes features."""
        if self._body is None:
            self._body = features_module.open_body()
        return self._body

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Return the features of pictures."""
        return self.open()(pictures)


def inspect_images(
    dataset: Dataset,
    *,
    missing: str | None = None,
    progress: Progress = lambda what, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Inspect a dataset's images, those of all splits.

    What is computed of an image is kept in the user's cache, by its content.

    Args:
        dataset: opened with for_training=False.
        missing: why no features are used, as a line; None to use them.
        progress: called as progress(what, done, total).
        note: called with a line for people.

    Raises:
        ImageError: if an image changes meanwhile.
        NetworkError: if the weights are not the expected ones.
    """
    cache = Cache(note)
    try:
        return _inspected(dataset, missing, progress, cache)
    finally:
        cache.close()


def _inspected(dataset: Dataset, missing: str | None, progress: Progress, cache: Cache) -> Inspection:
    """Inspect with an open cache; see `inspect_images`."""
    started = time.monotonic()
    items = [item for split in SPLITS for item in dataset.items[split]]
    looks = look_at(items, dataset.read, cache, Meter(progress, f"looking at {dataset.name}", len(items)))
    network = _Network()
    features, computed = None, {"hashes": looks.computed}
    if missing is None and looks.items:
        meter = Meter(progress, "computing features", len(looks.items))
        features, computed["features"] = features_module.compute(looks.items, dataset.read, cache, network.open, meter)
    search = Search(
        looks=looks,
        pictures=Pictures(looks.items, dataset.read),
        features=features,
        body=None if features is None else network,
        cache=cache,
        progress=progress,
    )
    groups = list(connected(len(looks.items), search.run(SEED)))
    method = Method(
        features=None if features is None else features_module.SOURCE.title,
        missing=missing,
        alike=search.alike,
        tightened=search.limits != Limits(),
        skipped_pairs=search.skipped,
        uncompared=search.uncompared,
    )
    return _Report(dataset, looks, [indices for indices, _ in groups], method).made(
        tuple(group_of(looks, indices, pairs, dataset.labels) for indices, pairs in groups),
        labels_in_doubt(dataset, looks, features, groups, progress),
        None if features is None else far_from_the_rest(features, progress),
        computed,
        started,
    )


def labels_in_doubt(
    dataset: Dataset,
    looks: Looks,
    features: np.ndarray | None,
    groups: Sequence[tuple[list[int], list[Pair]]],
    progress: Progress,
) -> tuple[WrongLabel, ...]:
    """Return the labels that are likely wrong; none without features, or of a class with too few different images to judge."""
    if features is None:
        return ()
    labels = np.array([item.label for item in looks.items])
    together = np.arange(len(labels))
    for indices, _ in groups:
        together[indices] = indices[0]
    usable = np.flatnonzero(distinct(labels, together)[labels] >= FEWEST)
    present = np.unique(labels[usable])
    if len(present) < 2:
        return ()
    classes = np.searchsorted(present, labels[usable])
    scores = out_of_fold(features[usable], classes, together[usable], SEED, progress)
    names = [dataset.labels[index] for index in present]
    return tuple(
        WrongLabel(
            **photo(looks.items[usable[doubt.index]], dataset.labels),
            suggested=names[doubt.suggested],
            score=doubt.score,
            suggested_score=doubt.suggested_score,
        )
        for doubt in doubts(scores, classes)
    )


def photo(item: Item, labels: Sequence[str]) -> dict[str, str]:
    """Return an item's fields as a Photo has them."""
    return {"source": item.source, "split": item.split, "label": labels[item.label]}


def group_of(looks: Looks, indices: Sequence[int], pairs: Sequence[Pair], labels: Sequence[str]) -> Group:
    """Return a group as a report has it: the image first that is kept.

    That is one of the split that comes first in PRECEDENCE, the largest and then the first by name. Where labels differ, none is: which
    label is right only people can say.
    """

    def rank(index: int) -> tuple[int, int, str]:
        size = looks.table[index]
        return (
            PRECEDENCE.index(looks.items[index].split),
            -int(size["width"]) * int(size["height"]),
            looks.items[index].source,
        )

    chosen = sorted(indices, key=rank)
    files = Counter(looks.items[index].hash for index in indices)
    pixels = Counter(looks.table[index]["pixels"] for index in chosen)
    numbers = {content: number for number, content in enumerate(pixels)}
    two_labels = len({looks.items[index].label for index in indices}) > 1

    def same(index: int) -> Same:
        if files[looks.items[index].hash] > 1:
            return "file"
        return "pixels" if pixels[looks.table[index]["pixels"]] > 1 else "near"

    return Group(
        copies=tuple(
            Copy(
                **photo(looks.items[index], labels),
                same=same(index),
                pixels=numbers[looks.table[index]["pixels"]],
                keep=index == chosen[0] and not two_labels,
            )
            for index in chosen
        ),
        exact=len(pixels) == 1,
        leak=len({looks.items[index].split for index in indices}) > 1,
        two_labels=two_labels,
        by=max((pair.by for pair in pairs), key=lambda by: BY[by]),
        score=min(pair.verdict.score for pair in pairs),
        mirrored=any(pair.verdict.mirrored for pair in pairs),
    )


def order(group: Group) -> tuple[bool, bool, bool, float, str]:
    """Return the key that sorts groups: leaks first, then those with two labels, exact and near copies."""
    return not group.leak, not group.two_labels, not group.exact, -group.score, group.copies[0].source


class _Report:
    """Puts what was detected together."""

    def __init__(self, dataset: Dataset, looks: Looks, groups: Sequence[list[int]], method: Method) -> None:
        self.dataset, self.looks, self.groups, self.method = dataset, looks, groups, method

    def made(
        self,
        groups: tuple[Group, ...],
        wrong: tuple[WrongLabel, ...],
        far: OddOnes | None,
        computed: Mapping[str, int],
        started: float,
    ) -> Inspection:
        """Return the report."""
        dataset, looks = self.dataset, self.looks
        own = tuple(split for split in SPLITS if split in dataset.given)
        lost = self.lost()
        classes = self.classes()
        far_ones = self.odd(far) if far else ()
        soft = self.odd(blurred(looks.table["sharpness"], looks.table["spread"]))
        ordered = sorted(groups, key=order)
        shapes = [(int(row["width"]), int(row["height"]), int(row["channels"])) for row in looks.table]
        return Inspection(
            schema="edgecnn.inspect/1",
            edgecnn=__version__,
            name=dataset.name,
            title=dataset.title,
            fingerprint=dataset.fingerprint,
            images=len(looks.items),
            splits=self.by_split(looks.items),
            own_splits=own,
            findings=findings.ordered(
                [
                    *findings.of_folders(dataset.faults, dataset.skipped, dataset.skipped_lines()),
                    *findings.of_files(lost, len(looks.items) + len(lost)),
                    *findings.of_groups(ordered, own),
                    *findings.of_labels(wrong),
                    *findings.of_classes(classes, self.method),
                    *findings.of_sizes(looks.items, shapes, dataset.labels),
                    *findings.of_odd_ones(far_ones, soft),
                ]
            ),
            classes=classes,
            sizes=tuple(
                SizeFigures(width=shape[0], height=shape[1], channels=shape[2], images=count)
                for shape, count in Counter(shapes).most_common(SIZES)
            ),
            unreadable=lost,
            groups=tuple(ordered),
            wrong_labels=wrong,
            far=far_ones,
            blurred=soft,
            method=self.method,
            computed=computed,
            seconds=time.monotonic() - started,
        )

    def lost(self) -> tuple[Lost, ...]:
        """Return the images that cannot be read."""
        unlisted = [Lost(source=item.source, split=item.split, reason=item.reason) for item in self.dataset.unreadable]
        return (
            *unlisted,
            *(Lost(source=item.source, split=item.split, reason=reason) for item, reason in self.looks.broken),
        )

    def by_split(self, items: Sequence[Item]) -> dict[str, int]:
        """Return how many of some items are in each split."""
        counts = Counter(item.split for item in items)
        return {split: counts[split] for split in SPLITS}

    def classes(self) -> tuple[ClassFigures, ...]:
        """Return each class's images by split, and how many are left if each group is one."""
        copies: Counter[int] = Counter()
        for indices in self.groups:
            for label, count in Counter(self.looks.items[index].label for index in indices).items():
                copies[label] += count - 1
        by_label: dict[int, list[Item]] = {index: [] for index in range(len(self.dataset.labels))}
        for item in self.looks.items:
            by_label[item.label].append(item)
        return tuple(
            ClassFigures(
                label=self.dataset.labels[label], images=self.by_split(items), distinct=len(items) - copies[label]
            )
            for label, items in by_label.items()
        )

    def odd(self, found: OddOnes) -> tuple[Odd, ...]:
        """Return odd images as the report has them."""
        return tuple(
            Odd(
                **photo(self.looks.items[index], self.dataset.labels),
                value=float(found.values[index]),
                usual=found.usual,
            )
            for index in found.indices
        )
