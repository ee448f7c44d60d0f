"""Which split each photo is in, and which photos show the same thing: a list next to the photos, in which nothing ever moves.

A new photo joins the group of the photo that it is most like, and so gets that split; two groups of the list never merge. The photos of
a new group share a split, and a photo like no other is divided by its content.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from edgecnn.data.csv_text import csv_text
from edgecnn.data.splits import SPLITS
from edgecnn.errors import DatasetError

FILE = "edgecnn-splits.csv"
SOURCES = "edgecnn-sources.csv"

COLUMNS = ("sha256", "group", "split")

BURST_S = 60.0
"""Frames of one board up to this many seconds apart are one burst: after that, somebody at a door is gone."""


class Side(NamedTuple):
    """A photo's split, and its group: photos of one group show the same thing, and share the split."""

    group: str
    split: str


Sides = Mapping[str, Side]
"""The side of each photo by the SHA-256 of its file."""


def splits_of(sides: Sides) -> dict[str, str]:
    return {one: side.split for one, side in sides.items()}


class Link(NamedTuple):
    """Two photos, by their hashes, that show the same thing, and how alike they are, 0 to 1."""

    first: str
    second: str
    score: float


def read_sides(data: bytes, where: str) -> dict[str, Side]:
    """Return the content of a list; DatasetError, which names `where`, if it is damaged."""
    sides: dict[str, Side] = {}
    splits: dict[str, str] = {}
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True))
    except (ValueError, csv.Error) as error:
        raise damaged(where, str(error)) from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise damaged(where, f"its first line is not {','.join(COLUMNS)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(COLUMNS) or not re.fullmatch("[0-9a-f]{64}", row[0]) or not row[1] or row[2] not in SPLITS:
            raise damaged(where, f"line {number} is not a SHA-256, a group, and train, validation or test")
        one, side = row[0], Side(row[1], row[2])
        if one in sides:
            raise damaged(where, f"line {number} repeats a photo")
        if splits.setdefault(side.group, side.split) != side.split:
            raise damaged(
                where,
                f"line {number} puts a group into {side.split} that an earlier line puts into {splits[side.group]}",
            )
        sides[one] = side
    return sides


def damaged(where: str, what: str) -> DatasetError:
    return DatasetError(
        f"{where} is damaged: {what}.\nPut back a copy of it, such as the {FILE} of your last run. If you remove it instead, all photos "
        "are divided anew, and some test photos may become training photos."
    )


def sides_text(sides: Sides) -> str:
    return csv_text(COLUMNS, ((one, *side) for one, side in sorted(sides.items())))


def bursts(data: bytes, where: str, photos: Container[str]) -> Iterator[Link]:
    """Yield links between photos of one burst, from the list of the photos' sources; DatasetError if that cannot be read."""
    frames: dict[str, list[tuple[float, str]]] = defaultdict(list)
    try:
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))):
            if row["sha256"] in photos and row["ts"] and row["board"] and math.isfinite(moment := float(row["ts"])):
                frames[row["board"]].append((moment, row["sha256"]))
    except (ValueError, KeyError, csv.Error) as error:
        raise DatasetError(f"{where} is damaged ({error}). Put back a copy of it, or remove the line.") from None
    for taken in frames.values():
        for (before, one), (after, other) in pairwise(sorted(taken)):
            if after - before <= BURST_S:
                yield Link(one, other, 1.0)


class Newcomers(NamedTuple):
    """The basis for the sides of new photos: each one's class and split by content, and the fraction of each split."""

    classes: Mapping[str, int]
    content: Mapping[str, str]
    shares: Mapping[str, float]


def updated(known: Sides, photos: Newcomers, links: Sequence[Link]) -> dict[str, Side]:
    """Return the known sides, unchanged, and those of the other photos."""
    groups = grouped(known, photos.classes, links)
    splits = {side.group: side.split for side in known.values()}
    fresh = {name: members for name, members in groups.items() if name not in splits}
    splits |= split_of_new(fresh, known, photos)
    return dict(known) | {one: Side(name, splits[name]) for name, members in groups.items() for one in members}


def grouped(known: Sides, photos: Mapping[str, int], links: Sequence[Link]) -> dict[str, list[str]]:
    """Return the new photos of each group by its name: the most alike join first, and two known groups stay separate."""
    node = {one: f"old {side.group}" for one, side in known.items()}
    node |= {one: one for one in photos if one not in known}
    above = {one: one for one in node.values()}

    def top(one: str) -> str:
        while above[one] != one:
            above[one] = one = above[above[one]]
        return one

    for link in sorted(links, key=lambda link: (-link.score, link.first, link.second)):
        ends = sorted((top(node[link.first]), top(node[link.second])), key=lambda one: not one.startswith("old "))
        if ends[0] != ends[1] and not ends[1].startswith("old "):
            above[ends[1]] = ends[0]
    members: dict[str, list[str]] = defaultdict(list)
    for one in sorted(photos):
        if one not in known:
            members[top(one)].append(one)
    names = {one: one.removeprefix("old ") if one.startswith("old ") else min(found) for one, found in members.items()}
    return {names[one]: found for one, found in members.items()}


def split_of_new(groups: Mapping[str, Sequence[str]], known: Sides, photos: Newcomers) -> dict[str, str]:
    """Return the split of each new group: that of its photos' content if they agree, else the one that has too few of its class."""
    counts = Counter((photos.classes[one], known[one].split) for one in photos.classes if one in known)
    totals = Counter(photos.classes.values())
    splits: dict[str, str] = {}

    def classes_of(members: Sequence[str]) -> Counter[int]:
        return Counter(photos.classes[one] for one in members)

    def put(name: str, split: str) -> None:
        splits[name] = split
        counts.update({(label, split): count for label, count in classes_of(groups[name]).items()})

    for name, members in groups.items():
        if len(found := {photos.content[one] for one in members}) == 1:
            put(name, found.pop())
    for name in sorted(groups.keys() - splits.keys(), key=lambda name: (-len(groups[name]), name)):
        label = classes_of(groups[name]).most_common(1)[0][0]
        put(name, max(SPLITS, key=lambda split: photos.shares[split] * totals[label] - counts[label, split]))
    for split in SPLITS[1:]:  # few groups may leave a split empty, which would prevent training
        if not sum(count for (_, other), count in counts.items() if other == split):
            spare = [
                name
                for name in groups
                if splits[name] == "train"
                and all(counts[label, "train"] > count for label, count in classes_of(groups[name]).items())
            ]
            if spare:
                name = min(spare, key=lambda name: (len(groups[name]), name))
                counts.subtract({(label, "train"): count for label, count in classes_of(groups[name]).items()})
                put(name, split)
    return splits


def tied(sides: Sides, links: Sequence[Link], known: Container[str] = ()) -> dict[str, str]:
    """Return the test photos that show the same thing as a photo of another split, directly or both as a third photo, and that photo.

    Of several, a `known` photo goes first, then the most direct one.
    """
    near: dict[str, list[str]] = defaultdict(list)
    for link in links:
        near[link.first].append(link.second)
        near[link.second].append(link.first)
    found = {}
    for one in sorted(near):
        others = [*near[one], *(third for second in near[one] for third in near[second])]
        if sides[one].split == "test" and (outside := [other for other in others if sides[other].split != "test"]):
            found[one] = next((other for other in outside if other in known), outside[0])
    return found
