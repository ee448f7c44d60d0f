"""The epoch loop: its figures from scripted steps, the rates that it asks for, and where it continues."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks.keras import tf
from edgecnn.recipe import build_recipe
from edgecnn.runs import create_run
from edgecnn.train import loop
from edgecnn.train.loop import Batches, Checkpoint, Phase, load_checkpoint, run_phase, save_checkpoint
from edgecnn.train.settle import SCHEDULES, learning_rates
from edgecnn.train.train import time_phase


def batches_of(count, size):
    images = np.zeros((count, 2, 2, 1), np.uint8)
    return Batches(images=images, classes=np.arange(count), batch_size=size, seed=1, flip=False, shift=0)


class Steps:
    """Steps that lose 1, 3, 5, … and classify one image of each batch correctly, with the rates that they got."""

    def __init__(self):
        self.rates, self.sizes = [], []

    def __call__(self, images, classes, rate):
        self.rates.append(rate)
        self.sizes.append(len(images))
        return 2.0 * len(self.rates) - 1, 1


def phase_of(steps, name="float", **values):
    given = {"epochs": 4, "validate": lambda: 0.75, "learning_rate": lambda done: 8 * done, "variables": ()} | values
    return Phase(name=name, step=steps, **given)


def last_reports(seen):
    return [one for one in seen if one.validation_accuracy is not None]


def test_an_epoch_reports_its_own_loss_and_accuracy_and_its_rates_are_for_all_epochs(monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0)  # a report after every batch
    steps, seen = Steps(), []
    examined = []

    def examine(epoch):
        examined.append(epoch)
        return {"int8_accuracy": 0.5, "int8_agreement": 0.25}

    phase = phase_of(steps, last=3, examine=examine)
    history = run_phase(phase, batches_of(7, 3), None, (), None, seen.append)
    ends = last_reports(seen)
    assert [(one.epoch, one.epochs, one.images, one.total_images) for one in ends] == [(n, 3, 6, 6) for n in (1, 2, 3)]
    assert [one.loss for one in ends] == [2, 6, 10], "means of 1 and 3, 5 and 7, 9 and 11"
    assert [one.accuracy for one in ends] == [pytest.approx(1 / 3)] * 3
    assert [(one.epoch, one.images, one.loss) for one in seen[3:5]] == [(2, 3, 5), (2, 6, 6)], "so far"
    assert examined == [1, 2, 3]
    assert steps.rates == [0, 1, 2, 3, 4, 5], "eighths of four epochs, although the phase stops after three"
    left = [one.seconds_left * one.images_per_s for one in ends]
    assert left == pytest.approx([12, 6, 0]), "images of the epochs to come, at the present rate"
    first = history[0]
    assert (first["epoch"], first["loss"], first["accuracy"], first["validation_accuracy"]) == (1, 2.0, 0.333333, 0.75)
    assert (first["int8_accuracy"], first["int8_agreement"], first["learning_rate"]) == (0.5, 0.25, 1)


@pytest.mark.parametrize(("count", "size", "sizes"), [(5, 8, [5]), (8, 8, [8]), (15, 8, [8]), (16, 8, [8, 8])])
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(count, size, sizes):
    steps, seen = Steps(), []
    run_phase(phase_of(steps, epochs=1), batches_of(count, size), None, (), None, seen.append)
    assert steps.sizes == sizes
    assert (seen[-1].images, seen[-1].total_images, seen[-1].loss) == (sum(sizes), sum(sizes), len(sizes))
    assert seen[-1].accuracy == len(sizes) / sum(sizes)


def test_a_phase_continues_after_its_last_finished_epoch_and_another_phase_begins_at_its_first():
    rows = ({"epoch": 1}, {"epoch": 2})
    resumed = Checkpoint(phase="float", epoch=2, arrays=(np.float32(7),), history=rows)
    variable, finished = tf.Variable(1.0), []
    phase = phase_of(Steps(), variables=[variable], finish=lambda: finished.append(variable.numpy()))
    seen = []
    history = run_phase(phase, batches_of(4, 2), None, rows, resumed, seen.append)
    assert [one.epoch for one in last_reports(seen)] == [3, 4]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4] and finished == [7]
    variable.assign(1.0)
    seen.clear()
    run_phase(phase_of(Steps(), "qat", variables=[variable]), batches_of(4, 2), None, rows, resumed, seen.append)
    assert [one.epoch for one in last_reports(seen)] == [1, 2, 3, 4] and variable.numpy() == 1


def test_a_checkpoint_of_many_variables_is_read_in_their_order(tmp_path):
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    figures = dict.fromkeys(
        ("loss", "accuracy", "validation_accuracy", "learning_rate", "images_per_s", "seconds"), 0.5
    )
    row = {"phase": "float", "epoch": 1, **figures, "int8_accuracy": None, "int8_agreement": None}
    arrays = tuple(np.full((2, 1 + number % 3), number, np.float32) for number in range(12))
    save_checkpoint(run, Checkpoint(phase="float", epoch=1, arrays=arrays, history=(row,)))
    read = load_checkpoint(run)
    assert (read.phase, read.epoch, read.history) == ("float", 1, (row,))
    assert [array.tolist() for array in read.arrays] == [array.tolist() for array in arrays]


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("one-cycle", [0.5, 1, 0.75, 0.25]),
        ("cosine", [0.9755, 0.9045, 0.6545, 0.0955]),
        ("averaged", [0.3, 0.6, 1, 1]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_a_schedule_in_between(name, factors):
    rates = learning_rates(name, 3.0)
    assert [rates(done) for done in (0.1, 0.2, 0.4, 0.8)] == pytest.approx([3 * one for one in factors], abs=3e-4)
    assert set(SCHEDULES) == {"one-cycle", "cosine", "averaged", "constant"}


def test_the_estimate_counts_whole_batches_of_all_images():
    steps = Steps()
    cost = time_phase(phase_of(steps, epochs=5), batches_of(6, 3), train_images=20, steps=4)
    assert (cost.phase, cost.epochs, cost.steps) == ("float", 5, 6)
    assert set(steps.rates) == {0.0}, "nothing is trained"
    assert len(steps.rates) == 4 + 2, "the first two are not timed"
    assert cost.epoch_s == pytest.approx(6 * cost.step_s) and cost.total_s == pytest.approx(30 * cost.step_s)
    assert cost.images_per_s == pytest.approx(3 / cost.step_s)
    assert time_phase(phase_of(steps), batches_of(3, 3), train_images=2, steps=1).steps == 1
