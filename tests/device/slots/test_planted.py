"""Files that the service's user can plant in its folder before root runs `edgecnn slot` there."""

import json
import os
import shutil

import pytest

from edgecnn.device.slots.disk import Disk
from edgecnn.device.slots.store import MAX_RECORD_BYTES, Store
from edgecnn.errors import SlotError
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
SHA = "f" * 64


@pytest.fixture
def release(store, make_bundle):
    return store.add(make_bundle("cats"))[0]


@pytest.fixture
def victim(tmp_path):
    """A folder of root's with a file that only root can read; it must stay unchanged."""
    folder = tmp_path / "victim"
    folder.mkdir(0o700)
    (folder / "secret").write_text("of root")
    (folder / "secret").chmod(0o600)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "of root" and (folder / "secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_file_is_written_into(store, release, victim, make_bundle, link):
    link(victim / "secret", store.root / ".current.new")
    other = store.path(store.add(make_bundle("dogs"))[0])
    other.unlink()
    link(victim / "secret", other)
    link(victim / "secret", other.with_name(".model.edgecnn.new"))
    store.add(make_bundle("dogs"))
    assert other.read_bytes() == make_bundle("dogs").read_bytes() and not other.is_symlink()
    link(victim / "secret", store.root / ".current.new")
    assert store.activate(release)[1].current == release


def test_no_folder_is_followed(store, release, victim, make_bundle):
    folder = store.root / "releases"
    for name in (SHA, "x"):
        (folder / name).symlink_to(victim)
    with pytest.raises(SlotError, match=f"{SHA} is a link"):
        store.prune(1)
    (folder / SHA).unlink()
    assert store.prune(1)[0] == [], "x is not a release"
    shutil.rmtree(folder)
    folder.symlink_to(victim)
    for change in (lambda: store.prune(1), lambda: store.add(make_bundle("dogs"))):
        with pytest.raises(SlotError, match="releases is a link"):
            change()
    assert not store.whole(release)


def test_a_folder_that_becomes_a_link_at_the_last_moment(store, victim, make_bundle):
    class Raced(Disk):
        def write(self, path, data):
            if path.parent != self.root:
                path.parent.rmdir()
                path.parent.symlink_to(victim)
            super().write(path, data)

    with pytest.raises(SlotError, match="is a link"):
        Store(store.root, Raced(store.root)).add(make_bundle("cats"))


def test_only_regular_files_are_read(store, release, victim):
    bundle, record = store.path(release), store.root / "current"
    bundle.unlink()
    os.mkfifo(bundle)
    with pytest.raises(SlotError, match=release[:12]):
        store.activate(release)
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(SlotError, match="current is a link or"):
        store.read()
    record.unlink()
    record.symlink_to(victim / "secret")
    with pytest.raises(SlotError, match="current is a link or"):
        store.read()


def test_a_hostile_record(store, release):
    about = {"name": "a", "serial": 0, "state": "good"}
    for content, why in (
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"chain": ["../../etc"], "releases": {"../../etc": about}}), "'../../etc' is not a SHA-256"),
        (json.dumps({"releases": {SHA: {**about, "name": "\ud800"}}}), "surrogates not allowed"),
        (" " * MAX_RECORD_BYTES + "{}", "has more than"),
    ):
        (store.root / "current").write_text(content)
        with pytest.raises(SlotError, match=why):
            store.read()
    (store.root / "current").write_text("{}".rjust(MAX_RECORD_BYTES))
    assert store.read().chain == (), "the longest that is read"
