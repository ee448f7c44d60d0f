"""Small bundles that differ, and a folder for releases."""

import io

import numpy as np
import pytest

from edgecnn.bundle.manifest import InputContract, Manifest, ModelEntry
from edgecnn.bundle.write import write_bundle
from edgecnn.device.slots.store import Store


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "edgecnn", wait_s=0.0)


@pytest.fixture
def make_bundle(tmp_path):
    """Write a bundle of 2 kB: its model has no meaning, and whoever only reads the bundle does not notice."""

    def make_bundle(name, serial=0, format_="tflite"):
        model = f"models/int8.{format_}"
        entry = ModelEntry(
            file=model,
            format=format_,
            precision="int8",
            golden="golden/int8.npy",
            tolerance=1.0,
            tolerance_unit="LSB",
            tolerance_reason="rounding",
            golden_engine="none 0.0 (none)",
        )
        manifest = Manifest(
            name=name,
            title=name,
            labels=("cat", "dog"),
            input=InputContract(height=4, width=5, channels=3, fit="crop", scale=1 / 128, zero_point=0),
            models=(entry,),
            defaults={format_: model},
            serial=serial,
            provenance={},
        )
        files = {
            "golden/inputs.npy": npy(np.zeros((2, 4, 5, 3), np.uint8)),
            "golden/int8.npy": npy(np.zeros((2, 2), np.int8)),
            model: name.encode() * 20,
        }
        path = tmp_path / f"{name}.edgecnn"
        write_bundle(path, manifest, files, force=True)
        return path

    return make_bundle
