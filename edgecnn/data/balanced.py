"""Draw some images of a split: the same number per class."""

import numpy as np

from edgecnn.data.decoding import Split


def balanced(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw the indices of `count` images, the same number per class while they last, interleaved.

    `classes` is an int array, shape (n,), of images in an order that does not depend on where they are stored.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(classes))
    turn = np.empty(len(order), np.int64)  # 0 for the first image drawn of its class, 1 for the second, …
    for label in np.unique(classes):
        of_class = classes[order] == label
        turn[of_class] = np.arange(np.sum(of_class))
    return order[np.lexsort((classes[order], turn))][:count]


def some(split: Split, count: int, seed: int) -> Split:
    """Return `count` images of a split, `balanced`, in their order."""
    chosen = np.sort(balanced(split.classes, count, seed))
    sources = tuple(split.sources[index] for index in chosen)
    return Split(images=split.images[chosen], classes=split.classes[chosen], sources=sources)
