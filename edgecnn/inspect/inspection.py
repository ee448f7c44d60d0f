"""The inspection itself, which runs each part in turn, and its result as JSON and as one self-contained HTML file with pictures."""

import base64
import contextlib
import functools
import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgecnn import __version__
from edgecnn.data import Dataset, Progress
from edgecnn.data.dataset import PRECEDENCE
from edgecnn.data.decoding import picture, region_of
from edgecnn.data.items import Item, Meter, Note
from edgecnn.data.splits import COPY, SAME, SPLITS, Link, frames_of
from edgecnn.errors import ImageError
from edgecnn.evaluate.answers import HeldOut
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect import findings
from edgecnn.inspect.groups import LEAST_SIDE, Pair, Search, blurred, bursts, far_from_the_rest, grouped
from edgecnn.inspect.look import FEATURES_KIND, LOOK_KIND, SOURCE, Cache, Looks, compute, look_at, open_body, scaled
from edgecnn.inspect.pairs import Pictures
from edgecnn.inspect.question import ask, distinct, doubted_by_folds, labels_in_doubt
from edgecnn.labels import SOURCES_CSV, plural
from edgecnn.region import WHOLE
from edgecnn.report.page import templates
from edgecnn.tables import to_json

SIZES = 20  # sizes to list, most frequent first

BY = ("content", "hash", "features")

COMPUTED = {"hashes": LOOK_KIND, "features": FEATURES_KIND}  # what the report counts


def inspect_images(
    dataset: Dataset,
    *,
    missing: str | None = None,
    answers: tuple[str, HeldOut] | None = None,
    progress: Progress = lambda what, done, total: None,
    note: Note = lambda text: None,
) -> findings.Inspection:
    """Inspect the images of all splits of a dataset that was opened with for_training=False.

    Results for an image are stored in the user's cache, by content. `missing` says why features are not used; None uses them. `answers`
    are a run's name and its folds' answers, which then judge the labels.
    Raises ImageError if an image changes during the inspection; NetworkError if the weights are not the expected ones.
    """
    started = time.monotonic()
    dataset.require_groups()
    found = find_copies(dataset, missing, progress, note)
    question = ""
    if dataset.left_to_edgecnn:  # as training will divide them
        dataset = dataset.with_split_groups(dataset.split_groups, links_of(dataset, found))
        now = {item.source: item for part in dataset.items.values() for item in part}
        found.looks = replace(found.looks, items=tuple(now[item.source] for item in found.looks.items))
        question = ask(dataset, found.looks.items, found.features, progress, note)
    looks, features = found.looks, found.features
    items, table, labels, computed = looks.items, looks.table, dataset.labels, found.cache.computed
    group = grouped(len(items), found.pairs)
    pairs_of: dict[int, list[Pair]] = defaultdict(list)
    for pair in found.pairs:
        pairs_of[group[pair.first]].append(pair)
    method = findings.Method(
        features=None if features is None else SOURCE.title,
        missing=missing,
        all_alike=found.all_alike,
        skipped_pairs=found.skipped,
        uncompared=found.uncompared,
        labels_by=answers[0] if answers else None,
    )
    own = tuple(split for split in SPLITS if split in dataset.given)
    lost = (
        *(findings.Lost(source=item.source, split=item.split, reason=item.reason) for item in dataset.unreadable),
        *(findings.Lost(source=item.source, split=item.split, reason=reason) for item, reason in looks.broken),
    )
    classes = class_figures(items, group, labels)
    reported = tuple(sorted((group_of(looks, pairs, labels) for pairs in pairs_of.values()), key=order))
    wrong: tuple[findings.WrongLabel, ...] = ()
    if answers:
        wrong = doubted_by_folds(items, labels, answers[1])
    elif features is not None:
        wrong = labels_in_doubt(items, labels, features, group, progress)
    far = () if features is None else odd_of(items, far_from_the_rest(features, progress), labels)
    soft = odd_of(items, blurred(table["sharpness"], table["spread"]), labels)
    shapes = table[["width", "height", "channels"]].tolist()
    faults = (
        *findings.of_folders(dataset.faults, dataset.skipped, dataset.skipped_lines()),
        *findings.of_files(lost, len(items) + len(lost)),
        *findings.of_groups(reported, own, dataset.left_to_edgecnn),
        *findings.of_question(question, len(items)),
        *findings.of_labels(wrong),
        *findings.of_classes(classes, method),
        *findings.of_sizes(items, shapes, labels),
        *findings.of_odd_ones(far, soft),
    )
    return findings.Inspection(
        schema="edgecnn.inspect/1",
        edgecnn=__version__,
        name=dataset.name,
        title=dataset.title,
        fingerprint=dataset.fingerprint,
        images=len(items),
        splits=by_split(items),
        own_splits=own,
        findings=tuple(sorted(faults, key=lambda item: -findings.SEVERITIES.index(item.severity))),
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
        computed={name: computed[kind] for name, kind in COMPUTED.items() if kind in computed},
        seconds=time.monotonic() - started,
    )


