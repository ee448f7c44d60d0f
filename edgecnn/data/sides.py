"""Which split and group each photo has: a list next to the photos, in which nothing ever moves.

Photos of a group share a split. Whoever knows which photos belong together names the groups; otherwise a group is a photo with its copies,
or frames that a board kept one after another. There are no chains: a near copy joins the first photo of a group, never another near copy.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from edgecnn.data.csv_text import csv_text
from edgecnn.data.splits import SPLITS, place_of, split_at
from edgecnn.errors import DatasetError
from edgecnn.files import sha256

FILE = "edgecnn-splits.csv"
SOURCES = "edgecnn-sources.csv"

COLUMNS = ("sha256", "group", "split", "path", "rule")
FORMER = COLUMNS[:3]
"""The columns of a list of 0.2.0, which joined all similar photos."""

PHOTO, SAME, COPY, BURST = "photo", "same", "copy", "burst"
"""Rules that make a group: a photo by itself, equal pixels, a near copy of the group's first photo, a board's frames in a row. Any other
rule is the user's own."""

MOST = 20_000
"""With more photos, content alone decides about each group: shares are then right without counting."""


class Side(NamedTuple):
    """A photo's group and split, its path when the list was written, for people, and the rule that put it into the group."""

    group: str
    split: str
    path: str = ""
    rule: str = ""


Sides = Mapping[str, Side]
"""The side of each photo by the SHA-256 of its file."""


def splits_of(sides: Sides) -> dict[str, str]:
    return {one: side.split for one, side in sides.items()}


class Link(NamedTuple):
    """Two photos, by their hashes, that belong together, how alike they are, 0 to 1, and the rule: SAME, COPY or BURST."""

    first: str
    second: str
    score: float
    rule: str


def read_sides(data: bytes, where: str) -> dict[str, Side]:
    """Return the content of a list; DatasetError, which names `where`, if it is damaged or puts a group into two splits."""
    sides: dict[str, Side] = {}
    lines: dict[str, tuple[int, Side]] = {}
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True))
    except (ValueError, csv.Error) as error:
        raise damaged(where, str(error)) from None
    if not rows or tuple(rows[0]) not in (COLUMNS, FORMER):
        raise damaged(where, f"its first line is not {','.join(COLUMNS)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]) or not re.fullmatch("[0-9a-f]{64}", row[0]) or not row[1] or row[2] not in SPLITS:
            raise damaged(where, f"line {number} is not a SHA-256, a group, and train, validation or test")
        one, side = row[0], Side(*row[1:])
        if one in sides:
            raise damaged(where, f"line {number} repeats a photo")
        first, other = lines.setdefault(side.group, (number, side))
        if other.split != side.split:
            raise DatasetError(
                f"{where}: line {first} puts {named(other)} into {other.split}, and line {number} puts {named(side)} into {side.split}. "
                "The photos of a group share a split: change one of the lines, or give one of the photos a group of its own."
            )
        sides[one] = side
    if len(rules := {side.rule for side in sides.values() if is_users(side.rule)}) > 1:
        raise damaged(where, f"its rules are of two ways to group photos, {' and '.join(map(repr, sorted(rules)))}")
    return sides


def named(side: Side) -> str:
    return f"{side.path or 'a photo'} of the group {side.group!r}"


def is_users(rule: str) -> bool:
    return rule not in ("", PHOTO, SAME, COPY, BURST)


def rule_of(sides: Sides) -> str:
    """Return the user's rule of a list, or "" if its groups are photos, copies and bursts."""
    return next((side.rule for side in sides.values() if is_users(side.rule)), "")


def is_former(sides: Sides) -> bool:
    """Return whether a list is one of 0.2.0."""
    return bool(sides) and not any(side.rule for side in sides.values())


def damaged(where: str, what: str) -> DatasetError:
    return DatasetError(
        f"{where} is damaged: {what}.\nPut back a copy of it, such as the {FILE} of your last run. If you remove it instead, all photos "
        "are divided anew, and some test photos may become training photos."
    )


def sides_text(sides: Sides) -> str:
    columns = FORMER if is_former(sides) else COLUMNS
    return csv_text(columns, ((one, *side)[: len(columns)] for one, side in sorted(sides.items())))


def frames_of(data: bytes, where: str, photos: Container[str]) -> dict[str, list[tuple[float, str]]]:
    """Return the time and hash of each board's frames, in order, from the list of the photos' sources; DatasetError if that is damaged."""
    frames: dict[str, list[tuple[float, str]]] = defaultdict(list)
    try:
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))):
            if row["sha256"] in photos and row["ts"] and row["board"] and math.isfinite(moment := float(row["ts"])):
                frames[row["board"]].append((moment, row["sha256"]))
    except (ValueError, KeyError, csv.Error) as error:
        raise DatasetError(f"{where} is damaged ({error}). Put back a copy of it, or remove the line.") from None
    return {board: sorted(taken) for board, taken in frames.items()}


class Newcomers(NamedTuple):
    """The basis for the sides of new photos: all photos' classes, the groups and the rule that the user gave, and each split's fraction."""

    classes: Mapping[str, int]
    shares: Mapping[str, float]
    texts: Mapping[str, str] = MappingProxyType({})
    rule: str = ""


