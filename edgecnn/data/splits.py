"""Divide images into training, validation and test by content, never by order or name."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from edgecnn.data.items import Item
from edgecnn.errors import DatasetError
from edgecnn.files import sha256
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
    divided: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in items:
        split = item.split
        if split == "train" and item.hash in places:
            split = places[item.hash]
        elif split == "train":
            split = split_at(place_of(item.hash), test, validation)
        divided[split].append(item if split == item.split else replace(item, split=split))
    return {split: tuple(sorted(divided[split], key=order)) for split in SPLITS}


def place_of(content_hash: str) -> float:
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


def split_hash(items: Iterable[Item], labels: Sequence[str]) -> str:
    """Return the SHA-256 over a split's sorted (label, content hash) pairs: order and file names do not matter."""
    names = [json.dumps(label) for label in labels]
    return sha256("".join(sorted(f"{names[item.label]} {item.hash}\n" for item in items)).encode())


def fingerprint(divided: dict[str, tuple[Item, ...]], labels: Sequence[str]) -> str:
    """Return the SHA-256 over the sorted (split, label, content hash) of every image."""
    names = [json.dumps(label) for label in labels]
    lines = (f"{split} {names[item.label]} {item.hash}\n" for split, items in divided.items() for item in items)
    return sha256("".join(sorted(lines)).encode())
