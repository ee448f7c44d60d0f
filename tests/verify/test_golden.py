"""Golden vectors in three layers: a fault is attributed to the right layer."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn import images
from edgecnn.bundle.file import read_bundle
from edgecnn.bundle.manifest import InputContract
from edgecnn.errors import SelftestError
from edgecnn.runtime.selftest import require_pass, selftest
from edgecnn.stages.bundle import bundle_path
from edgecnn.verify.golden import PHOTOS, golden_images, golden_photos


@pytest.fixture(scope="module")
def bundle(finished_run):
    return read_bundle(bundle_path(finished_run))


def failure(bundle):
    with pytest.raises(SelftestError) as error:
        require_pass(selftest(bundle, ["litert"]))
    return str(error.value)


def test_all_three_layers_are_checked_and_pass(bundle):
    report = selftest(bundle)
    assert [(layer.layer, layer.images, layer.passed) for layer in report.layers] == [
        ("decode", len(PHOTOS), True),
        ("resize", len(PHOTOS), True),
    ]
    assert report.passed


def test_a_different_decoder_is_named(bundle, monkeypatch):
    decode = images.decode
    monkeypatch.setattr(
        images, "decode", lambda data, channels, least: decode(data, channels).point(lambda value: value ^ 1)
    )
    assert failure(bundle).startswith(f"the layer decode does not reproduce the bundle's bytes for {len(PHOTOS)} of")


def test_a_different_resize_is_named(bundle, monkeypatch):
    def nearest(image, height, width, fit, **options):
        return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))[:, :, np.newaxis]

    monkeypatch.setattr("edgecnn.runtime.selftest.resize", nearest)
    assert failure(bundle).startswith(f"the layer resize does not reproduce the bundle's bytes for {len(PHOTOS)} of")


def test_ignoring_exif_is_named(bundle, monkeypatch):
    monkeypatch.setattr(images, "TURNS", {})
    assert "golden/encoded/turned.jpg" in failure(bundle)


def test_a_different_model_is_named(bundle, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.model.to_codes", lambda pixels: (pixels // 2).view(np.int8))
    assert failure(bundle).startswith("models/int8.tflite on litert does not reproduce the bundle's answers")


def test_photos_are_drawn_the_same_each_time_and_differ_from_each_other():
    contract = InputContract(height=20, width=24, channels=3, fit="crop", scale=1 / 128, zero_point=0)
    files, entries = golden_photos(contract)
    again, entries_again = golden_photos(contract)
    assert files == again and entries == entries_again
    assert len({entry.resized_sha256 for entry in entries}) == len(PHOTOS)
    drawn = golden_images(contract)
    assert drawn.min() == 0 and drawn.max() == 255
