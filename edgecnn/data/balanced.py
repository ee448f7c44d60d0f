"""Images of all classes alike: draw the same number per class, or let each class weigh the same."""

from collections.abc import Sequence

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


UNBALANCED = 3
"""Classes are unbalanced if the largest has at least this many times as many images as the smallest."""


def is_unbalanced(counts: Sequence[int] | np.ndarray) -> bool:
    """Return whether classes of these numbers of images are unbalanced; classes without images do not count."""
    present = [count for count in counts if count]
    return bool(present) and max(present) >= UNBALANCED * min(present)


def class_weights(classes: np.ndarray, rule: str = "auto") -> np.ndarray:
    """Return a weight for each image, float64 (n,), of mean 1: each class's total is the same if the classes are unbalanced.

    Otherwise, or with the rule "none", all weights are 1.
    """
    if rule == "none" or not is_unbalanced(np.bincount(classes)):
        return np.ones(len(classes))
    return equal_weights(classes)


def equal_weights(classes: np.ndarray) -> np.ndarray:
    """Return a weight for each image, float64 (n,), of mean 1, so that each class's total is the same."""
    present, of, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weights: np.ndarray = (len(classes) / len(present) / counts)[of]
    return weights


def weight_of_class(classes: np.ndarray, count: int, rule: str) -> np.ndarray | None:
    """Return the same by class, float64 (count,), 1 for a class without images; None if all weights are 1."""
    weights = class_weights(classes, rule)
    if np.all(weights == 1):
        return None
    found = np.ones(count)
    found[classes] = weights
    return found
