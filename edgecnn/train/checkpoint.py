"""The checkpoint: one file, written atomically, with every variable of the phase and the history so far."""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from edgecnn.errors import RunError
from edgecnn.files import write_atomic
from edgecnn.runs import CHECKPOINT, Run
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
        raise damaged(run, str(error)) from None
    return Checkpoint(phase=read.phase, epoch=read.epoch, arrays=arrays, history=tuple(map(vars, read.history)))


def damaged(run: Run, why: str) -> RunError:
    return RunError(
        f"{run.file(CHECKPOINT)} is damaged ({why}). Train again with --force, or into another folder with --out."
    )
