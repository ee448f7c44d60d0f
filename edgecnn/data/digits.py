"""scikit-learn's handwritten digits: in its wheel, no download."""

import importlib.util
from pathlib import Path

import numpy as np

from edgecnn.data.items import LabelledImages, Progress, array_items


def open_digits(progress: Progress | None = None) -> LabelledImages:
    """Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes, from scikit-learn; no download."""
    package = importlib.util.find_spec("sklearn")  # to import it, as its load_digits requires, takes a second
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    pixels = np.rint(rows[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        name="digits",
        title="Handwritten digits (scikit-learn)",
        labels=tuple("0123456789"),
        shape=(8, 8, 1),
        mirror=False,
        items=tuple(array_items("train", "digits", pixels, rows[:, 64].tolist())),
    )
