"""The two phases: their ingredients, the rate, and a float model that quantization never loses."""

import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.data.augment import augment
from edgecnn.errors import DatasetError, RunError
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import model_bytes, model_from_bytes
from edgecnn.pixels import PAD
from edgecnn.recipe import build_recipe
from edgecnn.runs import CHECKPOINT, FLOAT_MODEL, INFO, LOCK, QAT_MODEL, Run, create_run
from edgecnn.train.loop import Batches
from edgecnn.train.origin import Teacher, open_teacher, remembered
from edgecnn.train.phases import SAFE_RATE
from edgecnn.train.settle import learning_rates, settle
from edgecnn.train.train import dry_run, train


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(tiny_network):
    """Train on the digits with ingredients; see `train_with`."""
    return partial(train_with, tiny_network)


def train_with(tiny_network, path, stop_after=None, network=None, method="ptq", teacher=None, **ingredients):
    """Train on the digits with the ingredients; if an epoch is given, stop after it in the float phase and resume.

    The ingredients apply to the float phase; a quantization-aware phase follows unless the method is "ptq".
    """
    recipe = build_recipe(
        {
            "data": {"source": "digits"},
            "network": {"name": network or tiny_network},
            "train": {"epochs": 2, "batch_size": 128} | ingredients,
            "teacher": teacher,
            "qat": {"epochs": 0, "method": method},
        }
    )
    run = create_run(recipe, path)

    def report(progress):
        if progress.epoch == stop_after and progress.validation_accuracy is not None:
            raise KeyboardInterrupt

    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            dataset = open_dataset(recipe.data)
            train(settle(recipe, dataset), dataset, run, report)
        assert run.file(CHECKPOINT).exists(), "there is something to resume: an epoch is reported before it is saved"
    dataset = open_dataset(recipe.data)
    train(settle(recipe, dataset), dataset, run, lambda progress: None)
    return run


def weights(run, name=FLOAT_MODEL):
    return model_from_bytes(run.read(name, "train")).get_weights()


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.guard
def test_all_ingredients_resume_bit_for_bit(trained, tmp_path, finished_run):
    ingredients = {
        "flip": "alternating", "cutout": 3, "precision": "bfloat16",
        "teacher": {"run": str(finished_run.path)},
    }  # fmt: skip
    whole = trained(tmp_path / "whole", method=None, **ingredients)
    resumed = trained(tmp_path / "resumed", stop_after=2, method=None, **ingredients)
    for name in (FLOAT_MODEL, QAT_MODEL):
        for one, other in zip(weights(whole, name), weights(resumed, name), strict=True):
            assert np.array_equal(one, other)
    assert whole.info.teacher.name == finished_run.name
    assert whole.public_recipe.teacher.run == finished_run.name, "no path of this machine travels"


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.guard
def test_a_resumed_runs_averages_are_the_same_bit_for_bit(trained, tmp_path):
    whole = trained(tmp_path / "whole", schedule="averaged", learning_rate=0.003)
    resumed = trained(tmp_path / "resumed", stop_after=2, schedule="averaged", learning_rate=0.003)
    constant = trained(tmp_path / "constant", schedule="constant", learning_rate=0.003)
    assert all(np.array_equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))
    changed = [not np.array_equal(one, other) for one, other in zip(weights(whole), weights(constant), strict=True)]
    assert all(changed), "weights and BatchNorm's statistics are averages"


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.slow
def test_the_student_learns_from_its_teacher(trained, tmp_path, finished_run):
    """The teacher takes each digit for the next one. A student that learns only from it does so too, whatever the labels say."""
    teacher = Run(tmp_path / "teacher")
    shutil.copytree(finished_run.path, teacher.path)
    model = model_from_bytes(teacher.read(FLOAT_MODEL, "train"))
    model.layers[-1].set_weights([np.roll(array, 1, axis=-1) for array in model.layers[-1].get_weights()])
    teacher.file(FLOAT_MODEL).write_bytes(model_bytes(model))

    guide = {"run": str(teacher.path), "weight": 1.0}
    run = trained(tmp_path / "run", network="article", epochs=6, batch_size=64, shift=0, teacher=guide)
    split = open_dataset(run.recipe.data).load(("validation",), height=8, width=8, channels=1, stage="train")[
        "validation"
    ]
    real = (split.images.astype(np.float32) - 128) / 128
    answers = np.argmax(model_from_bytes(run.read(FLOAT_MODEL, "train"))(real).numpy(), axis=1)
    assert np.mean(answers == (split.classes + 1) % 10) > 0.6


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.slow
def test_the_teacher_classifies_repeated_images_only_once(trained, tmp_path, finished_run, monkeypatch):
    ingredients = {
        "teacher": {"run": str(finished_run.path), "views": 1},
        "epochs": 3,
        "flip": "alternating",
        "shift": 2,
    }
    remembering = trained(tmp_path / "remembering", **ingredients)
    resumed = trained(tmp_path / "resumed", stop_after=2, **ingredients)
    monkeypatch.setattr(import_module("edgecnn.train.train"), "remembered", lambda teacher, *sizes: teacher)
    asking = trained(tmp_path / "asking", **ingredients)
    for one, other, third in zip(weights(remembering), weights(resumed), weights(asking), strict=True):
        assert np.array_equal(one, other) and np.array_equal(one, third)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_remembered_answers_are_the_first_ones():
    asked = []

    def logits(images, step):
        tf.py_function(lambda now: asked.append(int(now)), [step], [])
        return tf.cast(tf.fill((2, 3), step), tf.float32)

    answer = tf.function(remembered(Teacher(logits=logits, described=None), steps=4, size=2, num_classes=3).logits)
    found = [answer(tf.zeros((2, 1, 1, 1)), tf.constant(step, tf.int64)).numpy() for step in (0, 1, 2, 3, 4, 5, 10, 3)]
    assert [array[1, 2] for array in found] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert asked == [0, 1, 2, 3]


