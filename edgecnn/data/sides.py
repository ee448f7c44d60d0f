"""Which split each photo is in, and which photos show the same: a list next to the photos, in which nothing ever moves.

A new photo joins the group of the one that it is most like, and so its split; two groups of the list never become one. Groups that are
new share a split, and what shows the same as nothing else is divided by its content.
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
"""Seconds between two frames of one board up to which they are of one burst: somebody at a door is gone after that."""


class Side(NamedTuple):
    """A photo's split, and its group: photos of one group show the same, and share the split."""

    group: str
    split: str


Sides = Mapping[str, Side]
"""The side of each photo by the SHA-256 of its file."""


def splits_of(sides: Sides) -> dict[str, str]:
    return {one: side.split for one, side in sides.items()}


class Link(NamedTuple):
    """Two photos, by their hashes, that show the same, and how alike they are, 0 to 1."""

    first: str
    second: str
    score: float


def read_sides(data: bytes, where: str) -> dict[str, Side]:
    """Return what a list says; `where` it is names it in a DatasetError, if it is damaged."""
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
            raise damaged(where, f"line {number} has a photo for the second time")
        if splits.setdefault(side.group, side.split) != side.split:
            raise damaged(where, f"line {number} has a group in {side.split} that is in {splits[side.group]} before")
        sides[one] = side
    return sides


def damaged(where: str, what: str) -> DatasetError:
    return DatasetError(
        f"{where} is damaged: {what}.\nPut back a copy of it, such as the {FILE} of your last run. If you remove it instead, all photos "
        "are divided anew, and some that tested may teach."
    )


def sides_text(sides: Sides) -> str:
    return csv_text(COLUMNS, ((one, *side) for one, side in sorted(sides.items())))


def bursts(data: bytes, where: str, photos: Container[str]) -> Iterator[Link]:
    """Yield links between photos of one burst, by the list of where photos come from; DatasetError if that cannot be read."""
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
    """What the sides of new photos are decided by: each one's class and its split by content, and the share of each split."""

    classes: Mapping[str, int]
    content: Mapping[str, str]
    shares: Mapping[str, float]


def updated(known: Sides, photos: Newcomers, links: Sequence[Link]) -> dict[str, Side]:
    """Return the known sides, which stay, and those of the other photos."""
    groups = grouped(known, photos.classes, links)
    splits = {side.group: side.split for side in known.values()}
    fresh = {name: members for name, members in groups.items() if name not in splits}
    splits |= split_of_new(fresh, known, photos)
    return dict(known) | {one: Side(name, splits[name]) for name, members in groups.items() for one in members}


def grouped(known: Sides, photos: Mapping[str, int], links: Sequence[Link]) -> dict[str, list[str]]:
    """Return the new photos of each group by its name: the most alike meet first, and two known groups stay two."""
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
    """Return the split of each new group: that of its photos' content if it is one, else the one of which its class has too little."""
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
    for split in SPLITS[1:]:  # few groups may leave one of them empty, and then there is no training
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
    """Return the test photos that show the same as a photo of another split, and that one: directly, or both the same as a third.

    Of several the one is a `known` photo, else the most direct.
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
