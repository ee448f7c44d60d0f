"""A small folder of images in which colour matters, and a network of another's making trained on it."""

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of noisy images in which colour alone tells the class, some hard to tell."""
    folder = tmp_path_factory.mktemp("photos") / "colours"
    random = np.random.default_rng(5)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(60):
            mix = random.uniform(0.1, 1)
            pixels = 128 + mix * (np.array(colour) - 128) + random.normal(0, 25, (12, 12, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def network(photos):
    """A Keras 2 network with softmax inside that reads 0 to 1, trained on the folder."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.data import open_dataset
    from edgecnn.networks.keras import keras
    from edgecnn.recipe import DataRecipe

    train = open_dataset(DataRecipe(source=str(photos))).load(
        ("train",), height=12, width=12, channels=3, stage="train"
    )["train"]
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(train.images / np.float32(255), train.classes, epochs=15, verbose=0)
    return model, train.images