@pytest.mark.guard
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_dry_run_times_both_parts(finished_run, tiny_network):
    """With and without the teacher, since only the first epochs use it."""
    phases = {"train": {"epochs": 7, "batch_size": 64}, "qat": {"epochs": 2, "batch_size": 64}}
    teacher = {"run": str(finished_run.path), "views": 3}
    network = {"name": tiny_network}
    recipe = build_recipe({"data": {"source": "digits"}, "network": network, "teacher": teacher, **phases})
    recipe = settle(recipe, open_dataset(recipe.data))
    found = dry_run(recipe, (8, 8, 1), tuple("0123456789"), train_images=1000, steps=1)
    assert [(phase.phase, phase.epochs) for phase in found.phases] == [
        ("float", 3),
        ("float, remembered", 4),
        ("qat", 2),
    ]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("views", [0, 2])
def test_views_repeat_their_epochs(views):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    batches = Batches(
        images=images, classes=np.arange(40), batch_size=16, seed=1, flip=True, alternating=True, shift=2, views=views
    )
    epochs = [[(image.tobytes(), labels.tobytes()) for image, labels in batches.epoch("float", n)] for n in range(4)]
    assert epochs[0] != epochs[1]
    assert [epochs[0] == epochs[2], epochs[1] == epochs[3]] == [bool(views), bool(views)]


