"""The epoch loop of both phases: seeded batches, progress, and a checkpoint and history row per epoch."""

import io
import itertools
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from edgecnn.data.augment import augment, augment_photos, mix_corruptions
from edgecnn.errors import RunError, TrainingError
from edgecnn.files import csv_text, write_atomic
from edgecnn.runs import CHECKPOINT, HISTORY, Run
from edgecnn.tables import Struct, build

EXAMINED = ("int8_accuracy", "int8_agreement")
"""What a phase may measure after an epoch, in addition to `validation_accuracy`."""


class HistoryRow(Struct):
    """One epoch of the history. Accuracies are fractions; `seconds` is the time of its training steps."""

    phase: Literal["float", "qat"]
    epoch: int
    loss: float
    accuracy: float
    validation_accuracy: float
    learning_rate: float
    images_per_s: float
    seconds: float
    int8_accuracy: float | None
    int8_agreement: float | None


HISTORY_COLUMNS = tuple(entry.name for entry in fields(HistoryRow))

# what numpy, zipfile and json raise for a corrupt file; a NotImplementedError is a RuntimeError
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class State:
    """A checkpoint's metadata, stored as JSON next to its arrays."""

    phase: Literal["float", "qat"]
    epoch: int
    history: tuple[HistoryRow, ...]


class Checkpoint(Struct):
    """State after a finished epoch. `arrays` are the phase's variables: the model's, the optimizer's, and any averages."""

    phase: str
    epoch: int
    arrays: tuple[np.ndarray, ...]
    history: tuple[dict[str, Any], ...]


def save_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """Write the run's checkpoint atomically. Raises OutputError if it cannot be written; the previous one then stays intact."""
    state = json.dumps({"phase": checkpoint.phase, "epoch": checkpoint.epoch, "history": list(checkpoint.history)})
    buffer = io.BytesIO()
    named = {f"variable_{index:05d}": array for index, array in enumerate(checkpoint.arrays)}
    np.savez(buffer, allow_pickle=False, state=np.array(state), **named)
    write_atomic(run.file(CHECKPOINT), buffer.getvalue())


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Read the run's checkpoint; None if no epoch has finished. Raises RunError if the file is damaged."""
    path = run.file(CHECKPOINT)
    if not path.exists():
        return None
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a complete .npz file")
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            arrays = tuple(np.asarray(file[name]) for name in sorted(file.files) if name != "state")
        read = build(State, state, ValueError)
        if sum(row.phase == read.phase for row in read.history) != read.epoch:
            raise ValueError("its history has a different number of epochs")
    except UNREADABLE as error:
        raise damaged_checkpoint(run, str(error)) from None
    return Checkpoint(phase=read.phase, epoch=read.epoch, arrays=arrays, history=tuple(map(vars, read.history)))


def damaged_checkpoint(run: Run, why: str) -> RunError:
    return RunError(
        f"{run.file(CHECKPOINT)} is damaged ({why}). Train again with --force, or into another folder with --out."
    )


PROGRESS_SECONDS = 0.25


class TrainProgress(Struct):
    """Training progress. Accuracies are fractions. Validation figures are set at the end of an epoch, if measured."""

    phase: str
    epoch: int
    epochs: int
    images: int
    total_images: int
    loss: float
    accuracy: float
    images_per_s: float
    seconds_left: float
    validation_accuracy: float | None = None
    int8_accuracy: float | None = None
    int8_agreement: float | None = None


Report = Callable[[TrainProgress], None]
History = tuple[dict[str, Any], ...]


