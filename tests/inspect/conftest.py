"""Photo-like images, textured blobs of colour on a light background, which can be cropped and compressed into copies."""

import functools
import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

pytest.importorskip("sklearn", reason="the workstation side needs the train extra")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the user's cache and data out of every test; the cache's folder is returned."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    return folder


def scene(seed, width=160, height=120):
    """Return a picture of a few blobs, uint8 RGB; the seed decides it."""
    return Image.fromarray(blobs(seed, width, height))


@functools.cache
def blobs(seed, width, height):
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), random.uniform(180, 230), np.float64)
    for _ in range(8):
        spot = np.zeros((height, width))
        top, left = random.integers(0, height - 20), random.integers(0, width - 20)
        spot[top : top + random.integers(8, 50), left : left + random.integers(8, 60)] = 1
        pixels += gaussian_filter(spot, 1.5)[:, :, np.newaxis] * random.uniform(-150, 40, 3)
    pixels += gaussian_filter(random.normal(size=(height, width)), 1.2)[:, :, np.newaxis] * 25
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(image, format="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session", name="scene")
def scene_function():
    return scene


@pytest.fixture(scope="session", name="encode")
def encode_function():
    return encode


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session", name="fill")
def fill_function():
    return fill


@pytest.fixture(scope="session")
def photos():
    """Files of two classes with their own splits: 12 for training and 4 for testing per class, all different."""
    files = {}
    for number, label in enumerate(("cat", "dog")):
        for split, count in (("train", 12), ("test", 4)):
            for index in range(count):
                seed = 1000 * number + (500 if split == "test" else 0) + index
                files[f"{split}/{label}/{index}.jpg"] = encode(scene(seed), quality=90)
    return files


@pytest.fixture(scope="session")
def planted(photos):
    """The photos with one of each mistake."""
    first = Image.open(io.BytesIO(photos["train/cat/0.jpg"])).convert("RGB")
    return photos | {
        "train/cat/byte copy.jpg": photos["train/cat/1.jpg"],
        "train/cat/compressed.jpg": encode(first, quality=45),
        "train/cat/mirrored.jpg": encode(first.transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=85),
        "train/dog/leaked.png": encode(Image.open(io.BytesIO(photos["test/dog/2.jpg"])), "PNG"),
        "train/dog/also a cat.jpg": photos["train/cat/3.jpg"],
        "train/dog/cut off.jpg": photos["train/dog/5.jpg"][:900],
        "train/dog/empty.jpg": b"",
    }
