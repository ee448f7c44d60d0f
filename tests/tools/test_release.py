"""Two builds of a release have the same bytes and hold the content of the last commit."""

import importlib
import shutil
import subprocess
import tarfile
import zipfile

import pytest

pytest.importorskip("hatchling", reason="building needs the dev extra")

from edgecnn import __version__


@pytest.fixture(scope="module")
def release(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tools")
        yield importlib.import_module("release")


@pytest.fixture
def committed(release, root, tmp_path, monkeypatch):
    """The project as a separate repository with one commit, since the tests may run in a copy without a repository."""
    copy = tmp_path / "project"
    shutil.copytree(
        root,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "runs", "site", "demo", "dist"),
    )
    for command in (("init",), ("add", "--all"), ("commit", "--message", "The project")):
        person = ("-c", "user.name=edgecnn", "-c", "user.email=edgecnn@example.org")
        subprocess.run(["git", *person, *command], cwd=copy, check=True, capture_output=True)
    monkeypatch.setattr(release, "ROOT", copy)


@pytest.mark.needs("git")
@pytest.mark.usefixtures("committed")
@pytest.mark.slow
def test_two_builds_from_clean_copies_have_the_same_bytes(release, tmp_path, capsys):
    (tmp_path / "dist").mkdir()
    files = release.build_twice(tmp_path / "dist")
    assert [path.name for path in files] == [f"edgecnn-{__version__}-py3-none-any.whl", f"edgecnn-{__version__}.tar.gz"]
    assert capsys.readouterr().out.count("identical in both builds") == 2
    epoch = int(release.git("log", "-1", "--format=%ct"))
    with tarfile.open(next(path for path in files if path.name.endswith(".tar.gz"))) as archive:
        assert {member.mtime for member in archive} == {epoch}
        assert any(member.name.endswith("docs/tutorial.md") for member in archive)
    assert zipfile.ZipFile(next(path for path in files if path.suffix == ".whl")).testzip() is None


def test_builds_that_differ_are_not_released(release, tmp_path, monkeypatch):
    builds = iter([{"a.whl": b"1", "b.tar.gz": b"2"}, {"a.whl": b"1", "b.tar.gz": b"3"}])
    monkeypatch.setattr(release, "build", lambda out: next(builds))
    with pytest.raises(SystemExit, match=r"two builds differ: b\.tar\.gz"):
        release.build_twice(tmp_path)


def test_uncommitted_changes_are_not_released(release, monkeypatch):
    monkeypatch.setattr(release, "git", lambda *arguments: b" M edgecnn/__init__.py\n")
    with pytest.raises(SystemExit, match="uncommitted"):
        release.release(["python3"])
