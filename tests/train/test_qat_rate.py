"""The quantization-aware phase's default optimizer: it never degrades the calibrated model that it starts from."""

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.recipe import build_recipe
from edgecnn.runs import create_run
from edgecnn.train.phases import SAFE_RATE
from edgecnn.train.train import train

SHARP = {
    "data": {"source": "digits", "validation_fraction": 0.3},
    # pixels of 0 to 255 make the loss bend hundreds of times as much as inputs of -1 to 1
    "network": {"input_range": "raw"},
    "train": {"epochs": 4, "batch_size": 32},
    "qat": {"epochs": 1, "batch_size": 32, "rounding": "nearest"},
}


def trained(folder, tables):
    """Train a run; return its record and the agreement after each quantization-aware epoch."""
    recipe = build_recipe(tables)
    agreements = []

    def report(progress):
        if progress.int8_agreement is not None:
            agreements.append(progress.int8_agreement)

    info = train(recipe, open_dataset(recipe.data), create_run(recipe, folder), report)
    return info.int8, agreements


@pytest.mark.guard
def test_no_epoch_falls_below_the_calibrated_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen, agreements = trained(tmp_path / "run", SHARP)
    assert chosen.learning_rate == SAFE_RATE
    assert len(agreements) == SHARP["qat"]["epochs"]
    assert min(agreements) >= chosen.validation.calibrated.agreement - 0.015  # processors differ: 0 to 6 of 573 images


@pytest.mark.slow
def test_a_recipes_own_rate_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = SHARP | {"qat": SHARP["qat"] | {"learning_rate": 0.01}}
    chosen, agreements = trained(tmp_path / "run", tables)
    assert chosen.learning_rate == 0.01
    # the failure that the default prevents
    assert agreements[0] < chosen.validation.calibrated.agreement - 0.01
