import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecnn.device.cameras.ppm import PpmSplitter
from edgecnn.device.cameras.source import CameraLost


def ppm(pixels):
    height, width, _ = pixels.shape
    return f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes()


SIZES = [(1, 1), (1, 7), (9, 4), (24, 32)]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(SIZES), max_size=5), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_every_image_comes_out_whatever_the_chunks_and_sizes(sizes, cuts):
    images = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(sizes)]
    data = b"".join(map(ppm, images))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    splitter = PpmSplitter()
    found = [image for start, end in itertools.pairwise(edges) for image in splitter.feed(data[start:end])]
    assert len(found) == len(images)
    assert all((one == other).all() for one, other in zip(found, images, strict=True))


def test_bytes_that_are_not_an_image_are_garbage():
    wrong = b"not an image", b"P5\n4 4\n255\n", b"P6\n4 4\n65535\n" + b"0" * 24, b"P6 " + b"9" * 30, b"P6\n0 5\n255\n"
    for data in wrong:
        with pytest.raises(CameraLost) as caught:
            PpmSplitter().feed(data)
        assert caught.value.reason == "garbage"


def test_a_huge_size_is_refused_before_memory_is_allocated(monkeypatch):
    with pytest.raises(CameraLost, match="999999x999999"):
        PpmSplitter().feed(b"P6\n999999 999999\n255\n")
    monkeypatch.setattr("edgecnn.device.cameras.ppm.MAX_PIXELS", 12)
    (largest,) = PpmSplitter().feed(ppm(np.zeros((3, 4, 3), np.uint8)))
    assert largest.shape == (3, 4, 3)
    with pytest.raises(CameraLost, match="has 13x1 pixels; expected 1 to 12"):
        PpmSplitter().feed(ppm(np.zeros((1, 13, 3), np.uint8)))
