"""The epoch loop, several machines, and small parts of training."""

import csv
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from scipy.special import log_softmax, softmax

from edgecnn.data import Split, open_dataset
from edgecnn.data.items import Item
from edgecnn.data.splits import SplitGroup
from edgecnn.errors import ClusterError, RecipeError
from edgecnn.networks.keras import tf
from edgecnn.recipe import build_recipe, load_recipe, merge
from edgecnn.runs import create_run
from edgecnn.train import candidates, loop
from edgecnn.train.loop import Batches, Checkpoint, Phase, load_checkpoint, run_phase, save_checkpoint
from edgecnn.train.phases import float_phase, objective
from edgecnn.train.settle import SCHEDULES, learning_rates, settle
from edgecnn.train.train import input_line, input_shape, qat_batches, source_size, time_phase, train, training_batches


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


def test_the_loss_weighs_smoothed_labels_and_the_softened_answers_of_the_teacher():
    logits, taught = np.array([[2.0, -1, 0.5], [0, 3, 1]]), np.array([[0.0, 4, 1], [-2, 1, 5]])
    classes, smoothed = np.array([0, 2]), np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    labels = -(smoothed * log_softmax(logits, axis=1)).sum(axis=1).mean()
    teacher = -(softmax(taught / 4, axis=1) * log_softmax(logits / 4, axis=1)).sum(axis=1).mean()
    tables = {"train": {"label_smoothing": 0.3}, "teacher": {"run": "runs/x", "temperature": 4.0, "weight": 0.2}}
    given = [tf.constant(classes), tf.constant(logits, tf.float32), tf.constant(taught, tf.float32)]
    loss = objective(build_recipe(tables), 3)
    assert float(loss(*given)) == pytest.approx(0.8 * labels + 0.2 * 16 * teacher, rel=1e-5)
    assert float(loss(*given[:2], None)) == pytest.approx(labels, rel=1e-5)
    del tables["teacher"]
    assert float(objective(build_recipe(tables), 3)(*given)) == pytest.approx(labels, rel=1e-5)
    lowered = logits - np.log([0.5, 9.0, 4.0]) / 2
    leaning = objective(build_recipe(tables), 3, np.array([0.5, 9.0, 4.0]))(*given)
    assert float(leaning) == pytest.approx(-(smoothed * log_softmax(lowered, axis=1)).sum(axis=1).mean(), rel=1e-5)


def test_an_inputs_size_is_named_width_first_and_photos_are_four_tenths_larger():
    dataset, photo = SimpleNamespace(shape=(60, 100, 3)), {"train": {"augment": "photo"}}
    assert input_line(build_recipe({}), dataset) == "input: 100x60 pixels (width x height), 3 channels"
    one = build_recipe({"network": {"width": 32, "channels": 1}})
    assert input_line(one, dataset) == "input: 32x60 pixels (width x height), 1 channel"
    assert input_shape(build_recipe({"network": {"height": 48}}), dataset) == (48, 100, 3)
    assert source_size(build_recipe(photo), (60, 100, 3)) == (84, 140)
    assert source_size(build_recipe({"train": {"augment": "shift"}}), (60, 100, 3)) == (60, 100)


def test_each_phase_gets_its_own_batches():
    tables = {
        "seed": 7, "teacher": {"run": "runs/x", "views": 3}, "qat": {"batch_size": 5},
        "train": {"epochs": 4, "batch_size": 9, "flip": "alternating", "shift": 2, "cutout": 6, "augment": "photo", "robust": True},
    }  # fmt: skip
    images, classes = np.zeros((9, 14, 28, 1), np.uint8), np.arange(9)
    first = training_batches(build_recipe(tables), images, classes, (10, 20))
    shared = {"classes": classes, "seed": 7, "flip": True, "shift": 2, "alternating": True, "robust": True}
    assert first == Batches(**shared, images=images, batch_size=9, cutout=6, views=3, photo=(10, 20))
    small = np.ones((9, 10, 20, 1), np.uint8)
    later = qat_batches(build_recipe(tables), first, small)
    assert later == Batches(**shared, images=small, batch_size=5, cutout=0, views=0, photo=None)
    assert (first.batch_size, first.cutout, first.views, first.photo) == (9, 6, 3, (10, 20)), (
        "the first stay as they are"
    )
    for flip, mirrored in (("no", False), ("yes", True)):
        plain = build_recipe(
            {"train": {"epochs": 3, "batch_size": 9, "flip": flip}, "teacher": {"run": "x", "views": 3}}
        )
        found = training_batches(plain, images, classes, (10, 20))
        assert (found.flip, found.alternating, found.photo) == (mirrored, False, None)
        assert found.views == 0, "as many views as epochs repeat nothing"


def photos(hashes, channels=3):
    return SimpleNamespace(hashes=list(hashes), channels=channels)


