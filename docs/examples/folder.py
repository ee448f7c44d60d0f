"""Classify the JPEGs in a folder and print a line of CSV for each."""

from pathlib import Path

from edgecnn.errors import ImageError
from edgecnn.runtime import Classifier

classifier = Classifier.load("photos.edgecnn")
for path in sorted(Path("images").glob("*.jpg")):
    try:
        best = classifier.classify(path).top[0]
    except ImageError as error:
        print(f"{path},,{error}")
    else:
        print(f"{path},{best.label},{best.score:.4f}")
