import contextlib
import csv
import dataclasses
import io
import json
import shutil
from functools import partial
from importlib import import_module

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.data.augment import augment
from edgecnn.errors import RunError, TrainingError
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.pixels import PAD
from edgecnn.recipe import build_recipe
from edgecnn.runs import CHECKPOINT, FLOAT_MODEL, HISTORY, QAT_MODEL, Run, create_run
from edgecnn.train.best import LIKE_FLOAT, LIKE_FLOAT_IMAGES, Score
from edgecnn.train.loop import Batches, load_checkpoint
from edgecnn.train.phases import is_enough
from edgecnn.train.settle import SCHEDULES, settle
from edgecnn.train.train import train


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny(tiny_network):
    """Build a recipe of two epochs in each phase; tables change it: `tiny(qat={"epochs": 3})`."""
    return partial(tiny_with, tiny_network)


def tiny_with(name, /, **tables):
    base = {
        "data": {"source": "digits"},
        "network": {"name": name},
        "train": {"epochs": 2, "batch_size": 128},
        "qat": {"epochs": 2, "batch_size": 128},
    }
    for table, values in tables.items():
        base[table] = base.get(table, {}) | values
    return build_recipe(base)


class Scripted:
    """Int8 files that differ from the float model in a number of answers: `wrong` for epochs 0, 1, …; `ptq_wrong` after training."""

    def __init__(self, wrong, ptq_wrong=0):
        self.wrong = wrong
        self.ptq_wrong = ptq_wrong
        self.seen = []

    def fake_quantized(self, model, images):
        self.seen.append(model.get_weights())
        return other_answers(self.wanted(images), self.wrong[len(self.seen) - 1])

    def post_training(self, model, train, images):
        return other_answers(self.wanted(images), self.ptq_wrong)

    def wanted(self, images):
        return predictor(model_from_bytes(self.run.read(FLOAT_MODEL, "train")), 1 / 128, 0)(images)


def other_answers(logits, count):
    """Change the model's answer on the first `count` images."""
    result = logits.copy()
    result[:count] = np.roll(result[:count], 1, axis=1)
    return result


def trained(recipe, path, int8=None, report=lambda progress: None):
    run = create_run(recipe, path)
    dataset = open_dataset(recipe.data)
    train(settle(recipe, dataset), dataset, run, report, int8=int8)
    return run


def qat_epochs(run):
    return [row for row in csv.DictReader(run.file(HISTORY).open()) if row["phase"] == "qat"]


def weights(run, name):
    return model_from_bytes(run.read(name, "train")).get_weights()


BRANCHES = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    branch = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, branch]))
    return Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))
"""
"""The building blocks of resnet8, in a network that is built in a tenth of the time."""


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    path = tmp_path_factory.mktemp("branches") / "net.py"
    path.write_text(BRANCHES)
    return f"{path}:build"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, branches, tiny_network):
    """Return a function that trains a recipe once per precision: the run, and copies of its folder at the end of each epoch, before its
    checkpoint is written: `float-2` has the checkpoint of `float-1`."""
    runs = {}

    def get(precision):
        if precision not in runs:
            # two kinds of network, and each rounding method in one of them
            name, rounding = {"float32": (tiny_network, "nearest"), "bfloat16": (branches, None)}[precision]
            recipe, folder = (
                tiny_with(name, train={"precision": precision}, qat={"rounding": rounding}),
                tmp_path_factory.mktemp("whole"),
            )

            def report(progress):
                if progress.validation_accuracy is not None:
                    shutil.copytree(folder / "run", folder / f"{progress.phase}-{progress.epoch}")

            runs[precision] = trained(recipe, folder / "run", report=report), folder
        return runs[precision]

    return get


@pytest.mark.parametrize(
    ("precision", "during"),
    [
        pytest.param("float32", "float-2", marks=pytest.mark.guard),
        ("float32", "qat-2"),
        pytest.param("bfloat16", "float-2", marks=pytest.mark.guard),
    ],
)
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, uninterrupted, precision, during):
    whole, copies = uninterrupted(precision)
    resumed = Run(shutil.copytree(copies / during, tmp_path / "resumed"))
    dataset = open_dataset(resumed.recipe.data)
    train(settle(resumed.recipe, dataset), dataset, resumed, lambda progress: None)
    for name in (FLOAT_MODEL, QAT_MODEL):
        for one, other in zip(weights(whole, name), weights(resumed, name), strict=True):
            assert np.array_equal(one, other)
    # the last epoch, with its optimizer: the kept one may be an earlier, better epoch
    for one, other in zip(load_checkpoint(whole).arrays, load_checkpoint(resumed).arrays, strict=True):
        assert np.array_equal(one, other)


def test_history_has_a_row_for_every_epoch(finished_run):
    rows = list(csv.DictReader(finished_run.file(HISTORY).open()))
    assert [(row["phase"], row["epoch"]) for row in rows] == [("float", str(n)) for n in range(1, 7)] + [("qat", "1")]
    assert all(0 <= float(row["validation_accuracy"]) <= 1 and float(row["images_per_s"]) > 0 for row in rows)


def test_training_learns(finished_run):
    assert finished_run.info.validation_accuracy > 0.8


def test_the_input_stays_pinned(finished_run):
    quantizer = model_from_bytes(finished_run.read(QAT_MODEL, "train")).layers[1]
    low, high = (float(quantizer.get_weights()[index]) for index in (0, 1))
    assert sorted((low, high)) == [-1.0, 127 / 128]


EXPLODING = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.Flatten()(inputs)
    for _ in range(3):
        x = layers.Dense(num_classes)(x)
    return Model(inputs, x)
"""
"""A product of weights: without BatchNorm, it grows faster and faster if the steps are too large."""


