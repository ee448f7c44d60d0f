"""A run's history for TensorBoard: one event file, appended to, and corrected from the history when training continues.

`tf.summary` would start a new file in each process, and repeat the points of an epoch that is trained again after a kill.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgecnn.files import output_errors, write_atomic
from edgecnn.networks.keras import tf
from edgecnn.runs import EVENTS, Run

Event = tf.compat.v1.Event

BUFFER_BYTES = 1 << 18  # TensorFlow's default, which it announces on standard error if left unset


class ScalarLog:
    """The event file of a run. Tags are PHASE/FIGURE, such as `float/loss`; steps are the phase's epochs from 1."""

    def __init__(self, run: Run, history: Sequence[Mapping[str, Any]]) -> None:
        """Open the file. If its points differ from the history, rewrite it; points that stay keep their times."""
        self.path = run.file(EVENTS)
        there = list(read_events(str(self.path))) if self.path.exists() else []
        times = {point(event): event.wall_time for event in there if event.summary.value}
        wanted = [(row["phase"], row["epoch"]) for row in history]
        if len(there) == len(wanted) + 1 and list(times) == wanted:
            return
        now = time.time()
        rows = (row_event(row, times.get(key, now)) for row, key in zip(history, wanted, strict=True))
        write_atomic(self.path, records([Event(wall_time=now, file_version="brain.Event:2"), *rows]))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of the history. On OutputError the file is restored to its previous length."""
        data = records([row_event(row, time.time())])
        with output_errors(self.path), self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                file.write(data)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise


def row_event(row: Mapping[str, Any], wall_time: float) -> Any:
    event = Event(wall_time=wall_time, step=row["epoch"])
    for name, value in row.items():
        if name != "epoch" and isinstance(value, (int, float)):
            event.summary.value.add(tag=f"{row['phase']}/{name}", simple_value=value)
    return event


def point(event: Any) -> tuple[str, int]:
    return event.summary.value[0].tag.partition("/")[0], event.step


def records(events: Iterable[Any]) -> bytes:
    name = f"ram://edgecnn-events-{os.getpid()}"
    with tf.io.TFRecordWriter(name) as writer:
        for event in events:
            writer.write(event.SerializeToString())
    with tf.io.gfile.GFile(name, "rb") as file:
        data = file.read()
    tf.io.gfile.remove(name)
    return data


def read_events(path: str) -> Iterable[Any]:
    """Yield an event file's events, up to its end or to the first damaged one. A kill may damage the last."""
    try:
        for record in tf.data.TFRecordDataset(path, buffer_size=BUFFER_BYTES).as_numpy_iterator():
            yield Event.FromString(record)
    except tf.errors.DataLossError:
        return
