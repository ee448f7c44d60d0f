"""CIFAR-10's images become a zip that edgecnn opens: all training images and every second test image, as JPEG of quality 75 and 4:2:0."""

import importlib
import io
import zipfile

import numpy as np
from PIL import Image, JpegImagePlugin

from edgecnn.data import open_dataset
from edgecnn.data.items import LabelledImages, array_items
from edgecnn.recipe import DataRecipe

Q75_FIRST_ROW = [8, 6, 5, 8, 12, 20, 26, 31]
"""From the luminance table at quality 75: half of the values of table K.1 in ITU-T T.81, rounded up."""


def test_the_zip_has_the_splits_and_the_quality(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "data")
    tool = importlib.import_module("cifar10_jpeg")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), np.uint8)
    classes = np.arange(20) % 2
    items = [
        *array_items("train", "data_batch_1", pixels, classes),
        *array_items("test", "test_batch", 255 - pixels, classes),
    ]
    images = LabelledImages(
        name="cifar10", title="CIFAR-10", labels=("cat", "dog"), shape=(32, 32, 3), mirror=True, items=tuple(items)
    )
    path = tmp_path / "small.zip"
    assert tool.write_zip(images, path) == 30

    with zipfile.ZipFile(path) as archive:
        tests = [name for name in archive.namelist() if "/test/" in name]
        assert tests == [
            f"small/test/{label}/{number:04d}.jpg" for label in ("cat", "dog") for number in (0, 2, 4, 6, 8)
        ]
        decoded = Image.open(io.BytesIO(archive.read("small/test/dog/0002.jpg")))
    assert decoded.quantization[0][:8] == Q75_FIRST_ROW
    assert JpegImagePlugin.get_sampling(decoded) == 2
    distances = [np.abs(np.asarray(decoded, int) - (255 - other)).mean() for other in pixels]
    assert np.argmin(distances) == 5  # JPEG preserves noise badly, but this is still the best match

    dataset = open_dataset(DataRecipe(source=str(path)))
    assert dataset.labels == ("cat", "dog")
