"""Divide images into training, validation and test: by content, by the list next to the photos, and by the groups that a user names.

The list, in which nothing ever moves, says which split and group each photo has. Photos of a group share a split and a fold. A user names
the groups by the photos' folder or a part of their names, such as photos of one pile, board or person. Otherwise a group is a photo with
its copies, or frames that a board kept one after another. There are no chains: a near copy joins the first photo of a group, never another
near copy.
"""

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from edgecnn.data.items import Item
from edgecnn.errors import DatasetError
from edgecnn.files import csv_rows, csv_text, sha256
from edgecnn.labels import SPLITS_CSV, plural
from edgecnn.recipe import DataRecipe

SPLITS = ("train", "validation", "test")


def divide(
    items: Iterable[Item], recipe: DataRecipe, places: Mapping[str, str] = MappingProxyType({})
) -> dict[str, tuple[Item, ...]]:
    """Give each image its split by u, its `place_of`, so that a new image moves no other; sort each split by content hash.

    u < test_fraction is test, u < test_fraction + validation_fraction validation, the rest training. The source's own splits do not change,
    and an image with a split in `places`, by hash, gets that one.
    """
    items = tuple(items)
    given = {item.split for item in items}
    test = 0.0 if "test" in given else recipe.test_fraction
    validation = 0.0 if "validation" in given else recipe.validation_fraction

    def split_of(item: Item) -> str:
        if item.split != "train":
            return item.split
        return places.get(item.hash) or split_at(position_of(item.hash), test, validation)

    return in_splits((item, split_of(item)) for item in items)


def in_splits(placed: Iterable[tuple[Item, str]]) -> dict[str, tuple[Item, ...]]:
    """Return images in the split given with each, sorted by content hash."""
    divided: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item, split in placed:
        divided[split].append(item if split == item.split else replace(item, split=split))
    return {split: tuple(sorted(divided[split], key=order)) for split in SPLITS}


def position_of(content_hash: str) -> float:
    """Return an image's position in [0, 1) by its content: int(hash[:16], 16) / 2**64."""
    return int(content_hash[:16], 16) / 2**64


def split_at(place: float, test: float, validation: float) -> str:
    """Return the split at a place in [0, 1), by the fractions of test and validation."""
    return "test" if place < test else "validation" if place < test + validation else "train"


def order(item: Item) -> tuple[str, int, str]:
    return item.hash, item.label, item.source


def check(divided: dict[str, tuple[Item, ...]], labels: Sequence[str], recipe: DataRecipe, where: str) -> None:
    """Raise DatasetError for a class without training images or an empty split, with the number of images needed."""
    check_classes((item.label for item in divided["train"]), labels, recipe, where)
    for split, fraction in (("validation", recipe.validation_fraction), ("test", recipe.test_fraction)):
        if not divided[split]:
            raise DatasetError(
                f"{where}: the {split} split is empty; it takes {fraction:.0%} of the images, in whole groups.\n"
                f"Add images (an empty split is unlikely with about {_needed(1 - fraction)} in total), name smaller groups, raise "
                f"data.{split}_fraction, or add a {split} folder."
            )


def check_classes(classes: Iterable[int], labels: Sequence[str], recipe: DataRecipe, where: str) -> None:
    """Raise DatasetError if a class has no training image; `classes` are those of the training images."""
    present = set(classes)
    missing = [label for index, label in enumerate(labels) if index not in present]
    if missing:
        kept_out = min(recipe.validation_fraction + recipe.test_fraction, 0.99)
        raise DatasetError(
            f"{where}: no training images for {', '.join(map(repr, missing))} (all are in validation or test, or "
            f"there are none).\nGive each class at least {_needed(kept_out)} training images, or lower "
            "data.validation_fraction and data.test_fraction."
        )


def _needed(chance: float) -> int:
    """Return how many independent draws make it unlikely (1 in 1000) that an event of this chance occurs in all of them."""
    return math.ceil(math.log(1e-3) / math.log(chance))


