"""Drawn photos that last layers can tell apart."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def crops():
    """Draw crops of a temple and of a flower into a folder, as many of each as given; return the folder."""

    def crops(folder, counts):
        from sklearn.datasets import load_sample_images

        random = np.random.default_rng(1)
        for (label, count), photo in zip(counts.items(), load_sample_images().images, strict=True):
            (folder / label).mkdir(parents=True)
            for index in range(count):
                top, left = (int(random.integers(0, size - 120)) for size in photo.shape[:2])
                Image.fromarray(photo[top : top + 120, left : left + 120]).save(folder / label / f"{index}.png")
        return folder

    return crops
