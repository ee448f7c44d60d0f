"""The inspection itself, which runs each part in turn, and its result as JSON and as one self-contained HTML file with pictures."""

import base64
import contextlib
import dataclasses
import functools
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecnn import __version__
from edgecnn.data import Dataset, Progress
from edgecnn.data.dataset import PRECEDENCE
from edgecnn.data.decoding import picture, region_of
from edgecnn.data.items import Item, Meter
from edgecnn.data.splits import COPY, SAME, SPLITS, Link, frames_of
from edgecnn.errors import ImageError
from edgecnn.evaluate.answers import HeldOut
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect import findings
from edgecnn.inspect.groups import LEAST_SIDE, OddOnes, Pair, Search, blurred, bursts, connected, far_from_the_rest
from edgecnn.inspect.look import SOURCE, Cache, Looks, compute, look_at, open_body, scaled
from edgecnn.inspect.pairs import Pictures
from edgecnn.inspect.question import FEWEST_IMAGES, ask, distinct, doubts, out_of_fold
from edgecnn.labels import SOURCES_CSV, plural
from edgecnn.region import WHOLE
from edgecnn.report.page import templates
from edgecnn.runtime.decision import softmax
from edgecnn.tables import to_json

SEED = 1
SIZES = 20  # sizes to list, most frequent first

BY = ("content", "hash", "features")