def digest(items: Iterable[Item], labels: Sequence[str], with_split: bool = False) -> str:
    """Return the SHA-256 over the sorted ([split,] label, content hash) of images: order and file names do not matter."""
    names = [json.dumps(label) for label in labels]
    lines = (f"{item.split} " * with_split + f"{names[item.label]} {item.hash}\n" for item in items)
    return sha256("".join(sorted(lines)).encode())


COLUMNS = ("sha256", "group", "split", "path", "rule")
FORMER = COLUMNS[:3]
"""The columns of a list of 0.2.0, which joined all similar photos."""

PHOTO, SAME, COPY, BURST = "photo", "same", "copy", "burst"
"""Rules that make a group: a photo by itself, equal pixels, a near copy of the group's first photo, a board's frames in a row. Any other
rule is the user's own."""

MOST = 20_000
"""With more photos, content alone decides about each group: shares are then right without counting."""


class SplitGroup(NamedTuple):
    """A photo's group and split, its path when the list was written, for people, and the rule that put it into the group."""

    group: str
    split: str
    path: str = ""
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'a photo'} of the group {self.group!r}"


SplitGroups = Mapping[str, SplitGroup]
"""The split group of each photo by the SHA-256 of its file."""


def splits_of(split_groups: SplitGroups) -> dict[str, str]:
    return {one: split_group.split for one, split_group in split_groups.items()}


class Link(NamedTuple):
    """Two photos, by their hashes, that belong together, how alike they are, 0 to 1, and the rule: SAME, COPY or BURST."""

    first: str
    second: str
    score: float
    rule: str


