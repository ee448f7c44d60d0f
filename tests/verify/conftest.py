"""Runs for other programs, and their images."""

import numpy as np
import pytest
from PIL import Image

SIZES = ((224, 224), (300, 260), (97, 211))
"""(height, width) of the images in Frigate's dataset, used in rotation; every fourth image comes from `aliased`."""


def aliased(colour, at_centres, at_corners):
    """Return an image three times the model's input size that a mean over blocks sees in one colour, and sampling in two others."""
    pixels = np.full((672, 672, 3), colour, np.uint8)
    pixels[1::3, 1::3], pixels[::3, ::3] = at_centres, at_corners
    return pixels


@pytest.fixture(scope="session")
def frigate_media(tmp_path_factory):
    """Frigate's media folder with a dataset of three classes, including none. The colour determines the class."""
    folder = tmp_path_factory.mktemp("frigate") / "media"
    random = np.random.default_rng(7)
    colours = [np.array(colour) for colour in ((40, 60, 200), (50, 190, 60), (210, 50, 40))]
    for index, name in enumerate(("closed", "none", "open")):
        place = folder / "clips" / "front door" / "dataset" / name
        place.mkdir(parents=True)
        for number in range(40):
            mix = random.uniform(0.5, 0.9)
            own, *others = (128 + mix * (colours[(index + other) % 3] - 128) for other in range(3))
            if number % 4 == 3:
                pixels = aliased(own, *others)
            else:
                pixels = np.clip(own + random.normal(0, 25, (*SIZES[number % 4], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def frigate_run(tmp_path_factory, frigate_media, tiny_network):
    """A trained run of that dataset with its files for Frigate and MediaPipe, shared: do not change it."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.data import open_dataset
    from edgecnn.interop.programs import PROGRAMS, export_program
    from edgecnn.recipe import build_recipe
    from edgecnn.runs import create_run
    from edgecnn.stages.reporter import Silent
    from edgecnn.stages.train import train_stage

    recipe = build_recipe(
        {
            "data": {"source": f"frigate:{frigate_media}"},
            "network": {"name": tiny_network},
            "train": {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "shift": 0},
            "qat": {"epochs": 0, "batch_size": 16},
        }
    )
    run = create_run(recipe, tmp_path_factory.mktemp("runs") / "door")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecnn.train.ranges.CALIBRATION_BATCHES", 4)
        train_stage(recipe, open_dataset(recipe.data), run, Silent())
    for program in PROGRAMS:
        export_program(run, program)
    return run