@pytest.mark.parametrize("side", [5, 16])
def test_a_teacher_sees_the_students_images_at_its_own_size(finished_run, side):
    recipe = build_recipe({"data": {"source": "digits"}, "teacher": {"run": str(finished_run.path)}})
    images = np.random.default_rng(2).integers(0, 256, (3, side, side, 1), np.uint8)
    resized = [
        Image.fromarray(image[:, :, 0].astype(np.float32)).resize((8, 8), Image.Resampling.BILINEAR) for image in images
    ]
    real = (np.stack(resized)[..., np.newaxis] - 128) / 128
    expected = model_from_bytes(finished_run.read(FLOAT_MODEL, "train"))(real)
    logits = open_teacher(settle(recipe, open_dataset(recipe.data)), (side, side, 1), tuple("0123456789")).logits(
        images, 0
    )
    assert np.allclose(logits, expected, atol=1e-4) and np.ptp(expected) > 0.1


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("wrong", ["missing", "labels", "changed"])
def test_an_incompatible_teacher(trained, tmp_path, finished_run, wrong):
    teacher = tmp_path / "teacher"
    if wrong == "missing":
        with pytest.raises(RunError, match=f"^{teacher} "):
            trained(tmp_path / "run", teacher={"run": str(teacher)})
        return
    shutil.copytree(finished_run.path, teacher)
    if wrong == "labels":
        text = (teacher / "run.json").read_text()
        (teacher / "run.json").write_text(text.replace('"labels": [\n   "0"', '"labels": [\n   "nought"'))
        with pytest.raises(
            RunError,
            match=r"1-channel images and 10 classes, nought, 1.*expected 1-channel images and 10 classes, 0, 1",
        ):
            trained(tmp_path / "run", teacher={"run": str(teacher)})
        return
    run = trained(tmp_path / "run", teacher={"run": str(teacher)})
    shutil.copy(run.file(FLOAT_MODEL), teacher / FLOAT_MODEL)
    with pytest.raises(RunError, match="has changed since the run began"):
        dataset = open_dataset(run.recipe.data)
        train(settle(run.recipe, dataset), dataset, run, lambda progress: None)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_cutout_covers_a_square():
    images = np.full((300, 8, 8, 1), 7, np.uint8)
    covered = augment(images, np.random.default_rng(0), flip=False, shift=0, cutout=3) == PAD
    assert (images == 7).all(), "the images themselves are left alone"
    sizes = covered.sum((1, 2, 3))
    assert sizes.max() == 9 and sizes.min() == 4, "whole, or cut off by a corner"
    whole = covered[sizes == 9][0, :, :, 0]
    rows, columns = whole.any(1), whole.any(0)
    assert rows.sum() == columns.sum() == 3 and whole[np.ix_(rows, columns)].all()
    assert covered.any((0, 3)).all(), "every pixel is covered in some image"


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    images = np.zeros((64, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(64) + 1
    batches = Batches(images=images, classes=np.arange(64), batch_size=16, seed=1, flip=True, shift=0, alternating=True)

    def mirrored(epoch):
        seen = {}
        for pictures, classes in batches.epoch("float", epoch):
            seen |= {int(number): bool(picture[0, 3, 0]) for picture, number in zip(pictures, classes, strict=True)}
        return seen

    first, second, third = (mirrored(epoch) for epoch in range(3))
    assert all(first[number] != second[number] for number in range(64))
    assert first == third
    assert 16 < sum(first.values()) < 48


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_warm_up():
    rates = learning_rates("one-cycle", 2.0)
    assert (rates(0.0), rates(0.2)) == (0.0, 2.0) and rates(0.6) == pytest.approx(1.0)
    assert learning_rates("cosine", 2.0)(0.0) == 2.0


TABLES = {
    "data": {"source": "digits"},
    "train": {"epochs": 4, "batch_size": 8},
    "qat": {"epochs": 2, "batch_size": 16},
}
NEAREST = TABLES | {"qat": TABLES["qat"] | {"rounding": "nearest"}}
KILLS = 2
WINDOW = 3.0
"""The kill comes within this many seconds of the run's first file: about the time of its epochs on an idle machine."""


def weights_never_lose(run, name):
    return model_from_bytes(run.read(name, "train")).get_weights()


def equal(one, other):
    return all(
        np.array_equal(*pair)
        for name in (FLOAT_MODEL, QAT_MODEL)
        for pair in zip(weights_never_lose(one, name), weights_never_lose(other, name), strict=True)
    )


@pytest.mark.guard
def test_kill_at_random_moments_changes_nothing(tmp_path, monkeypatch, spawn, tiny_network):
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(TABLES | {"network": {"name": tiny_network}})
    whole = create_run(recipe, tmp_path / "whole")
    dataset = open_dataset(recipe.data)
    train(settle(recipe, dataset), dataset, whole, lambda progress: None)

    killed = create_run(recipe, tmp_path / "killed")
    moments = random.Random(seed := random.randrange(10**6))
    print(f"moments drawn with seed {seed}")
    command = [sys.executable, "-m", "edgecnn", "train", "--resume", "--out", "killed"]
    for _ in range(KILLS):
        started = time.time()
        process = spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not killed.file(INFO).exists() or killed.file(INFO).stat().st_mtime < started:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        time.sleep(moments.uniform(0, WINDOW))
        process.kill()
        process.communicate()
    last = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert killed.info.state == "trained"
    assert equal(whole, killed)


@pytest.fixture
def photos(tmp_path):
    """A folder of 60 pictures in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    for index, picture in enumerate(pixels):
        path = tmp_path / "photos" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "photos"


def test_images_that_vanish_before_they_are_decoded(tmp_path, monkeypatch, photos, tiny_network):
    monkeypatch.chdir(tmp_path)
    short = {"train": {"epochs": 1, "batch_size": 8}, "qat": {"method": "ptq"}}
    recipe = build_recipe(short | {"data": {"source": str(photos)}, "network": {"name": tiny_network}})
    dataset = open_dataset(recipe.data)
    run = create_run(recipe, tmp_path / "run")
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"photos: 60 of 60 images cannot be read: .*No such file"):
        train(settle(recipe, dataset), dataset, run, lambda progress: None)
    (tmp_path / "elsewhere").rename(photos)
    dataset = open_dataset(run.recipe.data)
    assert train(settle(run.recipe, dataset), dataset, run, lambda progress: None).state == "trained"


@pytest.mark.slow
def test_images_that_vanish_while_a_run_trains(tmp_path, monkeypatch, edgecnn, photos, tiny_network):
    """They are in memory by then, so the run continues. If interrupted, it cannot resume without them, and says so."""
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(NEAREST | {"data": {"source": str(photos)}, "network": {"name": tiny_network}})
    run = create_run(recipe, tmp_path / "run")

    def report(progress):
        if (progress.phase, progress.epoch) == ("float", 1) and photos.exists():
            photos.rename(tmp_path / "elsewhere")
        if (progress.phase, progress.epoch) == ("qat", 1) and progress.validation_accuracy is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset = open_dataset(recipe.data)
        train(settle(recipe, dataset), dataset, run, report)
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    result = edgecnn("train", "--resume", "--out", run.path)
    assert result.code == DatasetError.exit_code
    assert str(photos) in result.err and f"edgecnn train --resume --out {run.path}" in result.err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != LOCK} == kept
    (tmp_path / "elsewhere").rename(photos)
    assert edgecnn("train", "--resume", "--out", run.path).code == os.EX_OK
    assert Run(run.path).info.state == "trained"


SHARP = {
    "data": {"source": "digits", "validation_fraction": 0.3},
    # pixels of 0 to 255 make the loss bend hundreds of times as much as inputs of -1 to 1
    "network": {"input_range": "raw"},
    "train": {"epochs": 4, "batch_size": 32},
    "qat": {"epochs": 1, "batch_size": 32, "rounding": "nearest"},
}


def trained_qat_rate(folder, tables):
    """Train a run; return its record and the agreement after each quantization-aware epoch."""
    recipe = build_recipe(tables)
    agreements = []

    def report(progress):
        if progress.int8_agreement is not None:
            agreements.append(progress.int8_agreement)

    dataset = open_dataset(recipe.data)
    info = train(settle(recipe, dataset), dataset, create_run(recipe, folder), report)
    return info.int8, agreements


@pytest.mark.guard
def test_no_epoch_falls_below_the_calibrated_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen, agreements = trained_qat_rate(tmp_path / "run", SHARP)
    assert chosen.learning_rate == SAFE_RATE
    assert len(agreements) == SHARP["qat"]["epochs"]
    assert min(agreements) >= chosen.validation.calibrated.agreement - 0.015  # processors differ: 0 to 6 of 573 images


@pytest.mark.slow
def test_a_recipes_own_rate_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = SHARP | {"qat": SHARP["qat"] | {"learning_rate": 0.01}}
    chosen, agreements = trained_qat_rate(tmp_path / "run", tables)
    assert chosen.learning_rate == 0.01
    # the failure that the default prevents
    assert agreements[0] < chosen.validation.calibrated.agreement - 0.01
