"""Photos that a model's own training never saw, as the test split of data whose photos may have taught it."""

import dataclasses

import numpy as np

from edgecnn.data.items import Item, LabelledImages
from edgecnn.errors import DatasetError


def with_unseen(listed: LabelledImages, unseen: LabelledImages) -> LabelledImages:
    """Return the images of a source for training and validation, and those of another for test.

    Raises DatasetError if the other has a class that the source lacks.
    """
    if more := sorted(set(unseen.labels) - set(listed.labels)):
        raise DatasetError(
            f"{unseen.name} has classes that {listed.name} lacks: {', '.join(map(repr, more[:4]))}. "
            "Expected photos of the same classes, in folders of the same names."
        )
    numbers = [listed.labels.index(label) for label in unseen.labels]
    known = [item for item in listed.items if item.split != "test"]
    sources = [(listed.read, item) for item in known] + [(unseen.read, item) for item in unseen.items]
    items = [dataclasses.replace(item, handle=pair) for item, pair in zip(known, sources[: len(known)], strict=True)]
    for pair in sources[len(known) :]:
        item = pair[1]
        items.append(
            dataclasses.replace(
                item,
                split="test",
                label=numbers[item.label],
                source=f"{unseen.name}/{item.source}",
                handle=pair,
            )
        )
    return dataclasses.replace(
        listed,
        items=tuple(items),
        read=read,
        unreadable=(*listed.unreadable, *unseen.unreadable),
        lists={},
        place=None,
    )


def read(item: Item) -> bytes | np.ndarray:
    own_read, own = item.handle
    found: bytes | np.ndarray = own_read(own)
    return found
