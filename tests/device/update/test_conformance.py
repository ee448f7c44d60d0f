"""What a board keeps from one check to the next: cases of tuf-conformance, The Update Framework's suite for its clients, by their names.

The cases on keys, thresholds and hashes of one check are python-tuf's own: it runs the suite.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="updates need the update extra")
pytest.importorskip("cryptography", reason="releases are signed with the release extra")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgecnn.device.update.board import Held
from edgecnn.device.update.client import Client, FolderFetcher
from edgecnn.errors import UpdateError

NOW = datetime(2026, 11, 28, tzinfo=UTC)
ROLES = ("root", "targets", "snapshot", "timestamp")
REST = ROLES[1:]
PATH = "door/photos-1.edgecnn"


class Simulator:
    """A repository whose files an attacker can change."""

    def __init__(self, folder):
        self.folder, self.hashes = folder, False
        (folder / "metadata").mkdir(parents=True)
        self.root, self.targets, self.snapshot, self.timestamp = Root(), Targets(), Snapshot(), Timestamp()
        self.signers = {role: [] for role in ROLES}
        for role in ROLES:
            getattr(self, role).expires = NOW + timedelta(days=365)
            getattr(self, role).version = 0
            self.add_key(role)
        self.publish(*ROLES)

    def add_key(self, role, signer=None):
        signer = signer or CryptoSigner.generate_ed25519()
        self.root.add_key(signer.public_key, role)
        self.signers[role].append(signer)

    def rotate(self, role):
        for signer in self.signers[role]:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = []
        self.add_key(role)

    def publish(self, *roles, bump=True):
        """Write roles with their next versions, in the order in which their parents name them."""
        for role in sorted(roles, key=ROLES.index):
            signed = getattr(self, role)
            signed.version += bump
            if role == "snapshot":
                self.snapshot.meta["targets.json"] = self.named("targets")
            elif role == "timestamp":
                self.timestamp.snapshot_meta = self.named("snapshot")
            self.write(role)
        return self

    def write(self, role, version=None):
        """Write a role unchanged, as the file of a version."""
        metadata = Metadata(getattr(self, role))
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        self.file(role, version).write_bytes(metadata.to_bytes())

    def file(self, role, version=None):
        version = getattr(self, role).version if version is None else version
        return self.folder / "metadata" / (f"{role}.json" if role == "timestamp" else f"{version}.{role}.json")

    def named(self, role):
        version = getattr(self, role).version
        return (
            MetaFile.from_data(version, self.file(role).read_bytes(), ["sha256"]) if self.hashes else MetaFile(version)
        )

    def add_target(self, content, number=1):
        path = f"door/photos-{number}.edgecnn"
        target = TargetFile.from_data(path, content)
        target.unrecognized_fields["custom"] = {"edgecnn": {"number": number, "serial": number, "share": 100}}
        self.targets.targets[path] = target
        self.put(path, content)
        return target

    def put(self, path, content):
        (prefixed,) = self.targets.targets[path].get_prefixed_paths()
        file = self.folder / "targets" / prefixed
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class Counting(FolderFetcher):
    """Records the files that the client requests."""

    def __init__(self, folder, scratch, requests):
        super().__init__(folder, scratch)
        self._requests = requests

    def _chunks(self, file, url, max_length):
        self._requests.append(Path(url).name)
        return super()._chunks(file, url, max_length)


class Subject:
    """A board's client, and its state from one check to the next."""

    def __init__(self, simulator, scratch):
        self.simulator, self.scratch, self.requests = simulator, scratch, []
        self.held = Held(simulator.file("root", 1).read_bytes())

    def refresh(self, days=0):
        """Return whether the repository was accepted."""
        self.requests.clear()
        fetcher = Counting(self.simulator.folder, self.scratch, self.requests)
        self.client = Client(self.held, fetcher, str(self.simulator.folder), self.scratch)
        try:
            self.client.refresh(NOW + timedelta(days=days), 0)
            return True
        except UpdateError:
            return False
        finally:
            self.held = self.client.held

    def version(self, role):
        data = getattr(self.held, role)
        return json.loads(data)["signed"]["version"] if data else None

    @property
    def versions(self):
        return tuple(map(self.version, ROLES))

    def download(self, number=1):
        """Refresh, and return the content of a release; None if it was refused."""
        (self.scratch / "file").unlink(missing_ok=True)
        try:
            if not self.refresh():
                return None
            entries = {entry.terms.number: entry for entry in self.client.entries("door")}
            self.client.download(entries[number], self.scratch / "file")
            return (self.scratch / "file").read_bytes()
        except UpdateError:
            return None


@pytest.fixture
def repo(tmp_path):
    return Simulator(tmp_path / "repository")


@pytest.fixture
def client(repo, tmp_path):
    (tmp_path / "scratch").mkdir()
    return Subject(repo, tmp_path / "scratch")


# test_basic


def test_basic_init_and_refresh(client):
    assert client.refresh()
    assert client.requests == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert client.versions == (1, 1, 1, 1)