def read_split_groups(data: bytes, where: str) -> dict[str, SplitGroup]:
    """Return the content of a list; DatasetError, which names `where`, if it is damaged or puts a group into two splits."""
    split_groups: dict[str, SplitGroup] = {}
    lines: dict[str, tuple[int, SplitGroup]] = {}
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True))
    except (ValueError, csv.Error) as error:
        raise damaged(where, str(error)) from None
    if not rows or tuple(rows[0]) not in (COLUMNS, FORMER):
        raise damaged(where, f"its first line is not {','.join(COLUMNS)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]) or not re.fullmatch("[0-9a-f]{64}", row[0]) or not row[1] or row[2] not in SPLITS:
            raise damaged(where, f"line {number} is not a SHA-256, a group, and train, validation or test")
        one, split_group = row[0], SplitGroup(*row[1:])
        if one in split_groups:
            raise damaged(where, f"line {number} repeats a photo")
        first, other = lines.setdefault(split_group.group, (number, split_group))
        if other.split != split_group.split:
            raise DatasetError(
                f"{where}: line {first} puts {other} into {other.split}, and line {number} puts {split_group} into {split_group.split}. "
                "The photos of a group share a split: change one of the lines, or give one of the photos a group of its own."
            )
        split_groups[one] = split_group
    if len(rules := {split_group.rule for split_group in split_groups.values() if is_users(split_group.rule)}) > 1:
        raise damaged(where, f"its rules are of two ways to group photos, {' and '.join(map(repr, sorted(rules)))}")
    return split_groups


def is_users(rule: str) -> bool:
    return rule not in ("", PHOTO, SAME, COPY, BURST)


def rule_of(split_groups: SplitGroups) -> str:
    """Return the user's rule of a list, or "" if its groups are photos, copies and bursts."""
    return next((split_group.rule for split_group in split_groups.values() if is_users(split_group.rule)), "")


def is_former(split_groups: SplitGroups) -> bool:
    """Return whether a list is one of 0.2.0."""
    return bool(split_groups) and not any(split_group.rule for split_group in split_groups.values())


def damaged(where: str, what: str) -> DatasetError:
    return DatasetError(
        f"{where} is damaged: {what}.\nPut back a copy of it, such as the {SPLITS_CSV} of your last run. If you remove it instead, all "
        "photos are divided anew, and some test photos may become training photos."
    )


def split_groups_text(split_groups: SplitGroups) -> str:
    columns = FORMER if is_former(split_groups) else COLUMNS
    return csv_text(columns, ((one, *split_group)[: len(columns)] for one, split_group in sorted(split_groups.items())))


def frames_of(data: bytes, where: str, photos: Container[str]) -> dict[str, list[tuple[float, str]]]:
    """Return the time and hash of each board's frames, in order, from the list of the photos' sources; DatasetError if that is damaged."""
    frames: dict[str, list[tuple[float, str]]] = defaultdict(list)
    try:
        for row in csv_rows(data):
            if row["sha256"] in photos and row["ts"] and row["board"] and math.isfinite(moment := float(row["ts"])):
                frames[row["board"]].append((moment, row["sha256"]))
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{where} is damaged ({error}). Put back a copy of it, or remove the line.") from None
    return {board: sorted(taken) for board, taken in frames.items()}


class Grouping(NamedTuple):
    """The user's rule, "" for none, each photo's group by its hash, the listed ones that remain, and a line on what a user should know."""

    rule: str = ""
    texts: Mapping[str, str] = MappingProxyType({})
    known: SplitGroups = MappingProxyType({})
    line: str = ""


def updated(
    named: Grouping, photos: Mapping[str, int], shares: Mapping[str, float], links: Sequence[Link]
) -> dict[str, SplitGroup]:
    """Return the listed split groups that remain, unchanged, and those of the other photos.

    `photos` are the classes of all photos, by hash, and `shares` the splits' fractions.
    """
    known = named.known
    found = {one: place for one, place in grouped(named, photos, links).items() if one not in known}
    members: dict[str, list[str]] = defaultdict(list)
    for one in sorted(found):
        members[found[one][0]].append(one)
    splits = {split_group.group: split_group.split for split_group in known.values()}
    splits |= split_of_new({name: ones for name, ones in members.items() if name not in splits}, known, photos, shares)
    former = is_former(known)
    return dict(known) | {
        one: SplitGroup(group, splits[group], rule="" if former else rule) for one, (group, rule) in found.items()
    }


def grouped(named: Grouping, photos: Mapping[str, int], links: Sequence[Link]) -> dict[str, tuple[str, str]]:
    """Return each photo's group and the rule for it: listed, the user's, frames in a row, then copies of a group's first photo."""
    place = {one: (text, named.rule) for one, text in named.texts.items() if one in photos}
    place |= {one: (split_group.group, split_group.rule) for one, split_group in named.known.items()}
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
    for one in sorted(place.keys() & photos.keys(), key=lambda one: (one != place[one][0], one)):
        firsts.setdefault(place[one][0], one)
    joined = {one for one, (_, rule) in place.items() if rule == BURST or is_users(rule)} | {*firsts.values()}
    left = [one for one in photos if one not in place and one not in equals]
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


def split_of_new(
    groups: Mapping[str, Sequence[str]], known: SplitGroups, photos: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, str]:
    """Return the split of each new group, so that each split gets its share of all photos and of each class, as near as groups allow.

    The largest group goes first, each to the split where sum(n (n + 2 h) / t) is smallest: it is what n more photos of a class, next to h
    in the split, add to sum((h - t)² / t) over classes and all photos, with t the split's share. Above MOST photos, a hash decides.
    """
    if len(photos) > MOST:
        places = {name: position_of(name if name in photos else sha256(name.encode())) for name in groups}
        return {name: split_at(place, shares["test"], shares["validation"]) for name, place in places.items()}
    classes = sorted(set(photos.values()))

    def counted(ones: Iterable[str]) -> np.ndarray:
        counts = Counter(photos[one] for one in ones)
        return np.array([*(counts[label] for label in classes), counts.total()])

    sizes = {name: counted(ones) for name, ones in groups.items()}
    held = {split: counted(one for one in photos if one in known and known[one].split == split) for split in SPLITS}
    whole = counted(photos)
    aims = {split: np.maximum(shares[split] * whole, 1e-9) for split in SPLITS}
    order = sorted(groups, key=lambda name: (-len(groups[name]), sha256(name.encode())))
    splits: dict[str, str] = {}
    for name in order:
        n = sizes[name]
        costs = {split: float((n * (n + 2 * held[split]) / aims[split]).sum()) for split in reversed(SPLITS)}
        splits[name] = min(costs, key=costs.__getitem__)
        held[splits[name]] += n
    # training needs validation, and each class a test, if that leaves it training photos
    for column, split in ((-1, "validation"), (-1, "test"), *((column, "test") for column in range(len(classes)))):
        for name in reversed(order):
            n = sizes[name]
            if held[split][column]:
                break
            if splits[name] == "train" and n[column] and ((held["train"] > n) | (n == 0)).all():
                splits[name] = split
                held["train"] -= n
                held[split] += n
    return splits


def tied(split_groups: SplitGroups, links: Sequence[Link], known: Container[str] = ()) -> dict[str, str]:
    """Return the test photos that are linked with a photo of another split, and that photo: a `known` one, if there are several."""
    found: dict[str, str] = {}
    for one, other in (pair for link in links for pair in (link[:2], link[1::-1])):
        if split_groups[one].split == "test" != split_groups[other].split and (
            one not in found or (found[one] not in known and other in known)
        ):
            found[one] = other
    return found


FOLDER = "folder"
"""The rule of a list whose groups are the folders below the class folders."""

NONE = "none"

BY_FOLDER = "(.+)/"
"""The pattern that gives the same groups."""

FEWEST = 3  # groups of each class, one for each split, without which folders are no groups


def texts_by(rule: str, items: Iterable[Item]) -> dict[str, str]:
    """Return the group of each photo by its hash, without the photos that the rule gives none; a file that is there twice has its first."""
    pattern = re.compile(BY_FOLDER if rule == FOLDER else rule)
    found: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item.source):
        match = pattern.search(item.below)
        if text := match and (match[1] if pattern.groups else match[0]):
            found.setdefault(item.hash, text)
    return found


