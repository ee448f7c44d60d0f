"""What the system says of itself."""

import os
from types import SimpleNamespace

from edgecnn.device.system import Space, System, packages


def test_of_two_installed_versions_the_one_that_python_imports_counts(monkeypatch):
    found = [("Tiny_Model", "2.1"), (None, "0.3"), ("tiny-model", "1.9"), ("numpy", "2.4")]
    installed = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in found]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: iter(installed))
    assert packages() == {"tiny-model": "2.1", "numpy": "2.4"}


def test_space_for_a_folder_that_does_not_exist_yet(tmp_path, monkeypatch):
    asked = []

    def statvfs(path):
        asked.append(path)
        return os.statvfs_result((4096, 512, 900, 800, 7, 0, 0, 0, os.ST_RDONLY, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    (tmp_path / "there").mkdir()
    system = System(root=tmp_path, packages={})
    assert system.space("/there/not/yet") == system.space("/there") == Space(7 * 512, True)
    assert asked == [tmp_path / "there"] * 2
