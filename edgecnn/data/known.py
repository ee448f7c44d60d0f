"""The images that a run or a bundle began with, among those in the folder now: adding photos does not lock a run."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgecnn.data.items import Item
from edgecnn.data.splits import SPLITS, order, split_hash
from edgecnn.tables import Struct

Divided = dict[str, tuple[Item, ...]]


class Known(Struct):
    """The record of the images: each split's hash and size, and each file by (split, class, SHA-256), if a list was stored."""

    labels: tuple[str, ...]
    hashes: Mapping[str, str]
    sizes: Mapping[str, int]
    files: Mapping[tuple[str, str, str], list[str]]

    def only(self, divided: Divided, labels: Sequence[str]) -> Divided:
        """Return the known items in their splits; without a list, the oldest items of each split if they give its hash, else all."""
        numbers = {labels.index(label): number for number, label in enumerate(self.labels) if label in labels}
        items = [
            dataclasses.replace(item, label=numbers[item.label])
            for part in divided.values()
            for item in part
            if item.label in numbers
        ]
        if self.files:
            items = list(self._listed(items))
        kept = {split: tuple(sorted((item for item in items if item.split == split), key=order)) for split in SPLITS}
        return kept if self.files else {split: self._oldest(split, part) for split, part in kept.items()}

    def holds(self, divided: Divided) -> bool:
        """Return whether the splits are the recorded ones."""
        return all(split_hash(divided.get(split, ()), self.labels) == one for split, one in self.hashes.items())

    def missing(self, divided: Divided, split: str) -> list[str]:
        """Return the listed files of a split that are not among the items."""
        found = Counter((split, self.labels[item.label], item.hash) for item in divided[split])
        return [file for key, files in self.files.items() if key[0] == split for file in files[found[key] :]]

    def _listed(self, items: Sequence[Item]) -> Iterator[Item]:
        left = {key: len(files) for key, files in self.files.items()}
        moved = []
        for item in items:
            key = (item.split, self.labels[item.label], item.hash)
            if left.get(key):
                left[key] -= 1
                yield item
            else:
                moved.append(item)
        for item in moved:
            for split in SPLITS:
                key = (split, self.labels[item.label], item.hash)
                if left.get(key):
                    left[key] -= 1
                    yield dataclasses.replace(item, split=split)
                    break

    def _oldest(self, split: str, items: tuple[Item, ...]) -> tuple[Item, ...]:
        count = self.sizes.get(split, len(items))
        if len(items) > count and all(isinstance(item.handle, Path) for item in items):
            for time in ("st_mtime_ns", "st_ctime_ns"):
                oldest = sorted(items, key=lambda item: getattr(item.handle.stat(), time))[:count]
                if split_hash(oldest, self.labels) == self.hashes.get(split):
                    return tuple(sorted(oldest, key=order))
        return items
