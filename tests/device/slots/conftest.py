"""A folder for releases."""

import pytest

from edgecnn.device.slots.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "edgecnn", wait_s=0.0)