def find_copies(
    dataset: Dataset, missing: str | None, progress: Progress, note: Note, for_links: bool = False
) -> Search:
    """Search a dataset for images that show the same thing; arguments as in `inspect_images`.

    With `for_links`, no features are computed if all images are too small to compare.
    """
    items = [item for split in SPLITS for item in dataset.items[split]]
    read: Callable[[Item], bytes | np.ndarray] = dataset.read
    if dataset.region != WHOLE:  # a fixed camera's pictures are all alike outside of it
        read = functools.partial(region_of, read=dataset.read, region=dataset.region)
    network = functools.cache(open_body)  # opened when its features are first needed
    with contextlib.closing(Cache(note, dataset.region)) as cache:
        looks = look_at(items, read, cache, Meter(progress, f"looking at {dataset.name}", len(items)))
        found = Search(looks=looks, pictures=Pictures(looks.items, read), cache=cache, progress=progress)
        shorter = np.minimum(looks.table["width"], looks.table["height"])
        if missing is None and (shorter >= (LEAST_SIDE if for_links else 0)).any():
            meter = Meter(progress, "computing features", len(looks.items))
            found.features = compute(looks.items, read, cache, network, meter)
            found.body = lambda pictures: network()(pictures)
        found.run()
    return found


def links_of(dataset: Dataset, found: Search) -> list[Link]:
    """Return links between copies, and between frames that a board kept in a row. Its other frames are alike because it does not move."""
    hashes = [item.hash for item in found.looks.items]
    frames = frames_of(dataset.lists.get(SOURCES_CSV, b""), f"{dataset.name}: {SOURCES_CSV}", set(hashes))
    boards = {one: board for board, taken in frames.items() for _, one in taken}
    links = [
        Link(one, other, pair.score, SAME if pair.by == "content" else COPY)
        for pair in found.pairs
        for one, other in [(hashes[pair.first], hashes[pair.second])]
        if one != other and (pair.by == "content" or one not in boards or boards[one] != boards.get(other))
    ]
    rows, thumbs = {one: row for row, one in enumerate(hashes)}, found.looks.table["thumb"]
    views = thumbs.reshape(len(thumbs), -1).astype(np.float32) if found.features is None else found.features
    for taken in frames.values():
        links += bursts(taken, views[[rows[one] for _, one in taken]])
    return links


def photo(item: Item, labels: Sequence[str]) -> dict[str, str]:
    return {"source": item.source, "split": item.split, "label": labels[item.label]}


def group_of(looks: Looks, pairs: Sequence[Pair], labels: Sequence[str]) -> findings.Group:
    """Return the group that pairs connect, for the report, with the image to keep first.

    That is one in the first split of PRECEDENCE, then the largest, then the first by name. If labels differ, none is kept: only people can
    say which label is right.
    """

    def rank(index: int) -> tuple[int, int, str]:
        item, size = looks.items[index], looks.table[index]
        return PRECEDENCE.index(item.split), -int(size["width"]) * int(size["height"]), item.source

    indices = {index for pair in pairs for index in pair[:2]}
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


def class_figures(items: Sequence[Item], group: np.ndarray, labels: Sequence[str]) -> tuple[findings.ClassFigures, ...]:
    """Return each class's images by split, and how many remain if each group, of which `group` has the number, counts as one."""
    counts = distinct(np.array([item.label for item in items], np.int64), group, len(labels)).tolist()
    members = ([item for item in items if item.label == number] for number in range(len(labels)))
    return tuple(
        findings.ClassFigures(label=label, images=by_split(part), distinct=count)
        for label, part, count in zip(labels, members, counts, strict=True)
    )


def odd_of(
    items: Sequence[Item], found: Sequence[tuple[int, float, float]], labels: Sequence[str]
) -> tuple[findings.Odd, ...]:
    return tuple(findings.Odd(**photo(items[index], labels), value=value, usual=usual) for index, value, usual in found)


PAGE, FIGURES = "inspection.html", "inspection.json"

SIDE, QUALITY = 128, 75  # longer side of a picture on the page, and its quality as JPEG

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


def write_inspection(report: findings.Inspection, dataset: Dataset, folder: Path) -> Path:
    """Write the page, which makes no request and has no script, and the JSON into a folder; return the page's path.

    Raises OutputError if one cannot be written.
    """
    template = templates("edgecnn.inspect").get_template("inspection.html.j2")
    shown = {"pictures": pictures(report, dataset), "verdict": verdict(report), "limits": SHOWN}
    write_atomic(folder / PAGE, template.render(report=report, **shown).encode())
    write_atomic(folder / FIGURES, canonical_json(to_json(report)))
    return folder / PAGE