def test_loss_that_is_not_a_number_ends_with_an_error_and_keeps_the_last_epoch(tmp_path, tiny):
    (tmp_path / "net.py").write_text(EXPLODING)
    rate = {"learning_rate": 100.0, "optimizer": "sgd", "schedule": "constant", "epochs": 20, "weight_decay": 0.0}
    recipe = tiny(train=rate, network={"input_range": "raw", "name": f"{tmp_path}/net.py:build"})
    run = create_run(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not a number in epoch \d+ of the float phase"):
        dataset = open_dataset(recipe.data)
        train(settle(recipe, dataset), dataset, run, lambda progress: None)
    assert not run.file(FLOAT_MODEL).exists()


def altered(state, **changes):
    return {"state": np.array(json.dumps(state | changes))}


ALTERED = {
    "cut off": lambda data, arrays, state: data[: len(data) // 2],
    "no zip": lambda data, arrays, state: b"PK\x03\x04 not a checkpoint",
    "empty": lambda data, arrays, state: b"",
    "one array": lambda data, arrays, state: npy(np.zeros(3)),
    "a bit": lambda data, arrays, state: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "no state": lambda data, arrays, state: packed(arrays),
    "state is a list": lambda data, arrays, state: packed(arrays | {"state": np.array("[]")}),
    "deep state": lambda data, arrays, state: packed(arrays | {"state": np.array("[" * 100_000)}),
    "phase": lambda data, arrays, state: packed(arrays | altered(state, phase="bfloat")),
    "epoch is text": lambda data, arrays, state: packed(arrays | altered(state, epoch="2")),
    "later epoch": lambda data, arrays, state: packed(arrays | altered(state, epoch=99)),
    "history": lambda data, arrays, state: packed(arrays | altered(state, history=[{"phase": "float"}] * state["epoch"])),
    "fewer arrays": lambda data, arrays, state: packed(dict(list(arrays.items())[1:]) | altered(state)),
    "other shapes": lambda data, arrays, state: packed(
        {name: np.concatenate([array.ravel()] * 2) for name, array in arrays.items()} | altered(state)
    ),
    "text": lambda data, arrays, state: packed({name: np.full(array.shape, "x") for name, array in arrays.items()} | altered(state)),
}  # fmt: skip
"""Make a checkpoint's bytes from the original's bytes, arrays and state."""


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def packed(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def damage(uninterrupted, tmp_path):
    """Damage the checkpoint of a run that was interrupted in its second epoch, in one of the ways of ALTERED; return the run."""
    _, copies = uninterrupted("float32")
    run = Run(shutil.copytree(copies / "float-2", tmp_path / "run"))
    data = run.file(CHECKPOINT).read_bytes()
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    state = json.loads(str(arrays.pop("state")))

    def damage(how):
        run.file(CHECKPOINT).write_bytes(ALTERED[how](data, arrays, state))
        return run

    return damage


NOT_THIS_NETWORK = ("fewer arrays", "other shapes", "text")


@pytest.mark.parametrize("how", ["cut off", *NOT_THIS_NETWORK])
def test_damaged_checkpoint_is_named(edgecnn, damage, how):
    result = edgecnn("train", "--resume", "--out", damage(how).path)
    assert result.code == RunError.exit_code, result.err
    assert "checkpoint.npz is damaged (" in result.err and "Train again with --force" in result.err


def test_no_damaged_checkpoint_is_read(damage):
    for how in ALTERED.keys() - set(NOT_THIS_NETWORK):
        run, read = damage(how), None
        with contextlib.suppress(RunError):
            read = load_checkpoint(run)
        assert read is None, how


@pytest.mark.slow
def test_no_qat_epochs_still_calibrates(tmp_path, tiny):
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


def test_augment_moves_pixels_without_inventing_any():
    images = np.full((200, 6, 6, 3), 7, np.uint8)
    images[:, 2, 1] = 200
    result = augment(images, np.random.default_rng(0), flip=True, shift=2)
    assert result.shape == images.shape
    assert set(np.unique(result)) <= {7, 200, PAD}
    columns = {int(np.argwhere(image[:, :, 0] == 200)[0][1]) for image in result if (image == 200).any()}
    assert columns == {0, 1, 2, 3, 4, 5}, "mirrored and shifted both ways"
    assert np.array_equal(augment(images, np.random.default_rng(0), flip=False, shift=0), images)


def test_schedules_start_and_end_correctly():
    assert SCHEDULES["one-cycle"](0.0) == 0 and SCHEDULES["one-cycle"](0.2) == 1
    assert SCHEDULES["one-cycle"](1.0) == pytest.approx(0)
    assert SCHEDULES["cosine"](0.0) == 1 and SCHEDULES["cosine"](1.0) == pytest.approx(0)
    assert SCHEDULES["constant"](0.7) == 1


def scripted(recipe, path, rounding="nearest", **options):
    """Train with scripted int8 answers; return the run and the script."""
    recipe = dataclasses.replace(recipe, qat=dataclasses.replace(recipe.qat, rounding=rounding))
    int8 = Scripted(**options)
    int8.run = Run(path)
    return trained(recipe, path, int8=int8), int8


def test_the_epoch_whose_int8_file_is_best_is_kept(tmp_path, tiny):
    """The recipe fixes the method, so quantization after training, which is better, is not chosen."""
    run, int8 = scripted(tiny(qat={"epochs": 3, "method": "qat"}), tmp_path / "run", wrong=[3, 2, 1, 2], ptq_wrong=0)
    assert (run.int8_method, run.info.int8.epoch, len(int8.seen)) == ("qat", 2, 4)
    agreement = [float(row["int8_agreement"]) for row in qat_epochs(run)]
    assert agreement == [round(1 - count / 206, 6) for count in (2, 1, 2)]
    stored = weights(run, QAT_MODEL)

    def same(one, other):
        return sorted(array.tobytes() for array in one) == sorted(array.tobytes() for array in other)

    assert same(stored, int8.seen[2]), "evaluated and stored with the same range of logits"
    assert not same(stored, int8.seen[3])


@pytest.mark.guard
def test_a_resumed_phase_still_knows_its_best_epoch_and_the_calibrated_models_score(tmp_path, tiny):
    """It is interrupted while a worse epoch follows the best one, and ends with another worse one."""
    recipe = tiny(qat={"epochs": 3, "method": "qat", "rounding": "nearest"})
    int8 = Scripted(wrong=[3, 1, 2, 2, 2], ptq_wrong=0)
    int8.run = Run(tmp_path / "run")

    def report(progress):
        if (progress.phase, progress.epoch) == ("qat", 3) and progress.validation_accuracy is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(recipe, int8.run.path, int8, report)
    dataset = open_dataset(recipe.data)
    train(settle(recipe, dataset), dataset, int8.run, lambda progress: None, int8=int8)
    chosen = int8.run.info.int8
    assert (chosen.epoch, chosen.rounding, len(int8.seen)) == (1, "nearest", 5)
    assert chosen.validation.qat.agreement == 1 - 1 / 206
    assert chosen.validation.calibrated.agreement == 1 - 3 / 206


@pytest.fixture(scope="module")
def losses_of_nearest(tmp_path_factory, tiny):
    """The training losses without rounded kernels, which do not depend on scripted answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nearest"))
        run, _ = scripted(tiny(), tmp_path_factory.mktemp("nearest") / "run", wrong=[0, 1, 2])
    return [row["loss"] for row in qat_epochs(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "epoch", "rounding"),
    [([2, 1, 3, 3], 0, "gptq"), ([2, 1, 3, 0], 2, "nearest"), ([1, 2, 3, 3], 0, "nearest")],
)
def test_rounded_kernels_are_a_second_start(tmp_path, tiny, losses_of_nearest, wrong, epoch, rounding):
    """Training continues from the calibrated kernels either way."""
    run, int8 = scripted(tiny(), tmp_path / "run", rounding=None, wrong=wrong)
    chosen = run.info.int8
    assert (chosen.epoch, chosen.rounding) == (epoch, rounding) and len(int8.seen) == 4
    assert chosen.validation.qat.agreement == 1 - min(wrong) / 206
    assert chosen.validation.qat_nearest.agreement == 1 - (wrong[0] if epoch == 0 else min(wrong)) / 206
    assert [row["loss"] for row in qat_epochs(run)] == losses_of_nearest


@pytest.mark.parametrize(
    ("ptq_wrong", "method"), [(0, "ptq"), *(pytest.param(wrong, "qat", marks=pytest.mark.slow) for wrong in (1, 2))]
)
def test_the_better_method_on_validation_is_chosen(tmp_path, ptq_wrong, method, tiny):
    run, _ = scripted(tiny(qat={"epochs": 0}), tmp_path / "run", wrong=[1], ptq_wrong=ptq_wrong)
    assert (run.info.int8.asked, run.info.int8.method, run.int8_method) == ("auto", method, method)


def scored(agreed, divergence, n=LIKE_FLOAT_IMAGES):
    return Score(
        n=n, right=9, agreed=agreed, lost=0, gained=0, divergence=divergence, within=divergence, credit=9, spread=0
    )


@pytest.mark.parametrize(
    ("network", "method", "ptq", "enough"),
    [
        ("efficientnet_lite0_150kb", None, scored(16, LIKE_FLOAT), True),
        ("efficientnet_lite0_150kb", None, scored(16, LIKE_FLOAT + 1e-6), False),
        ("efficientnet_lite0_150kb", None, scored(15, 0.0), False),
        ("efficientnet_lite0_150kb", None, scored(15, 0.0, n=15), False),
        ("efficientnet_lite0_150kb", None, None, False),
        ("efficientnet_lite0_150kb", "qat", scored(16, 0.0), False),
        ("resnet8", None, scored(16, 0.0), False),
    ],
)
def test_the_phase_can_be_skipped_if_the_other_method_answers_as_float_from_trained_weights(
    network, method, ptq, enough
):
    recipe = build_recipe({"network": {"name": network}, "qat": {"method": method} if method else {}})
    assert is_enough(recipe, ptq) is enough


def test_skipping_the_phase_leaves_no_model_of_it(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(import_module("edgecnn.train.phases"), "starts_trained", lambda recipe: True)
    run, int8 = scripted(tiny(), tmp_path / "run", wrong=[])
    assert run.info.int8.skipped and not int8.seen and not run.file(QAT_MODEL).exists() and not qat_epochs(run)
    assert (run.int8_method, run.info.int8.epoch, run.info.int8.decided_by) == ("ptq", None, None)
    assert run.info.validation_accuracy == run.info.int8.validation.float.accuracy


def test_from_trained_weights_the_phase_ends_at_an_epoch_that_answers_as_float(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(import_module("edgecnn.train.phases"), "starts_trained", lambda recipe: True)
    monkeypatch.setattr(import_module("edgecnn.train.best"), "LIKE_FLOAT", 1.0)
    run, int8 = scripted(tiny(qat={"epochs": 3}), tmp_path / "run", wrong=[2, 0, 1, 0], ptq_wrong=3)
    assert (run.info.int8.epoch, len(int8.seen), len(qat_epochs(run))) == (1, 2, 1)


def test_post_training_quantization_skips_the_phase(tmp_path, tiny):
    run, _ = scripted(tiny(qat={"method": "ptq"}), tmp_path / "run", wrong=[])
    assert not run.file(QAT_MODEL).exists() and not qat_epochs(run)
    assert run.int8_method == "ptq" and run.info.int8.epoch is None and not run.info.int8.skipped, "it was requested"
