"""What the system says of itself."""

import os

from edgecnn.device.system import Space, System


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
