"""Bundles that classify: the shipped one under other names, with correct or wrong answers."""

import dataclasses

import pytest

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.device.slots.store import Store
from edgecnn.runtime.default import shipped_bundle


@pytest.fixture
def store(tmp_path):
    (tmp_path / "slots").mkdir()
    return Store(tmp_path / "slots")


@pytest.fixture
def variant(tmp_path):
    """Write the shipped bundle under another name; with `wrong`, its self-test always fails."""

    def variant(name, wrong=False, serial=0):
        shipped = read_bundle(shipped_bundle())
        files = dict(shipped.files)
        if wrong:
            for model in shipped.manifest.models:
                content = files[model.golden]
                files[model.golden] = content[:-100] + bytes(byte ^ 64 for byte in content[-100:])
        path = tmp_path / f"{name}.edgecnn"
        write_bundle(path, dataclasses.replace(shipped.manifest, name=name, serial=serial), files)
        return path

    return variant
