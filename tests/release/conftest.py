"""A repository with its own keys, bundles for it, and a board that knows only its first root: python-tuf's own Updater."""

import shutil
from pathlib import Path

import pytest

tuf = pytest.importorskip("tuf", reason="releases need the extra release")

from tuf.api.exceptions import DownloadHTTPError  # noqa: E402
from tuf.ngclient import FetcherInterface, Updater  # noqa: E402

from edgecnn.release import keys as keys_module  # noqa: E402
from edgecnn.release import operations  # noqa: E402
from edgecnn.release.keys import Keys  # noqa: E402
from edgecnn.release.repository import Repository  # noqa: E402

PASSPHRASE = "correct horse battery"


class Folder(FetcherInterface):
    """Serves a folder's files to the Updater."""

    def __init__(self):
        self.asked = []

    def _fetch(self, url):
        self.asked.append(url)
        try:
            yield Path(url).read_bytes()
        except FileNotFoundError:
            raise DownloadHTTPError(f"no {url}", 404) from None


class TufBoard:
    """The TUF part of a board: it starts with a root and keeps the files that it has verified."""

    def __init__(self, folder, root):
        self.folder, self.root = folder, root
        folder.mkdir()

    def check(self, repository):
        """Verify a repository, download all of its targets, and return their paths."""
        self.fetcher = Folder()
        updater = Updater(
            str(self.folder),
            f"{repository}/metadata/",
            str(self.folder),
            f"{repository}/targets/",
            self.fetcher,
            bootstrap=self.root,
        )
        updater.refresh()
        targets = updater._trusted_set.targets.targets
        for path in targets:
            updater.download_target(updater.get_targetinfo(path))
        return sorted(targets)


@pytest.fixture
def tuf_board():
    return TufBoard


@pytest.fixture
def held(tmp_path):
    """Return keys whose passphrase need not be typed."""

    def held(*folders, ask=lambda name, new: PASSPHRASE):
        return Keys([Path(folder) for folder in folders] or [tmp_path / "releases-keys"], ask)

    return held


@pytest.fixture
def quick(monkeypatch):
    """Keys without a passphrase, which takes most of the time of a test that signs often. Use before `repository`."""
    monkeypatch.setattr(keys_module, "BestAvailableEncryption", lambda passphrase: keys_module.NoEncryption())


@pytest.fixture
def repository(tmp_path, held):
    operations.init(tmp_path / "releases", held())
    return Repository(tmp_path / "releases")


@pytest.fixture
def add(repository, held, make_bundle):
    """Release a small bundle with a serial number to the channel door."""
    from edgecnn.bundle.file import read_bundle

    made = {}

    def add(serial, share=100, *, name="photos", passed=True, verdict=None, old="", keys=None, channel="door", **more):
        """The same bundle each time; by default it passed against all earlier ones, and "" is no verdict."""
        which = (name, serial, passed, verdict, old)
        if which not in made:
            olds = [bundle.sha256 for bundle in made.values()] or ["0" * 64]
            compared = (
                {"verdict": "passed", "old": olds[-1], "earlier": olds[:-1]}
                if verdict is None
                else {"verdict": verdict or None, "old": old}
            )
            path = make_bundle(name, serial, passed=passed, **compared)
            made[which] = read_bundle(path.rename(path.with_name(f"{len(made)}-{name}{serial}.edgecnn")))
        return operations.add(
            repository, keys or held(), made[which], operations.Offer(channel=channel, share=share, **more)
        )

    return add


@pytest.fixture
def board(tmp_path, repository):
    """Return a new board with the first root."""
    boards = []

    def board():
        boards.append(TufBoard(tmp_path / f"board{len(boards)}", (repository.metadata / "1.root.json").read_bytes()))
        return boards[-1]

    return board


@pytest.fixture
def copy(tmp_path):
    """Return a copy of a folder, such as an attacker's or a backup."""
    count = iter(range(100))
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"copy{next(count)}"))