def test_features_are_computed_once_per_photo_size_and_reading(tmp_path, monkeypatch):
    computed = []

    def compute(family, size, given, indices, reading, options):
        named = [given.hashes[index] for index in indices]
        computed.append("".join(named))
        values = np.array([[ord(one), size[0]] for one in named], np.float16)
        return {"small": values, "large": np.hstack([values, values])}

    monkeypatch.setattr(candidates, "computed", compute)

    def features(hashes, size=(32, 48), reading=(1 / 128, 0), channels=3):
        return candidates.frozen_features("efficientnet_lite0", size, photos(hashes, channels), reading, tmp_path)

    assert features("ca")["small"].tolist() == [[99, 32], [97, 32]]
    later = features("abcd")
    assert later["small"][:, 0].tolist() == [97, 98, 99, 100], "in the order of the photos, whenever they came"
    assert later["large"].shape == (4, 4) and later["large"].dtype == np.float32
    assert features("dc")["small"][:, 0].tolist() == [100, 99]
    assert computed == ["ca", "bd"]
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("efficientnet_lite0-32x48-")
    for other in ({"size": (48, 32)}, {"reading": (1 / 128, -128)}, {"reading": (1.0, 0)}, {"channels": 1}):
        features("a", **other)
    assert computed[2:] == ["a"] * 4 and len(list(tmp_path.iterdir())) == 5
    path.write_bytes(path.read_bytes()[:100])
    assert features("ab")["small"][:, 0].tolist() == [97, 98], "a damaged file is made again"
    np.savez(path, hashes=np.array(["a", "b"]), small=np.zeros((1, 2)), large=np.zeros((2, 4)))
    assert features("ab")["small"][:, 0].tolist() == [97, 98]
    assert computed[6:] == ["ab", "ab"] and len(list(tmp_path.iterdir())) == 5


def test_photos_of_two_splits_keep_their_classes_groups_and_pixels():
    """Each photo of the training split has the value of its letter, one of the validation split 100 more."""
    splits = {"train": ("abd", [0, 1, 0]), "validation": ("ce", [1, 1])}
    loaded = {
        split: Split(images=np.zeros((len(text), 2, 2, 1), np.uint8), classes=np.array(classes), sources=tuple(text))
        for split, (text, classes) in splits.items()
    }
    sized = []

    def at_size(split, sources, shape, stage, progress):
        sized.append(shape)
        values = [ord(one) + 100 * (split == "validation") for one in sources]
        return np.stack([np.full(shape, value, np.uint8) for value in values])

    items = {
        split: [Item(split=split, label=0, hash=f"#{one}", source=one, handle=None) for one in reversed(text)]
        for split, (text, _) in splits.items()
    }
    dataset = SimpleNamespace(
        load=lambda names, **how: loaded,
        at_size=at_size,
        items=items,
        split_groups={"#a": SplitGroup("door", "train"), "#d": SplitGroup("door", "train")},
    )
    found = candidates.Photos(dataset, ("train", "validation"), 1, 3, 100, None)
    assert found.hashes == ["#a", "#b", "#d", "#c", "#e"] and found.classes.tolist() == [0, 1, 0, 1, 1]
    assert found.groups == ["door", "#b", "door", "#c", "#e"]
    mixed = [found.places[index] for index in (3, 0, 4, 2)]
    assert found.at_size(mixed, (4, 6, 1))[:, 3, 5, 0].tolist() == [199, 97, 201, 100] and set(sized) == {(4, 6, 1)}
    few = candidates.Photos(dataset, ("train", "validation"), 1, 3, 4, None)
    assert sorted(few.classes.tolist()) == [0, 0, 1, 1], "as many of each class while they last"
    assert few.hashes == [one for one in found.hashes if one in few.hashes]
    fewer = found.some(4, 3)
    assert (fewer.hashes, fewer.groups, fewer.places) == (few.hashes, few.groups, few.places)
    assert fewer.classes.tolist() == few.classes.tolist() and len(found.hashes) == 5, "the others keep theirs"


EPOCHS = 6
RECIPE = f"""
[data]
source = "digits"

[network]
name = "NETWORK"

[train]
epochs = {EPOCHS}
batch_size = 32
optimizer = "sgd"
learning_rate = 0.05

[qat]
epochs = 1
rounding = "nearest"
"""
ENDED = 240
"""Seconds within which a process has to end; a lost worker is noticed after about ten."""


@pytest.fixture
def start(spawn, tmp_path):
    """Start a worker of a cluster."""

    def call(cluster, worker, *arguments):
        command = [sys.executable, "-m", "edgecnn", "train", *arguments, "--workers", cluster, "--worker", str(worker)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        with (tmp_path / f"worker-{worker}.err").open("w") as err:
            return spawn(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=err, env=environment)

    return call


def errors(folder, worker):
    return (folder / f"worker-{worker}.err").read_text()


def history(run):
    try:
        with (run / "history.csv").open() as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def wait_for_an_epoch(folder, processes):
    deadline = time.monotonic() + ENDED
    while not history(folder / "run"):
        for worker, process in enumerate(processes):
            assert process.poll() is None, errors(folder, worker)
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.02)


@pytest.fixture
def started(start, tmp_path, tiny_network, free_port):
    """Two workers after one epoch of a user's network, which is built and checked before they train."""
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("NETWORK", tiny_network))
    cluster = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    processes = [start(cluster, worker, "recipe.toml", "--out", "run") for worker in (0, 1)]
    wait_for_an_epoch(tmp_path, processes)
    return processes