def test_timestamp_content_changes_and_timestamp_eq_versions_check(client, repo):
    assert client.refresh()
    before = client.held.timestamp
    repo.timestamp.snapshot_meta.version = 100
    repo.write("timestamp")
    client.refresh()
    assert client.held.timestamp == before


@pytest.mark.parametrize("change", ["no version", "another signature", "no signature", "not JSON"])
def test_invalid_initial_root_and_unsigned_initial_root(client, change):
    table = json.loads(client.held.root)
    if change == "no version":
        del table["signed"]["version"]
    elif change == "another signature":
        table["signatures"][0]["sig"] = "00" * 64
    elif change == "no signature":
        table["signatures"] = []
    client.held = Held(b"{" if change == "not JSON" else json.dumps(table).encode())
    assert not client.refresh()
    assert client.requests == []


# test_rollback


def test_simple_snapshot_rollback(client, repo):
    repo.publish("snapshot", "timestamp")
    assert client.refresh()
    repo.snapshot.version = 1
    repo.write("snapshot", version=2)
    assert client.refresh()
    assert client.version("snapshot") == 2 and client.requests[-1] == "timestamp.json"


def test_new_timestamp_version_rollback(client, repo):
    repo.publish("timestamp")
    assert client.refresh()
    repo.timestamp.version -= 1
    repo.write("timestamp")
    assert not client.refresh()
    assert client.version("timestamp") == 2 and client.requests[-1] == "timestamp.json"


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_snapshot_rollback(client, repo, hashes):
    repo.hashes = hashes
    repo.publish("snapshot", "timestamp")
    assert client.refresh()
    repo.snapshot.version = 1
    repo.publish("timestamp")
    assert not client.refresh()
    assert (client.version("timestamp"), client.version("snapshot")) == (2, 2)
    assert client.requests[-1] == "timestamp.json"


@pytest.mark.parametrize("hashes", [False, True], ids=["basic", "with hashes"])
def test_targets_rollback(client, repo, hashes):
    repo.hashes = hashes
    repo.publish(*REST)
    repo.publish(*REST)
    assert client.refresh()
    repo.targets.version = 1
    repo.publish("snapshot", "timestamp")
    assert not client.refresh()
    assert client.version("targets") == 3


def test_new_targets_fast_forward_recovery(client, repo):
    repo.targets.version = 99
    repo.publish(*REST)
    assert client.refresh() and client.version("targets") == 100
    repo.rotate("snapshot")
    repo.publish("root")
    repo.targets.version = 1
    repo.publish(*REST)
    assert client.refresh() and client.version("targets") == 2


def test_new_snapshot_fast_forward_recovery(client, repo):
    repo.snapshot.version = 99_998
    repo.publish("snapshot", "timestamp")
    assert client.refresh() and client.version("snapshot") == 99_999
    repo.rotate("snapshot")
    repo.rotate("timestamp")
    repo.publish("root")
    repo.snapshot.version = 0
    repo.publish(*REST)
    assert client.refresh() and client.version("snapshot") == 1


def test_new_timestamp_fast_forward_recovery(client, repo):
    repo.timestamp.version = 99
    repo.publish("timestamp")
    assert client.refresh() and client.version("timestamp") == 100
    repo.rotate("timestamp")
    repo.publish("root")
    repo.timestamp.version = 1
    repo.publish("timestamp", bump=False)
    assert client.refresh() and client.version("timestamp") == 1


# test_expiration


def test_root_expired(client, repo):
    repo.publish("root")
    assert client.refresh()
    repo.root.expires = NOW - timedelta(days=1)
    repo.publish(*ROLES)
    assert not client.refresh()
    assert client.versions == (3, 1, 1, 1)


@pytest.mark.parametrize("role", REST)
def test_timestamp_expired_snapshot_expired_and_targets_expired(client, repo, role):
    assert client.refresh()
    getattr(repo, role).expires = NOW - timedelta(days=5)
    repo.publish(*REST)
    assert not client.refresh()
    assert client.version("targets") == 1
    assert role == "targets" or client.version("snapshot") == 1


def test_expired_metadata(client, repo):
    """Expired local metadata can still be used to fetch newer metadata."""
    repo.timestamp.expires = NOW + timedelta(days=7)
    repo.publish("timestamp")
    assert client.refresh()
    repo.timestamp.expires = NOW + timedelta(days=21)
    repo.publish(*REST)
    assert client.refresh(days=18)
    assert client.versions == (1, 2, 2, 3)
    assert not client.refresh(days=22)


# the rest of the delegation cases


@pytest.mark.parametrize("name", ["delegated", "?", "#", "/delegatedrole", "../delegatedrole"])
def test_a_delegation_is_not_followed(client, repo, name):
    repo.add_target(b"content")
    signer = CryptoSigner.generate_ed25519()
    role = DelegatedRole(name, [signer.public_key.keyid], 1, False, ["*"])
    repo.targets.delegations = Delegations({signer.public_key.keyid: signer.public_key}, {name: role})
    repo.publish(*REST)
    assert client.download() == b"content"
    assert client.requests == [
        "2.root.json",
        "timestamp.json",
        "2.snapshot.json",
        "2.targets.json",
        Path(repo.targets.targets[PATH].get_prefixed_paths()[0]).name,
    ]