def updated(known: Sides, photos: Newcomers, links: Sequence[Link]) -> dict[str, Side]:
    """Return the known sides, unchanged, and those of the other photos."""
    found = {one: place for one, place in grouped(known, photos, links).items() if one not in known}
    members: dict[str, list[str]] = defaultdict(list)
    for one in sorted(found):
        members[found[one][0]].append(one)
    splits = {side.group: side.split for side in known.values()}
    splits |= split_of_new({name: ones for name, ones in members.items() if name not in splits}, known, photos)
    former = is_former(known)
    return dict(known) | {
        one: Side(group, splits[group], rule="" if former else rule) for one, (group, rule) in found.items()
    }


def grouped(known: Sides, photos: Newcomers, links: Sequence[Link]) -> dict[str, tuple[str, str]]:
    """Return each photo's group and the rule for it: listed, the user's, frames in a row, then copies of a group's first photo."""
    place = {one: (photos.texts[one], photos.rule) for one in photos.classes if one in photos.texts}
    place |= {one: (side.group, side.rule) for one, side in known.items()}
    bursts, same = ([(link.first, link.second) for link in links if link.rule == rule] for rule in (BURST, SAME))
    backwards = [pair[::-1] for pair in reversed(bursts)]
    spread(place, [*bursts, *backwards], BURST)
    spread(place, bursts, BURST, begin=True)
    spread(place, [*same, *(pair[::-1] for pair in same)], SAME)
    equals = {second for _, second in same}  # each follows the first photo of its pixels, below

    near: dict[str, list[str]] = defaultdict(list)
    for link in sorted(links, key=lambda link: (-link.score, link.first, link.second)):
        if link.rule == COPY:
            near[link.first].append(link.second)
            near[link.second].append(link.first)
    firsts: dict[str, str] = {}
    for one in sorted(place.keys() & photos.classes.keys(), key=lambda one: (one != place[one][0], one)):
        firsts.setdefault(place[one][0], one)
    joined = {one for one, (_, rule) in place.items() if rule == BURST or is_users(rule)} | {*firsts.values()}
    left = [one for one in photos.classes if one not in place and one not in equals]
    for one in left:
        if other := next((other for other in near[one] if other in joined), None):
            place[one] = place[other][0], COPY
    for one in sorted(left, key=lambda one: (-len(near[one]), one)):
        if one not in place:
            copies = [other for other in near[one] if other not in place and other not in equals]
            place[one] = one, PHOTO
            place |= dict.fromkeys(copies, (one, COPY))
    spread(place, same, SAME, begin=True)
    return place


def spread(place: dict[str, tuple[str, str]], pairs: Iterable[tuple[str, str]], rule: str, begin: bool = False) -> None:
    """Give the second photo of each pair the group of the first, unless it has one; with `begin`, the first may begin a group."""
    for one, other in pairs:
        if begin and one not in place and other not in place:
            place[one] = one, rule
        if one in place and other not in place:
            place[other] = place[one][0], rule


ALL = -1  # counts photos of all classes


def split_of_new(groups: Mapping[str, Sequence[str]], known: Sides, photos: Newcomers) -> dict[str, str]:
    """Return the split of each new group, so that each split gets its share of all photos and of each class, as near as groups allow.

    The largest group goes first, each to the split where sum(n (n + 2 h) / t) is smallest: it is what n more photos of a class, next to h
    in the split, add to sum((h - t)² / t) over classes and all photos, with t the split's share. Above MOST photos, a hash decides.
    """
    if len(photos.classes) > MOST:
        places = {name: place_of(name if name in photos.classes else sha256(name.encode())) for name in groups}
        return {
            name: split_at(place, photos.shares["test"], photos.shares["validation"]) for name, place in places.items()
        }
    totals = Counter((*photos.classes.values(), *[ALL] * len(photos.classes)))
    counts = Counter(
        (label, known[one].split) for one in photos.classes if one in known for label in (photos.classes[one], ALL)
    )
    sizes = {
        name: Counter((*(photos.classes[one] for one in ones), *[ALL] * len(ones))) for name, ones in groups.items()
    }
    order = sorted(groups, key=lambda name: (-len(groups[name]), sha256(name.encode())))
    splits: dict[str, str] = {}

    def costs(name: str, split: str) -> float:
        aims = {label: max(photos.shares[split] * totals[label], 1e-9) for label in sizes[name]}
        return sum(n * (n + 2 * counts[label, split]) / aims[label] for label, n in sizes[name].items())

    def put(name: str, split: str) -> None:
        if name in splits:
            counts.subtract({(label, splits[name]): n for label, n in sizes[name].items()})
        splits[name] = split
        counts.update({(label, split): n for label, n in sizes[name].items()})

    for name in order:
        put(name, min(reversed(SPLITS), key=lambda split: costs(name, split)))
    # training needs validation, and each class a test, if that leaves it training photos
    for label, split in ((ALL, "validation"), *((label, "test") for label in sorted(totals))):
        spare = (
            name for name in reversed(order)
            if splits[name] == "train" and sizes[name][label] and all(counts[one, "train"] > n for one, n in sizes[name].items())
        )  # fmt: skip
        if not counts[label, split] and (name := next(spare, "")):
            put(name, split)
    return splits


def tied(sides: Sides, links: Sequence[Link], known: Container[str] = ()) -> dict[str, str]:
    """Return the test photos that are linked with a photo of another split, and that photo: a `known` one, if there are several."""
    found: dict[str, str] = {}
    for one, other in (pair for link in links for pair in (link[:2], link[1::-1])):
        if sides[one].split == "test" != sides[other].split and (
            one not in found or (found[one] not in known and other in known)
        ):
            found[one] = other
    return found