@pytest.mark.slow
def test_two_workers_train_like_one_process_even_if_one_is_lost(tmp_path, monkeypatch, start, started, free_port):
    started[1].kill()
    assert started[0].wait(ENDED) == ClusterError.exit_code, errors(tmp_path, 0)
    message = errors(tmp_path, 0).partition("edgecnn: error: ")[2]
    assert "a worker was lost" in message and "worker 0 with --resume" in message and "Traceback" not in message
    kept = len(history(tmp_path / "run"))
    assert 1 <= kept < EPOCHS

    cluster = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    processes = [
        start(cluster, 0, "--resume", "--out", "run"),
        start(cluster, 1, "recipe.toml", "--out", "other"),
    ]
    assert processes[1].wait(ENDED) == 0, errors(tmp_path, 1)
    assert processes[0].wait(ENDED) == 0, errors(tmp_path, 0)
    assert f"float epoch {kept}/{EPOCHS}" not in errors(tmp_path, 0), "a finished epoch was trained again"
    assert not (tmp_path / "other").exists(), "a worker that is not the first writes nothing"

    monkeypatch.chdir(tmp_path)
    together = history(tmp_path / "run")
    assert [row["phase"] for row in together] == ["float"] * EPOCHS + ["qat"]
    # workers share only the float phase: worker 0 continues alone
    recipe = build_recipe(merge(load_recipe(tmp_path / "recipe.toml"), {"qat": {"method": "ptq"}}))
    alone = create_run(recipe, tmp_path / "alone")
    dataset = open_dataset(recipe.data)
    train(settle(recipe, dataset), dataset, alone, lambda progress: None)
    for row, other in zip(history(tmp_path / "alone"), together[:EPOCHS], strict=True):
        # BatchNorm that saw half of each batch was measured to change the first epoch's loss by 1.3e-2. Sums are computed in another order,
        # and the effect grows with the steps: at most 2.2e-2 in the loss, and 0.01 and 0.07 in the accuracies, were measured after it.
        first = row["epoch"] == "1"
        loss, accuracy, validation = (1e-5, 0.001, 0.005) if first else (0.05, 0.03, 0.15)
        assert float(other["loss"]) == pytest.approx(float(row["loss"]), rel=loss), row["epoch"]
        assert float(other["accuracy"]) == pytest.approx(float(row["accuracy"]), abs=accuracy)
        assert float(other["validation_accuracy"]) == pytest.approx(float(row["validation_accuracy"]), abs=validation)
        assert other["learning_rate"] == row["learning_rate"]


@pytest.mark.slow
def test_the_loss_of_the_first_worker_ends_the_other(tmp_path, started):
    started[0].kill()
    assert started[1].wait(ENDED) == ClusterError.exit_code, errors(tmp_path, 1)
    assert "a worker was lost" in errors(tmp_path, 1) and "Traceback" not in errors(tmp_path, 1)


def test_a_resume_after_the_last_float_epoch_keeps_its_weights():
    """The validated model is a copy of the one that a strategy trains: it has the checkpoint's weights even without an epoch."""
    train = {"epochs": 1, "schedule": "one-cycle", "learning_rate": 0.003, "label_smoothing": 0.05}
    recipe = build_recipe({"network": {"name": "article"}, "train": train})
    images, classes = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    kept, phase = float_phase(recipe, (8, 8, 1), 10, (images, classes), strategy=strategy)
    arrays = tuple(np.asarray(variable.numpy()) + 1 for variable in phase.variables)
    last = Checkpoint(phase="float", epoch=1, arrays=arrays, history=())
    batches = Batches(images=images, classes=classes, batch_size=4, seed=1, flip=False, shift=0)
    assert run_phase(phase, batches, None, (), last, lambda progress: None) == ()
    for weights, expected in zip(kept.variables, arrays, strict=False):
        assert np.array_equal(weights.numpy(), expected), weights.name


@pytest.mark.parametrize("schedule", ["one-cycle", "averaged"])
def test_a_strategy_trains_from_the_kept_models_weights(schedule):
    train = {"epochs": 1, "schedule": schedule, "learning_rate": 1e-8, "label_smoothing": 0.05}
    recipe = build_recipe({"network": {"name": "article"}, "train": train})
    images, classes = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    kept, phase = float_phase(recipe, (8, 8, 1), 10, (images, classes), strategy=strategy)
    given = [weights + 1 for weights in kept.get_weights()]
    kept.set_weights(given)
    phase.take_start()
    batches = Batches(images=images, classes=classes, batch_size=4, seed=1, flip=False, shift=0)
    run_phase(phase, batches, None, (), None, lambda progress: None)
    for weights, expected in zip(kept.get_weights(), given, strict=True):
        np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_a_batch_that_does_not_divide():
    from edgecnn.train.distribute import check_batch

    class Three:
        num_replicas_in_sync = 3

    check_batch(96, Three())
    check_batch(97, None)
    with pytest.raises(RecipeError, match=r"train\.batch_size must be a multiple of the 3 replicas.*received 97"):
        check_batch(97, Three())
