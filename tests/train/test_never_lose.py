"""A failure during training costs at most the current epoch: kill -9 at any moment, and images that vanish."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.errors import DatasetError
from edgecnn.networks.predict import model_from_bytes
from edgecnn.recipe import build_recipe
from edgecnn.runs import FLOAT_MODEL, INFO, LOCK, QAT_MODEL, Run, create_run
from edgecnn.train.train import train

TABLES = {
    "data": {"source": "digits"},
    "train": {"epochs": 4, "batch_size": 8},
    "qat": {"epochs": 2, "batch_size": 16},
}
NEAREST = TABLES | {"qat": TABLES["qat"] | {"rounding": "nearest"}}
KILLS = 2
WINDOW = 3.0
"""The kill comes within this many seconds of the run's first file: about the time of its epochs on an idle machine."""


def weights(run, name):
    return model_from_bytes(run.read(name, "train")).get_weights()


def equal(one, other):
    return all(
        np.array_equal(*pair)
        for name in (FLOAT_MODEL, QAT_MODEL)
        for pair in zip(weights(one, name), weights(other, name), strict=True)
    )


@pytest.mark.guard
def test_kill_at_random_moments_changes_nothing(tmp_path, monkeypatch, spawn, tiny_network):
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(TABLES | {"network": {"name": tiny_network}})
    whole = create_run(recipe, tmp_path / "whole")
    train(recipe, open_dataset(recipe.data), whole, lambda progress: None)

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
        train(recipe, dataset, run, lambda progress: None)
    (tmp_path / "elsewhere").rename(photos)
    assert train(run.recipe, open_dataset(recipe.data), run, lambda progress: None).state == "trained"


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
        train(recipe, open_dataset(recipe.data), run, report)
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    result = edgecnn("train", "--resume", "--out", run.path)
    assert result.code == DatasetError.exit_code
    assert str(photos) in result.err and f"edgecnn train --resume --out {run.path}" in result.err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != LOCK} == kept
    (tmp_path / "elsewhere").rename(photos)
    assert edgecnn("train", "--resume", "--out", run.path).code == os.EX_OK
    assert Run(run.path).info.state == "trained"