def inspect_images(
    dataset: Dataset,
    *,
    missing: str | None = None,
    answers: tuple[str, HeldOut] | None = None,
    progress: Progress = lambda what, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> findings.Inspection:
    """Inspect the images of all splits of a dataset that was opened with for_training=False.

    Results for an image are stored in the user's cache, by content. `missing` says why features are not used; None uses them. `answers`
    are a run's name and its folds' answers, which then judge the labels.

    Raises:
        ImageError: if an image changes during the inspection.
        NetworkError: if the weights are not the expected ones.
    """
    started = time.monotonic()
    dataset.require_groups()
    with contextlib.closing(Cache(note, dataset.region)) as cache:
        found = find_copies(dataset, cache, missing, progress)
    question = ""
    if dataset.left_to_edgecnn:  # as training will divide them
        dataset = dataset.with_split_groups(dataset.split_groups, links_of(dataset, found))
        found = found.divided(dataset)
        question = ask(dataset, found.looks.items, found.features, progress, note)
    looks, features, search, pairs, computed = found
    groups = connected(len(looks.items), pairs)
    method = findings.Method(
        features=None if features is None else SOURCE.title,
        missing=missing,
        all_alike=search.all_alike,
        skipped_pairs=search.skipped,
        uncompared=search.uncompared,
        labels_by=answers[0] if answers else None,
    )
    labels, table = dataset.labels, looks.table
    own = tuple(split for split in SPLITS if split in dataset.given)
    lost = (
        *(findings.Lost(source=item.source, split=item.split, reason=item.reason) for item in dataset.unreadable),
        *(findings.Lost(source=item.source, split=item.split, reason=reason) for item, reason in looks.broken),
    )
    classes = class_figures(looks.items, [indices for indices, _ in groups], labels)
    reported = tuple(sorted((group_of(looks, indices, pairs, labels) for indices, pairs in groups), key=order))
    wrong = (
        doubted_by_folds(dataset, looks, answers[1])
        if answers
        else labels_in_doubt(dataset, looks, features, groups, progress)
    )
    far = () if features is None else odd_of(looks, far_from_the_rest(features, progress), labels)
    soft = odd_of(looks, blurred(table["sharpness"], table["spread"]), labels)
    shapes = table[["width", "height", "channels"]].tolist()
    return findings.Inspection(
        schema="edgecnn.inspect/1",
        edgecnn=__version__,
        name=dataset.name,
        title=dataset.title,
        fingerprint=dataset.fingerprint,
        images=len(looks.items),
        splits=by_split(looks.items),
        own_splits=own,
        findings=findings.ordered(
            [
                *findings.of_folders(dataset.faults, dataset.skipped, dataset.skipped_lines()),
                *findings.of_files(lost, len(looks.items) + len(lost)),
                *findings.of_groups(reported, own, dataset.left_to_edgecnn),
                *findings.of_question(question, len(looks.items)),
                *findings.of_labels(wrong),
                *findings.of_classes(classes, method),
                *findings.of_sizes(looks.items, shapes, labels),
                *findings.of_odd_ones(far, soft),
            ]
        ),
        classes=classes,
        sizes=tuple(
            findings.SizeFigures(width=width, height=height, channels=channels, images=count)
            for (width, height, channels), count in Counter(shapes).most_common(SIZES)
        ),
        unreadable=lost,
        groups=reported,
        wrong_labels=wrong,
        far=far,
        blurred=soft,
        method=method,
        computed=computed,
        seconds=time.monotonic() - started,
    )


class Copies(NamedTuple):
    """The results of the search for images that show the same thing.

    `pairs` are copies and near copies of each other, directly.
    """

    looks: Looks
    features: np.ndarray | None
    search: Search
    pairs: list[Pair]
    computed: dict[str, int]

    def divided(self, dataset: Dataset) -> "Copies":
        """Return the same with each image in its split of another dataset of these images."""
        items = {item.source: item for part in dataset.items.values() for item in part}
        looks = dataclasses.replace(self.looks, items=tuple(items[item.source] for item in self.looks.items))
        return self._replace(looks=looks)


def find_copies(
    dataset: Dataset, cache: Cache, missing: str | None, progress: Progress, for_links: bool = False
) -> Copies:
    """Search a dataset for images that show the same thing; arguments as in `inspect_images`.

    With `for_links`, no features are computed if all images are too small to compare.
    """
    items = [item for split in SPLITS for item in dataset.items[split]]
    read: Callable[[Item], bytes | np.ndarray] = dataset.read
    if dataset.region != WHOLE:  # a fixed camera's pictures are all alike outside of it
        read = functools.partial(region_of, read=dataset.read, region=dataset.region)
    looks = look_at(items, read, cache, Meter(progress, f"looking at {dataset.name}", len(items)))
    features, computed = None, {"hashes": looks.computed}
    network = functools.cache(open_body)  # opened when its features are first needed
    shorter = np.minimum(looks.table["width"], looks.table["height"])
    if missing is None and (shorter >= (LEAST_SIDE if for_links else 0)).any():
        meter = Meter(progress, "computing features", len(looks.items))
        features, computed["features"] = compute(looks.items, read, cache, network, meter)
    search = Search(
        looks=looks,
        pictures=Pictures(looks.items, read),
        features=features,
        body=None if features is None else lambda pictures: network()(pictures),
        cache=cache,
        progress=progress,
    )
    return Copies(looks, features, search, search.run(), computed)


def find_links(
    dataset: Dataset, *, missing: str | None, progress: Progress, note: Callable[[str], None]
) -> tuple[list[Link], Copies]:
    """Return links between copies, and between frames of a burst, and the search's result; arguments as in `inspect_images`."""
    with contextlib.closing(Cache(note, dataset.region)) as cache:
        found = find_copies(dataset, cache, missing, progress, for_links=True)
    return links_of(dataset, found), found


def links_of(dataset: Dataset, found: Copies) -> list[Link]:
    """Return links between copies, and between frames that a board kept in a row. Its other frames are alike because it does not move."""
    hashes = [item.hash for item in found.looks.items]
    frames = {}
    if SOURCES_CSV in dataset.lists:
        frames = frames_of(dataset.lists[SOURCES_CSV], f"{dataset.name}: {SOURCES_CSV}", set(hashes))
    boards = {one: board for board, taken in frames.items() for _, one in taken}
    links = [
        Link(one, other, pair.score, SAME if pair.by == "content" else COPY)
        for pair in found.pairs
        for one, other in [(hashes[pair.first], hashes[pair.second])]
        if one != other and (pair.by == "content" or one not in boards or boards[one] != boards.get(other))
    ]
    rows = {one: row for row, one in enumerate(hashes)}
    for taken in frames.values():
        links += bursts(taken, rows, found.looks.table["thumb"], found.features)
    return links


def labels_in_doubt(
    dataset: Dataset,
    looks: Looks,
    features: np.ndarray | None,
    groups: Sequence[tuple[list[int], list[Pair]]],
    progress: Progress,
) -> tuple[findings.WrongLabel, ...]:
    """Return the labels that are likely wrong; none without features, and none of a class with too few different images to judge."""
    if features is None:
        return ()
    labels = np.array([item.label for item in looks.items])
    together = np.arange(len(labels))
    for indices, _ in groups:
        together[indices] = indices[0]
    usable = np.flatnonzero(distinct(labels, together)[labels] >= FEWEST_IMAGES)
    present = np.unique(labels[usable])
    if len(present) < 2:
        return ()
    classes = np.searchsorted(present, labels[usable])
    scores = out_of_fold(features[usable], classes, together[usable], SEED, progress)
    names = [dataset.labels[index] for index in present]
    return wrong_labels([looks.items[index] for index in usable], names, scores, classes)


def doubted_by_folds(dataset: Dataset, looks: Looks, held: HeldOut) -> tuple[findings.WrongLabel, ...]:
    """Return the labels that a run's folds contradict, each image judged by the model that never saw it."""
    answered = zip(held.hashes.tolist(), held.classes.tolist(), strict=True)
    rows = {photo_and_label: row for row, photo_and_label in enumerate(answered)}
    judged = [item for item in looks.items if (item.hash, item.label) in rows]
    chosen = [rows[item.hash, item.label] for item in judged]
    return wrong_labels(judged, dataset.labels, softmax(held.float[chosen]), held.classes[chosen])


def wrong_labels(
    items: Sequence[Item], names: Sequence[str], scores: np.ndarray, classes: np.ndarray
) -> tuple[findings.WrongLabel, ...]:
    """Return the labels that `doubts` names; `names` are those of the classes."""
    return tuple(
        findings.WrongLabel(
            source=items[doubt.index].source,
            split=items[doubt.index].split,
            label=names[classes[doubt.index]],
            suggested=names[doubt.suggested],
            score=doubt.score,
            suggested_score=doubt.suggested_score,
        )
        for doubt in doubts(scores, classes)
    )


def photo(item: Item, labels: Sequence[str]) -> dict[str, str]:
    return {"source": item.source, "split": item.split, "label": labels[item.label]}


def group_of(looks: Looks, indices: Sequence[int], pairs: Sequence[Pair], labels: Sequence[str]) -> findings.Group:
    """Return a group for the report, with the image to keep first.

    That is one in the first split of PRECEDENCE, then the largest, then the first by name. If labels differ, none is kept: only people can
    say which label is right.
    """

    def rank(index: int) -> tuple[int, int, str]:
        item, size = looks.items[index], looks.table[index]
        return PRECEDENCE.index(item.split), -int(size["width"]) * int(size["height"]), item.source

    members = [(looks.items[index], looks.table[index]["pixels"]) for index in sorted(indices, key=rank)]
    files, pixels = Counter(item.hash for item, _ in members), Counter(content for _, content in members)
    numbers = {content: number for number, content in enumerate(pixels)}
    two_labels = len({item.label for item, _ in members}) > 1
    return findings.Group(
        copies=tuple(
            findings.Copy(
                **photo(item, labels),
                same="file" if files[item.hash] > 1 else "pixels" if pixels[content] > 1 else "near",
                pixels=numbers[content],
                keep=not place and not two_labels,
            )
            for place, (item, content) in enumerate(members)
        ),
        exact=len(pixels) == 1,
        leak=len({item.split for item, _ in members}) > 1,
        two_labels=two_labels,
        by=max((pair.by for pair in pairs), key=BY.index),
        score=min(pair.score for pair in pairs),
        mirrored=any(pair.mirrored for pair in pairs),
    )


def order(group: findings.Group) -> tuple[bool, bool, bool, float, str]:
    return not group.leak, not group.two_labels, not group.twins, -group.score, group.copies[0].source


def by_split(items: Sequence[Item]) -> dict[str, int]:
    counts = Counter(item.split for item in items)
    return {split: counts[split] for split in SPLITS}


def class_figures(
    items: Sequence[Item], groups: Sequence[Sequence[int]], labels: Sequence[str]
) -> tuple[findings.ClassFigures, ...]:
    """Return each class's images by split, and how many remain if each group counts as one."""
    copies: Counter[int] = Counter()
    for indices in groups:
        counts = Counter(items[index].label for index in indices)
        copies.update({label: count - 1 for label, count in counts.items()})
    members = [[item for item in items if item.label == label] for label in range(len(labels))]
    return tuple(
        findings.ClassFigures(label=label, images=by_split(part), distinct=len(part) - copies[number])
        for number, (label, part) in enumerate(zip(labels, members, strict=True))
    )


def odd_of(looks: Looks, found: OddOnes, labels: Sequence[str]) -> tuple[findings.Odd, ...]:
    return tuple(
        findings.Odd(**photo(looks.items[index], labels), value=float(found.values[index]), usual=found.usual)
        for index in found.indices
    )


PAGE, FIGURES = "inspection.html", "inspection.json"

SIDE = 128  # longer side of a picture on the page

QUALITY = 75


SHOWN = {"lost": 100, "groups": 60, "copies": 6, "labels": 100, "odd": 40}
"""Maximum number of entries of each kind on the page; the JSON has all. All pictures together take about 2 MB."""


def verdict(report: findings.Inspection) -> str:
    counts = Counter(item.severity for item in report.findings)
    parts = [plural(counts[name], name) for name in reversed(findings.SEVERITIES) if counts[name]]
    return ", ".join(parts) or "Nothing was detected"


def pictures(report: findings.Inspection, dataset: Dataset) -> dict[str, str]:
    """Return the pictures of the page by source, as data URLs; images that have changed since are left out."""
    copies = (copy for group in report.groups[: SHOWN["groups"]] for copy in group.copies[: SHOWN["copies"]])
    odd = (*report.far[: SHOWN["odd"]], *report.blurred[: SHOWN["odd"]])
    needed = {item.source for item in (*copies, *report.wrong_labels[: SHOWN["labels"]], *odd)}
    result = {}
    for item in (item for items in dataset.items.values() for item in items if item.source in needed):
        with contextlib.suppress(ImageError):
            buffer = io.BytesIO()
            scaled(picture(item, dataset.read, 3, (SIDE, SIDE)), SIDE).save(buffer, "JPEG", quality=QUALITY)
            result[item.source] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return result


def render(report: findings.Inspection, dataset: Dataset) -> str:
    """Return the page: HTML that makes no request and has no script."""
    template = templates("edgecnn.inspect").get_template("inspection.html.j2")
    worst = report.findings[0].severity if report.findings else ""
    shown = pictures(report, dataset)
    return template.render(report=report, verdict=verdict(report), worst=worst, pictures=shown, limits=SHOWN)


def write_inspection(report: findings.Inspection, dataset: Dataset, folder: Path) -> Path:
    """Write the page and the JSON into a folder, and return the page's path. Raises OutputError if one cannot be written."""
    write_atomic(folder / PAGE, render(report, dataset).encode())
    write_atomic(folder / FIGURES, canonical_json(to_json(report)))
    return folder / PAGE
