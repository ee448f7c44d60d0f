"""Divide images into folds: each trains all models but one, and tests that one. Images that show the same thing share a fold.

The list is `folds.csv` of a run. Inside a fold, a part of its own training images is for validation: no choice sees the test images.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecnn.data.dataset import Dataset
from edgecnn.data.items import NAMED, Item
from edgecnn.errors import DatasetError, RunError
from edgecnn.files import csv_rows, csv_text, write_atomic
from edgecnn.labels import printable
from edgecnn.run_info import FoldInfo
from edgecnn.runs import FOLD, FOLD_INFO, FOLDS, Run

COLUMNS = ("sha256", "fold", "group")

VALIDATION_PARTS = 10
"""Number of parts of a fold's training images; one of them validates, as by default without folds."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """The fold, from 1, and the group of each image, by content hash; images of a group show the same thing."""

    count: int
    of: Mapping[str, int]
    groups: Mapping[str, str]

    def all_teach(self, dataset: Dataset) -> Dataset:
        return dataset.redivided(dict.fromkeys(self.of, "train"))

    def without(self, dataset: Dataset, fold: int, seed: int) -> Dataset:
        """Return the dataset of a fold's model: the fold itself is the test split, and a part of the other images validates."""
        others = [item for item in ordered(dataset) if self.of.get(item.hash, fold) != fold]
        classes = np.array([item.label for item in others])
        places = {one: "test" if own == fold else "train" for one, own in self.of.items()}
        part = validating(classes, [self.groups[item.hash] for item in others], seed)
        return dataset.redivided(places | {others[index].hash: "validation" for index in part})


def ordered(dataset: Dataset) -> list[Item]:
    """Return all images of a dataset, in an order that does not depend on their splits and names."""
    items = (item for part in dataset.items.values() for item in part)
    return sorted(items, key=lambda item: (item.hash, item.label))


def assign(dataset: Dataset, groups: Mapping[str, str], count: int, seed: int, *, validates: bool = True) -> Folds:
    """Divide all images of a dataset into folds, stratified by class; `groups` are those of images that show the same thing, by hash.

    `validates` is whether each fold's model needs validation images, in addition to those that it learns from.
    Raises DatasetError if the source has splits of its own, or there are too few images for a fold to train, validate and test.
    """
    if why := undivided(dataset, lambda item: groups.get(item.hash, item.hash)):
        raise DatasetError(why)
    items = ordered(dataset)
    found = {item.hash: groups.get(item.hash, item.hash) for item in items}
    classes = np.array([item.label for item in items])
    names = np.array([found[item.hash] for item in items])
    parts = stratified(classes, names.tolist(), count, seed)
    others = (np.delete(np.arange(len(items)), part) for part in parts)
    if validates and not all(validating(classes[other], names[other].tolist(), seed) for other in others):
        raise DatasetError(
            f"{dataset.name}: without one of {len(parts)} folds, no class has a second photo, or group of photos, for validation. Add "
            "photos, name smaller groups with --group-by, or fit only the last layer, which needs none: --quick instead of --folds."
        )
    of = {items[index].hash: fold for fold, part in enumerate(parts, 1) for index in part.tolist()}
    return Folds(count=len(parts), of=of, groups=found)


def undivided(dataset: Dataset, group_of: Callable[[Item], str]) -> str:
    """Return why a dataset cannot be divided into folds by groups of its images, for its user; "" if it can."""
    if own := sorted(dataset.given - {"train"}):
        return (
            f"{dataset.name} has its own {' and '.join(own)} images, but with folds every image trains and tests. "
            "Put all images into one set of class folders, or leave out --folds and --quick."
        )
    for number, label in enumerate(dataset.labels):
        items = (item for part in dataset.items.values() for item in part if item.label == number)
        if len(set(map(group_of, items))) < 2:
            return (
                f"{dataset.name}: the class {label!r} has fewer than two different photos: one for testing would leave none for training. "
                "Add photos, or leave out --folds and --quick."
            )
    return ""


def stratified(classes: np.ndarray, groups: Sequence[str], count: int, seed: int) -> list[np.ndarray]:
    """Return the indices of each of `count` parts, fewer if there are fewer images; classes are spread, a group stays in one part."""
    from sklearn.model_selection import StratifiedGroupKFold

    count = max(2, min(count, int(np.bincount(classes).max()), len(set(groups))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may have fewer images than there are parts
        split = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(classes, classes, groups)
        return [part for _, part in split if len(part)]


def validating(classes: np.ndarray, groups: Sequence[str], seed: int) -> list[int]:
    """Return the indices of the images of a part that validates, without classes that all are in that part; [] if there is no such part."""
    if np.bincount(classes).max() < 2 or len(set(groups)) < 2:
        return []
    for part in stratified(classes, groups, VALIDATION_PARTS, seed):
        left = np.delete(classes, part)
        if kept := [index for index in part.tolist() if classes[index] in left]:
            return kept
    return []


def write_folds(run: Run, folds: Folds) -> None:
    rows = ((one, fold, folds.groups[one]) for one, fold in sorted(folds.of.items()))
    write_atomic(run.file(FOLDS), csv_text(COLUMNS, rows))


def read_folds(run: Run) -> Folds | None:
    """Return the folds of a run, or None if they do not exist yet; RunError if the list is damaged."""
    path = run.file(FOLDS)
    if not path.exists():
        return None
    try:
        rows = csv_rows(path.read_bytes())
        of = {row["sha256"]: int(row["fold"]) for row in rows}
        return Folds(count=max(of.values()), of=of, groups={row["sha256"]: row["group"] for row in rows})
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}). Train again with --force, or into another folder.") from None


def added_images(folds: Folds, dataset: Dataset) -> int:
    """Return the number of images that are in no fold."""
    return sum(item.hash not in folds.of for part in dataset.items.values() for item in part)


def require_listed(run: Run, folds: Folds, dataset: Dataset) -> None:
    """Raise RunError if images of the folds are gone. Images added later are in no fold, and are left out."""
    present = {item.hash for part in dataset.items.values() for item in part}
    if missing := [one for one in folds.of if one not in present]:
        named = ", ".join(printable(one[:12]) for one in missing[:NAMED])
        raise RunError(
            f"{dataset.name} lacks or has changed {len(missing):,} of the {len(folds.of):,} images that {run.path} began with "
            f"(SHA-256 {named}). Put the original images back, or train again."
        )


def fold_infos(run: Run) -> tuple[FoldInfo, ...]:
    """Return the records of a run's finished folds, in order."""
    folds = read_folds(run)
    numbers = range(1, folds.count + 1) if folds else ()
    found = (Run(run.file(FOLD.format(fold=fold))).stored(FOLD_INFO, FoldInfo) for fold in numbers)
    return tuple(info for info in found if info is not None)
