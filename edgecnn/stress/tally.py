"""Counts so far, from which an interrupted stress test resumes."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.files import canonical_json, sha256, write_atomic
from edgecnn.tables import Struct

ARRAYS = ("right", "agree", "shares")


class Tally(Struct):
    """Counts over the first `done` images; frozen, so that Ctrl-C never interrupts an update.

    `right` counts right answers, int64 (models, conditions), `agree` images on which all models agree, int64 (conditions,). `shares` holds
    each image's mean corrupted accuracy, float64 (models, n).
    """

    right: np.ndarray
    agree: np.ndarray
    shares: np.ndarray
    done: int = 0
    seconds: float = 0.0

    def plus(self, answers: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> "Tally":
        """Return the counts with answers to the next images added, int (models, conditions, images), weighted with `weights_of`."""
        hits = answers == classes
        done = self.done + len(classes)
        shares = self.shares.copy()
        shares[:, self.done : done] = np.einsum("c,mci->mi", weights, hits)
        agree = self.agree + (answers == answers[0]).all(axis=0).sum(axis=1)
        return replace(self, right=self.right + hits.sum(axis=2), agree=agree, shares=shares, done=done)


def new_tally(models: int, conditions: int, images: int) -> Tally:
    right, agree = np.zeros((models, conditions), np.int64), np.zeros(conditions, np.int64)
    return Tally(right=right, agree=agree, shares=np.zeros((models, images)))


def weights_of(conditions: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return each condition's weight in the mean corrupted accuracy: each corruption counts once, regardless of its number of strengths."""
    names = [name for name, _ in conditions]
    corruptions = {name for name in names if name}
    return np.array([1 / (len(corruptions) * names.count(name)) if name else 0.0 for name in names])


class Store(Struct):
    folder: Path
    key: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The file. Whoever writes the report removes it."""
        return self.folder / f"stress-{sha256(canonical_json(dict(self.key)).encode())[:16]}.part.npz"

    def read(self, empty: Tally) -> Tally:
        """Return the stored tally, or `empty` if the file has another key or shape, or is unreadable."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["key"]) != canonical_json(dict(self.key)):
                    return empty
                arrays = {name: file[name] for name in ARRAYS}
                stored = Tally(**arrays, done=int(file["done"]), seconds=float(file["seconds"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return empty
        same = all(getattr(stored, name).shape == getattr(empty, name).shape for name in ARRAYS)
        return stored if same and stored.done <= empty.shares.shape[1] else empty

    def write(self, tally: Tally) -> None:
        """Store a tally, atomically. Raises OutputError if it cannot be written."""
        buffer = io.BytesIO()
        np.savez(buffer, key=canonical_json(dict(self.key)), **vars(tally))
        write_atomic(self.path, buffer.getvalue())
