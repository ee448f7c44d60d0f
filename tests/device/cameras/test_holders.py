import os

from edgecnn.device.cameras.holders import advice_on_permission, holders_of, holding


def test_the_holder_of_a_file_is_found_in_proc(tmp_path):
    path = tmp_path / "video0"
    path.touch()
    link = tmp_path / "by-id"
    link.symlink_to(path)
    assert holding(str(path)) == []
    assert holders_of(str(path)) == ""
    with path.open():
        [(process, name)] = holding(str(link))
        assert process == os.getpid()
        assert holders_of(str(path)) == f" by {name} (process {process})"


def test_without_proc_no_holder_is_named(tmp_path):
    assert holding("/dev/null", tmp_path / "none") == []


def test_advice_for_groups_that_cannot_be_joined(tmp_path, monkeypatch):
    path = tmp_path / "video0"
    path.touch()
    status = os.stat(path)
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result([*status[:5], 0, *status[6:]]))
    assert "only root" in advice_on_permission(str(path))
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result([*status[:5], 54321, *status[6:]]))
    assert "group number 54321" in advice_on_permission(str(path))
