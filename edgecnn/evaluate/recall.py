"""How many images of each class a model finds: what one accuracy over all images hides if a class is rare."""

from collections.abc import Sequence

import numpy as np

from edgecnn.labels import printable
from edgecnn.tables import Count, Struct, described

NAMED = 3  # weakest classes that a line names


class ClassFound(Struct):
    """A class's images, and those of them that a model classifies correctly."""

    label: str
    images: Count
    found: Count = described("Images of the class that are classified as this class.")


def found_by_class(answers: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> tuple[ClassFound, ...]:
    """Count for each label; `answers` and `classes` are int (n,)."""
    return tuple(
        ClassFound(
            label=label, images=int(np.sum(classes == number)), found=int(np.sum(answers[classes == number] == number))
        )
        for number, label in enumerate(labels)
    )


def balanced_accuracy(found: Sequence[ClassFound]) -> float:
    """Return the mean over the classes of the share of images found; classes without images are left out."""
    return float(np.mean([one.found / one.images for one in found if one.images]))


def class_line(found: Sequence[ClassFound], images: str) -> str:
    """Return a line with the balanced accuracy on `images`, such as "test images", and the classes of which least is found."""
    measured = [one for one in found if one.images]
    weakest = sorted(measured, key=lambda one: (one.found / one.images, -one.images))
    named = ", ".join(
        f"{printable(one.label)}: {one.found:,} of {one.images:,} found"
        for one in weakest[:NAMED]
        if one.found < one.images
    )
    return f"balanced accuracy of int8 on {images}, every class counting the same: {balanced_accuracy(found):.2%}" + (
        f"; weakest: {named}" if named else ""
    )
