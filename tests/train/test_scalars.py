"""TensorBoard's event file: one point per epoch, whatever interrupted the run."""

import errno
import os

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import OutputError
from edgecnn.networks.keras import tf
from edgecnn.runs import EVENTS, Run
from edgecnn.train.scalars import ScalarLog


def row(phase, epoch):
    return {"phase": phase, "epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5, "learning_rate": 0.1}


HISTORY = tuple(row("float", epoch) for epoch in (1, 2, 3)) + (row("qat", 1),)


def points(path):
    """All points as (tag, step), in order, as TensorBoard reads them."""
    return [
        (value.tag, event.step)
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]


def expected(history):
    return [
        (f"{row['phase']}/{name}", row["epoch"]) for row in history for name in ("loss", "accuracy", "learning_rate")
    ]


def times(path):
    return [event.wall_time for event in tf.compat.v1.train.summary_iterator(str(path)) if event.summary.value]


def test_a_finished_run_has_both_phases(finished_run):
    found = points(finished_run.file(EVENTS))
    assert len(found) == len(set(found))
    epochs = {(tag, step) for tag, step in found if tag.endswith("/validation_accuracy")}
    assert epochs == {("float/validation_accuracy", n) for n in range(1, 7)} | {("qat/validation_accuracy", 1)}
    assert {tag.partition("/")[2] for tag, _ in found} >= {"loss", "accuracy", "learning_rate", "images_per_s"}
    assert "tfevents" in finished_run.file(EVENTS).name, "TensorBoard recognises its files by that"


def test_phases_follow_each_other_in_one_file(tmp_path):
    run = Run(tmp_path)
    for end in (3, 4):
        log = ScalarLog(run, HISTORY[: 0 if end == 3 else 3])
        inode = run.file(EVENTS).stat().st_ino
        for item in HISTORY[0 if end == 3 else 3 : end]:
            log.add(item)
        assert run.file(EVENTS).stat().st_ino == inode, "appended, so that an open TensorBoard sees it"
    assert points(run.file(EVENTS)) == expected(HISTORY)
    assert next(iter(tf.compat.v1.train.summary_iterator(str(run.file(EVENTS))))).file_version == "brain.Event:2"


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_gaps_after_a_kill_are_filled_from_the_history(tmp_path, cut):
    run = Run(tmp_path)
    log = ScalarLog(run, ())
    for item in HISTORY:
        log.add(item)
    path = run.file(EVENTS)
    before = times(path)
    path.write_bytes(path.read_bytes()[:-cut])
    ScalarLog(run, HISTORY)
    assert points(path) == expected(HISTORY)
    assert times(path)[:1] == before[:1], "complete points keep their time"


def test_an_epoch_missing_from_the_checkpoint_is_dropped(tmp_path):
    run = Run(tmp_path)
    log = ScalarLog(run, ())
    for item in HISTORY:
        log.add(item)
    ScalarLog(run, HISTORY[:2]).add(HISTORY[2])
    assert points(run.file(EVENTS)) == expected(HISTORY[:3])


def test_a_full_disk_leaves_the_file_whole(tmp_path, monkeypatch):
    run = Run(tmp_path)
    log = ScalarLog(run, HISTORY[:2])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        log.add(HISTORY[2])
    assert points(run.file(EVENTS)) == expected(HISTORY[:2])
