"""scikit-learn's handwritten digits: in its wheel, no download."""

import numpy as np

from edgecnn.data.items import LabelledImages, Progress, array_items


def open_digits(progress: Progress | None = None) -> LabelledImages:
    """Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes, from scikit-learn; no download."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return LabelledImages(
        name="digits",
        title="Handwritten digits (scikit-learn)",
        labels=tuple(str(name) for name in digits.target_names),
        shape=(8, 8, 1),
        mirror=False,
        items=tuple(array_items("train", "digits", pixels, digits.target)),
    )
