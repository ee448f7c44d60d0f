import csv
import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.data.augment import augment
from edgecnn.errors import RunError, TrainingError
from edgecnn.images import PAD
from edgecnn.networks.predict import model_from_bytes
from edgecnn.recipe import build_recipe
from edgecnn.runs import CHECKPOINT, FLOAT_MODEL, HISTORY, QAT_MODEL, create_run
from edgecnn.train import train
from edgecnn.train.loop import Batches
from edgecnn.train.schedule import SCHEDULES


class Stop(KeyboardInterrupt):
    """An interruption at a chosen moment."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tiny(**tables):
    base = {
        "data": {"source": "digits"},
        "train": {"epochs": 2, "batch_size": 128},
        "qat": {"epochs": 2, "batch_size": 128},
    }
    for table, values in tables.items():
        base[table] = base.get(table, {}) | values
    return build_recipe(base)


def trained(recipe, path, stop_after=None):
    """Train, interrupted after the (phase, epoch) given and resumed."""
    dataset = open_dataset(recipe.data)
    run = create_run(recipe, path)

    def report(progress):
        # the first report of the epoch that follows the one to keep
        if stop_after and (progress.phase, progress.epoch) == stop_after and progress.validation_accuracy is not None:
            raise Stop

    if stop_after:
        with pytest.raises(Stop):
            train(recipe, dataset, run, report)
    train(recipe, dataset, run, lambda progress: None)
    return run


def weights(run, name):
    return model_from_bytes(run.read(name, "train")).get_weights()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function that trains a recipe without interruption, once for each."""
    runs = {}

    def get(precision, network):
        if (precision, network) not in runs:
            recipe = tiny(train={"precision": precision}, network={"name": network})
            runs[precision, network] = recipe, trained(recipe, tmp_path_factory.mktemp("whole") / "run")
        return runs[precision, network]

    return get


@pytest.mark.parametrize(
    ("precision", "network", "stop_after"),
    [
        ("float32", "resnet8", ("float", 2)),
        ("float32", "resnet8", ("qat", 2)),
        ("bfloat16", "article", ("float", 2)),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, uninterrupted, precision, network, stop_after):
    recipe, whole = uninterrupted(precision, network)
    resumed = trained(recipe, tmp_path / "resumed", stop_after)
    for name in (FLOAT_MODEL, QAT_MODEL):
        for one, other in zip(weights(whole, name), weights(resumed, name), strict=True):
            assert np.array_equal(one, other)


def test_history_has_a_row_for_every_epoch(finished_run):
    rows = list(csv.DictReader(finished_run.file(HISTORY).open()))
    assert [(row["phase"], row["epoch"]) for row in rows] == [("float", str(n)) for n in range(1, 7)] + [("qat", "1")]
    assert all(0 <= float(row["validation_accuracy"]) <= 1 and float(row["images_per_s"]) > 0 for row in rows)


def test_training_learns(finished_run):
    assert finished_run.info["validation_accuracy"] > 0.8


def test_the_input_stays_pinned(finished_run):
    quantizer = model_from_bytes(finished_run.read(QAT_MODEL, "train")).layers[1]
    low, high = (float(quantizer.get_weights()[index]) for index in (0, 1))
    assert sorted((low, high)) == [-1.0, 127 / 128]


def test_loss_that_is_not_a_number_ends_with_an_error_and_keeps_the_last_epoch(tmp_path):
    rate = {"learning_rate": 100.0, "optimizer": "sgd", "schedule": "constant", "epochs": 20, "weight_decay": 0.0}
    recipe = tiny(train=rate, network={"input_range": "raw", "name": "resnet8"})
    run = create_run(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not a number in epoch \d+ of the float phase"):
        train(recipe, open_dataset(recipe.data), run, lambda progress: None)
    assert not run.file(FLOAT_MODEL).exists()


def test_damaged_checkpoint_is_named(tmp_path):
    recipe = tiny()
    run = create_run(recipe, tmp_path / "run")
    run.file(CHECKPOINT).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(RunError, match="is damaged"):
        train(recipe, open_dataset(recipe.data), run, lambda progress: None)


def test_no_qat_epochs_still_calibrates(tmp_path):
    run = trained(tiny(qat={"epochs": 0}), tmp_path / "run")
    ranges = [w for w in weights(run, QAT_MODEL) if w.shape == () and w.dtype == np.float32]
    assert not any(np.isclose(abs(w), 6.0) for w in ranges), "an activation range was left at its start of 6"


def test_batches_are_seeded_by_phase_and_epoch():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    batches = Batches(images=images, classes=np.arange(50), batch_size=8, seed=1, flip=True, shift=1)

    def order(batches, phase, epoch):
        return [int(number) for _, classes in batches.epoch(phase, epoch) for number in classes]

    assert order(batches, "float", 0) == order(batches, "float", 0)
    assert order(batches, "float", 0) != order(batches, "float", 1)
    assert order(batches, "float", 0) != order(batches, "qat", 0)
    assert order(batches, "float", 0) != order(dataclasses.replace(batches, seed=2), "float", 0)
    assert len(set(order(batches, "float", 0))) == 48, "whole batches only, no image twice"


def test_augment_moves_pixels_and_invents_none():
    images = np.full((200, 6, 6, 3), 7, np.uint8)
    images[:, 2, 1] = 200
    result = augment(images, np.random.default_rng(0), flip=True, shift=2)
    assert result.shape == images.shape
    assert set(np.unique(result)) <= {7, 200, PAD}
    columns = {int(np.argwhere(image[:, :, 0] == 200)[0][1]) for image in result if (image == 200).any()}
    assert columns == {0, 1, 2, 3, 4, 5}, "mirrored and shifted both ways"
    assert np.array_equal(augment(images, np.random.default_rng(0), flip=False, shift=0), images)


def test_schedules_start_and_end_where_they_should():
    assert SCHEDULES["one-cycle"](0.0) == 0 and SCHEDULES["one-cycle"](0.2) == 1
    assert SCHEDULES["one-cycle"](1.0) == pytest.approx(0)
    assert SCHEDULES["cosine"](0.0) == 1 and SCHEDULES["cosine"](1.0) == pytest.approx(0)
    assert SCHEDULES["constant"](0.7) == 1
