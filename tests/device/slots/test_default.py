"""Which bundle a command uses on a board with releases."""

from types import SimpleNamespace

import pytest
from PIL import Image

from edgecnn.device.slots import default
from edgecnn.device.slots.default import default_bundle
from edgecnn.runtime.default import SHIPS, shipped_bundle
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")


@pytest.fixture(autouse=True)
def board(store, tmp_path, monkeypatch):
    """Make the test's folder the board's folder of releases; nothing is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(default, "ROOT", store.root)


def test_classify_uses_the_release_in_use(store, root, edgecnn, tmp_path):
    release, _ = store.add(root / "models" / "digits" / "digits.edgecnn")
    Image.new("L", (16, 16), 99).save(tmp_path / "photo.png")
    assert f"({SHIPS})" in edgecnn("classify", "photo.png").err, "it is not in use yet"
    store.activate(release)
    assert f"model digits: {store.path(release)} (in use on this board)" in edgecnn("classify", "photo.png").err
    assert f"{store.path(release)} (in use on this board)" in edgecnn("selftest", "--engine", "litert").err
    assert default_bundle(shipped_bundle()).reason == "requested"
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    (tmp_path / "runs" / "latest" / "a.edgecnn").touch()
    assert default_bundle().reason == "of the last run"


def test_a_machine_without_releases_uses_the_bundle_that_ships(monkeypatch, tmp_path):
    monkeypatch.setattr(default, "ROOT", tmp_path / "no" / "slots")
    assert default_bundle() == (shipped_bundle(), SHIPS)


def test_a_release_that_only_root_can_read_is_mentioned(monkeypatch):
    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(default, "os", SimpleNamespace(stat=refuse))
    assert default_bundle().reason == f"{SHIPS}; if a release is in use on this board, only root can read it: use sudo"
