"""Answers to held-out images in cross-validation: each image is answered by the model trained without its fold.

Each fold's run stores its answers in `held-out.npz`, and the run of the final model, trained on all images, stores all of them.
"""

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from edgecnn.bundle.file import Bundle
from edgecnn.data.splits import csv_text
from edgecnn.errors import BundleError, RunError
from edgecnn.files import sha256, write_atomic
from edgecnn.runs import HELD_OUT, Run
from edgecnn.runtime.decision import softmax
from edgecnn.tables import shown


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Answers to n images: content `hashes` and `sources`, true `classes`, and the `fold` of each, from 1, int (n,).

    `float` and `int8` are logits, float32 (n, num_classes), of the float model and its int8 file. `similarity` compares the int8 file's
    features with those of its known images, float64 (n,); NaN if strangers are not detected.
    """

    hashes: np.ndarray
    sources: np.ndarray
    classes: np.ndarray
    fold: np.ndarray
    float: np.ndarray
    int8: np.ndarray
    similarity: np.ndarray

    def bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        return buffer.getvalue()

    @property
    def sha256(self) -> str:
        """SHA-256 over the arrays; a choice based on them records it."""
        parts = (np.ascontiguousarray(value).tobytes() for value in vars(self).values())
        return sha256(b"".join(parts))


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """Concatenate the answers of all folds, sorted by content hash."""
    whole = {entry.name: np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(HeldOut)}
    order = np.lexsort((whole["classes"], whole["hashes"]))
    return HeldOut(**{name: values[order] for name, values in whole.items()})


def write_held_out(run: Run, held: HeldOut) -> None:
    write_atomic(run.file(HELD_OUT), held.bytes())


def read_held_out(run: Run) -> HeldOut | None:
    """Return a run's held-out answers; None if the file is missing or unusable."""
    try:
        with np.load(run.file(HELD_OUT), allow_pickle=False) as file:
            held = HeldOut(**{entry.name: file[entry.name] for entry in fields(HeldOut)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return held if len({len(value) for value in vars(held).values()}) == 1 else None


def require_held_out(run: Run) -> HeldOut:
    """Return the held-out answers of a run. Raises RunError if they are missing or damaged."""
    held = read_held_out(run)
    if held is None:
        raise RunError(
            f"{run.file(HELD_OUT)}, which holds the answers of the folds, is missing or damaged. {RESUME.format(path=run.path)}"
        )
    return held


RESUME = "Each fold still has its own answers. First: edgecnn train --resume --out {path}"


ANSWERS = "folds/answers.csv"
"""The file in a bundle that holds the output of `answers_csv`."""


def read_answers(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Return the rows of a bundle's `answers_csv` by hash; empty if it has none. Raises BundleError if they cannot be read."""
    if ANSWERS not in bundle.files:
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(bundle.files[ANSWERS].decode())))
        named = {name for row in rows for name in (row["class"], row["int8"])}
    except (ValueError, KeyError, csv.Error) as error:
        raise BundleError(f"{bundle.path}: {ANSWERS} is damaged: {error}.") from None
    if strange := named - set(bundle.manifest.labels):
        raise BundleError(f"{bundle.path}: {ANSWERS} names {shown(min(strange))}, which is not a class of the bundle.")
    return {row["sha256"]: row for row in rows}


def answers_csv(held: HeldOut, labels: Sequence[str]) -> bytes:
    """Return CSV, sorted by hash: each image's hash, class, fold, both models' answers, and int8's score without a temperature."""
    scores = softmax(held.int8).max(axis=1)
    answers = (
        (labels[index] for index in held.float.argmax(axis=1)),
        (labels[index] for index in held.int8.argmax(axis=1)),
    )
    classes = (labels[index] for index in held.classes)
    rows = zip(held.hashes, classes, held.fold.tolist(), *answers, (f"{score:.4f}" for score in scores), strict=True)
    return csv_text(("sha256", "class", "fold", "float", "int8", "score"), rows).encode()
