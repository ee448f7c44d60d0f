"""The groups that a user names: photos of one pile, board or person share a split and a fold, by their folder or a part of their names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from edgecnn.data.items import Item
from edgecnn.data.sides import Sides, rule_of
from edgecnn.errors import DatasetError
from edgecnn.labels import plural

FOLDER = "folder"
"""The rule of a list whose groups are the folders below the class folders."""

NONE = "none"

BY_FOLDER = "(.+)/"
"""The pattern that gives the same groups."""

FEWEST = 3  # groups of each class, one for each split, without which folders are no groups


class Grouping(NamedTuple):
    """The user's rule, "" for none, each photo's group by its hash, the listed sides that remain, and a line on what a user should know."""

    rule: str = ""
    texts: Mapping[str, str] = MappingProxyType({})
    known: Sides = MappingProxyType({})
    line: str = ""


def texts_by(rule: str, items: Iterable[Item]) -> dict[str, str]:
    """Return the group of each photo by its hash, without the photos that the rule gives none; a file that is there twice has its first."""
    pattern = re.compile(BY_FOLDER if rule == FOLDER else rule)
    found: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item.source):
        match = pattern.search(item.below)
        if text := match and (match[1] if pattern.groups else match[0]):
            found.setdefault(item.hash, text)
    return found


def grouping(items: Sequence[Item], labels: Sequence[str], asked: str | None, known: Sides) -> Grouping:
    """Return the groups of a user's photos, by the recipe's `asked`, else by the list's own rule, else by folder.

    Raises:
        DatasetError: if `asked` matches no name, gives fewer than FEWEST groups, or each class only one.
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
        few = [label for label, found in zip(labels, by_class, strict=True) if len(found) < FEWEST]
        if not texts or few:
            if not texts:
                return Grouping()
            has = plural(len(by_class[labels.index(few[0])]), "group")
            return Grouping(
                line=f"folders below the class folders are ignored: {few[0]!r} has {has}, expected {FEWEST} or more"
            )
    elif not texts:
        raise DatasetError(
            f"--group-by '{asked}' matches none of {plural(len(items), 'name')}, such as {items[0].below!r}. It sees the path below the "
            "class folder, without the ending."
        )
    elif (count := len(set().union(*by_class))) < FEWEST:
        raise DatasetError(
            f"--group-by '{asked}' gives {plural(count, 'group')}, such as {next(iter(texts.values()))!r}; training, validation and test "
            "need one each. Match the part of the name that differs from one group to the next."
        )
    elif max(map(len, by_class)) < 2:
        raise DatasetError(
            f"--group-by '{asked}' gives each class one group, such as {next(iter(texts.values()))!r} for {labels[0]!r}: it would train, "
            "and nothing would test. Match a part of the name that differs within a class."
        )
    return Grouping(rule, texts, known if rule_of(known) == rule else {})
