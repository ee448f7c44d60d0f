"""The checkpoint: one atomic file with every variable of the phase and the history so far."""

import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecnn.errors import RunError
from edgecnn.files import write_atomic
from edgecnn.runs import CHECKPOINT, Run


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after a finished epoch. `arrays` are the phase's variables: the model's, the optimizer's, and averages if there are any."""

    phase: str
    epoch: int
    arrays: tuple[np.ndarray, ...]
    history: tuple[dict[str, Any], ...]


def save_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """Write the run's checkpoint atomically.

    Raises:
        OutputError: if it cannot be written; the one before stays whole.
    """
    state = json.dumps({"phase": checkpoint.phase, "epoch": checkpoint.epoch, "history": list(checkpoint.history)})
    buffer = io.BytesIO()
    named = {f"variable_{index:05d}": array for index, array in enumerate(checkpoint.arrays)}
    np.savez(buffer, allow_pickle=False, state=np.array(state), **named)
    write_atomic(run.file(CHECKPOINT), buffer.getvalue())


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Read the run's checkpoint; None if no epoch was finished.

    Raises:
        RunError: if the file is damaged.
    """
    path = run.file(CHECKPOINT)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            arrays = tuple(file[name] for name in sorted(file.files) if name != "state")
        return Checkpoint(phase=state["phase"], epoch=state["epoch"], arrays=arrays, history=tuple(state["history"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged ({error}).", advice="train_again") from None