def grouping(items: Sequence[Item], labels: Sequence[str], asked: str | None, known: SplitGroups) -> Grouping:
    """Return the groups of a user's photos, by the recipe's `asked`, else by the list's own rule, else by folder.

    Raises DatasetError if `asked` matches no name, gives fewer than FEWEST groups, or each class only one.
    """
    if asked is None and known:
        rule = rule_of(known)
        return Grouping(rule, texts_by(rule, items) if rule else {}, known)
    rule = asked or FOLDER
    if rule == NONE:
        return Grouping(known={} if rule_of(known) else known)
    texts = texts_by(rule, items)
    by_class: list[set[str]] = [set() for _ in labels]
    for item in items:
        by_class[item.label].add(texts.get(item.hash, item.hash))
    if asked is None:
        if not texts:
            return Grouping()
        for label, found in zip(labels, by_class, strict=True):
            if len(found) < FEWEST:
                has = f"{label!r} has {plural(len(found), 'group')}, expected {FEWEST} or more"
                return Grouping(line=f"folders below the class folders are ignored: {has}")
    elif not texts:
        raise DatasetError(
            f"--group-by '{asked}' matches none of {plural(len(items), 'name')}, such as {items[0].below!r}. It sees the path below the "
            "class folder, without the ending."
        )
    elif (count := len(set().union(*by_class))) < FEWEST or max(map(len, by_class)) < 2:
        raise DatasetError(
            f"--group-by '{asked}' gives {plural(count, 'group')}, such as {next(iter(texts.values()))!r}, and at most "
            f"{max(map(len, by_class))} to a class. Training, validation and test need one each, and a class with one group would train or "
            "test, but not both. Match a part of the name that differs within a class."
        )
    return Grouping(rule, texts, known if rule_of(known) == rule else {})