class Batches(Struct):
    """Training images as seeded, shuffled, augmented batches. The same seed and epoch give the same batches.

    An incomplete last batch is dropped unless it is the only one. `photo` (height, width) turns on photo augmentation. `alternating` flips
    each image in every other epoch (Jordan 2024, arXiv:2404.00498). After `views` epochs the batches repeat from the first; 0 means never.
    """

    images: np.ndarray
    classes: np.ndarray
    batch_size: int
    seed: int
    flip: bool
    shift: int
    alternating: bool = False
    cutout: int = 0
    views: int = 0
    photo: tuple[int, int] | None = None
    robust: bool = False

    @property
    def count(self) -> int:
        return max(1, len(self.images) // self.batch_size)

    def epoch(self, phase: str, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield an epoch's batches: uint8 images (n, height, width, channels) and int64 classes (n,)."""
        if self.views:
            epoch %= self.views
        random = np.random.default_rng([self.seed, epoch, *phase.encode()])
        order = random.permutation(len(self.images))
        mirrored = None
        if self.alternating:
            half = np.random.default_rng([self.seed, *b"flip"]).random(len(self.images)) < 0.5
            mirrored = half if epoch % 2 else ~half
        for batch in range(self.count):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            flip = self.flip if mirrored is None else mirrored[chosen]
            images = self.images[chosen]
            if self.photo:
                images = augment_photos(images, self.photo, random, flip=flip, cutout=self.cutout)
            else:
                images = augment(images, random, flip=flip, shift=self.shift, cutout=self.cutout)
            yield mix_corruptions(images, random) if self.robust else images, self.classes[chosen]

    def endless(self, phase: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return itertools.chain.from_iterable(self.epoch(phase, epoch) for epoch in itertools.count())


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


class Phase(Struct):
    """One phase of training. `step(images, classes, learning_rate)` returns the mean loss and the count of right answers.

    The phase may stop early: after the epoch `last`, or before an epoch if `ended()`. `variables` holds everything that a resume needs.
    `learning_rate` maps the fraction done, in [0, 1), to the rate. `examine(epoch)`, from 1, returns figures of EXAMINED. After loading
    trained weights into the model, call `take_start()`. The phase ends with `finish()`.
    """

    name: str
    epochs: int
    step: Callable[[np.ndarray, np.ndarray, float], tuple[Any, Any]]
    validate: Callable[[], float]
    learning_rate: Callable[[float], float]
    variables: Sequence[Any]
    examine: Callable[[int], Mapping[str, float]] = lambda epoch: {}
    take_start: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None
    ended: Callable[[], bool] = lambda: False
    last: int | None = None

    @property
    def end(self) -> int:
        """The epoch after which the phase ends."""
        return self.epochs if self.last is None else min(self.last, self.epochs)


def run_phase(
    phase: Phase, batches: Batches, run: Run | None, history: History, resumed: Checkpoint | None, report: Report
) -> History:
    """Train a phase to its end, from the run's last checkpoint if that belongs to this phase. Returns the history with a row per epoch.

    Each epoch writes the checkpoint and `history.csv` to the run. Raises TrainingError if the loss is not a number, and
    keeps the last checkpoint. Raises RunError if the checkpoint does not fit this phase's network.
    """
    first = 0
    if resumed and resumed.phase == phase.name:
        first = resumed.epoch
        now = [np.asarray(variable.numpy()) for variable in phase.variables]
        kinds = [[(array.shape, array.dtype) for array in arrays] for arrays in (now, resumed.arrays)]
        if run and (kinds[0] != kinds[1] or first > phase.epochs):
            raise damaged_checkpoint(run, "its arrays or its epoch do not match this network")
        for variable, array in zip(phase.variables, resumed.arrays, strict=True):
            variable.assign(array)
    for epoch in range(first, phase.end):
        if phase.ended():
            break
        history = (*history, run_epoch(phase, batches, epoch, report))
        if run is None:
            continue
        arrays = tuple(np.asarray(variable.numpy()) for variable in phase.variables)
        save_checkpoint(run, Checkpoint(phase=phase.name, epoch=epoch + 1, arrays=arrays, history=history))
        write_history(run, history)
    phase.finish()
    return history


def run_epoch(phase: Phase, batches: Batches, epoch: int, report: Report) -> dict[str, Any]:
    started = reported = time.monotonic()
    total = batches.count * min(batches.batch_size, len(batches.images))
    loss_sum = right = 0.0
    seen, rate = 0, 0.0
    waiting: list[tuple[Any, Any, int]] = []

    def progress(**validated: float) -> TrainProgress:
        elapsed = time.monotonic() - started
        left = total * (phase.end - epoch) - seen
        return TrainProgress(
            phase=phase.name,
            epoch=epoch + 1,
            epochs=phase.end,
            images=seen,
            total_images=total,
            loss=loss_sum / max(seen, 1),
            accuracy=right / max(seen, 1),
            images_per_s=seen / max(elapsed, 1e-9),
            seconds_left=left * elapsed / max(seen, 1),
            **validated,
        )

    def fetch() -> None:
        """Add up the steps' results. Fetching after every step would make a GPU wait."""
        nonlocal loss_sum, right
        for loss, correct, count in waiting:
            loss_sum += float(loss) * count
            right += float(correct)
        waiting.clear()
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"the loss is not a number in epoch {epoch + 1} of the {phase.name} phase (learning rate {rate:g}). "
                f"The last finished epoch is kept. Train again with a lower {'qat' if phase.name == 'qat' else 'train'}.learning_rate."
            )

    for index, (images, classes) in enumerate(ahead(batches.epoch(phase.name, epoch))):
        rate = phase.learning_rate((epoch + index / batches.count) / phase.epochs)
        waiting.append((*phase.step(images, classes, rate), len(images)))
        seen += len(images)
        if time.monotonic() - reported >= PROGRESS_SECONDS:
            fetch()
            reported = time.monotonic()
            report(progress())
    fetch()
    seconds = time.monotonic() - started
    done = progress(validation_accuracy=phase.validate(), **phase.examine(epoch + 1))
    report(done)
    return history_row(done, rate, seconds)


def history_row(done: TrainProgress, rate: float, seconds: float) -> dict[str, Any]:
    values = {
        **vars(done),
        "learning_rate": rate,
        "images_per_s": round(done.images / max(seconds, 1e-9), 1),
        "seconds": round(seconds, 3),
    }
    for name in ("loss", "accuracy", "validation_accuracy", *EXAMINED):
        values[name] = None if values[name] is None else round(values[name], 6)
    return {column: values[column] for column in HISTORY_COLUMNS}


def write_history(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    write_atomic(
        run.file(HISTORY), csv_text(HISTORY_COLUMNS, ([row[name] for name in HISTORY_COLUMNS] for row in rows))
    )
