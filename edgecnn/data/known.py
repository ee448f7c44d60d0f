"""The images that a run or a bundle began with, among those in the folder now: adding photos does not lock a run."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from edgecnn.data.items import Item
from edgecnn.data.splits import SPLITS, order
from edgecnn.tables import Struct

Divided = dict[str, tuple[Item, ...]]


class Known(Struct):
    """The record of the images: the classes, and each file by (split, class, SHA-256), if a list was stored."""

    labels: tuple[str, ...]
    files: Mapping[tuple[str, str, str], list[str]]

    def only(self, divided: Divided, labels: Sequence[str]) -> Divided:
        """Return the known items in their splits; without a list, all items of the known classes."""
        numbers = {labels.index(label): number for number, label in enumerate(self.labels) if label in labels}
        items = [
            dataclasses.replace(item, label=numbers[item.label])
            for part in divided.values()
            for item in part
            if item.label in numbers
        ]
        if self.files:
            items = list(self._listed(items))
        return {split: tuple(sorted((item for item in items if item.split == split), key=order)) for split in SPLITS}

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
