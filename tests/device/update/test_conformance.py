"""The cases of tuf-conformance, The Update Framework's suite for its clients, against the client of a board.

The suite is in no package registry and drives its own kind of client program, so its cases are rewritten here under their own names.
The differences, with reasons:

- Keys are Ed25519, not ECDSA: a board checks signatures without the package cryptography. For the same reason, and because they hold
  no release, its two static repositories (test_static_repositories) are not read.
- Releases are top-level targets CHANNEL/NAME-SERIAL.edgecnn, so no case downloads a file with a different name. A board never follows a
  delegation: one case covers what this leaves of test_updater_delegation_graphs, test_delegated_expiration and test_quoting_issues.
- There is no download without a refresh (test_implicit_refresh): a board reads the list of releases first.
- test_repository_simulator tests the suite's own simulator.
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


def test_new_targets_hash_mismatch(client, repo):
    assert client.refresh()
    repo.hashes = True
    repo.publish(*REST)
    assert client.refresh()
    repo.targets.version += 1
    repo.snapshot.meta["targets.json"].version = repo.targets.version  # and the previous hash
    repo.write("targets")
    repo.snapshot.version += 1
    repo.write("snapshot")
    repo.publish("timestamp")
    assert not client.refresh()
    assert client.version("targets") == 2


def test_new_targets_version_mismatch(client, repo):
    repo.publish(*REST)
    assert client.refresh()
    repo.targets.version += 1
    repo.write("targets", version=2)
    repo.snapshot.meta["targets.json"].version = 2
    fresh = Subject(repo, client.scratch)
    assert not fresh.refresh()
    assert fresh.version("targets") is None
    assert client.refresh() and client.version("targets") == 2


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


def test_custom_fields(client, repo):
    assert client.refresh()
    repo.root.unrecognized_fields["custom-field"] = "value"
    role = repo.root.roles["root"]
    repo.root.keys[role.keyids[0]].unrecognized_fields["extra-field"] = {"a": 1, "b": 2}
    role.unrecognized_fields["another-field"] = "value"
    repo.publish("root")
    assert client.refresh()
    assert client.version("root") == 2


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


def test_new_snapshot_version_mismatch(client, repo):
    repo.snapshot.version += 1
    repo.write("snapshot", version=1)
    assert not client.refresh()
    assert client.version("timestamp") == 1 and client.requests[-1] == "1.snapshot.json"
    assert client.version("targets") is None


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


# test_keys


def threshold_of_three(client, repo):
    repo.root.roles["snapshot"].threshold = 3
    repo.publish("root")
    repo.add_key("snapshot")
    repo.publish("root", "snapshot", "timestamp")
    assert not client.refresh()
    repo.add_key("snapshot")
    repo.add_key("snapshot")
    repo.publish("root", "snapshot", "timestamp")
    assert client.refresh()
    assert (client.version("root"), client.version("snapshot")) == (4, 3)


def test_root_has_keys_but_not_snapshot(client, repo):
    threshold_of_three(client, repo)
    repo.root.roles["snapshot"].threshold = 5
    repo.publish("root")
    assert not client.refresh()
    assert (client.version("root"), client.version("snapshot")) == (5, 3)
    repo.root.roles["snapshot"].keyids.append(CryptoSigner.generate_ed25519().public_key.keyid)
    repo.write("root", version=6)
    assert not client.refresh()
    assert (client.version("root"), client.version("snapshot")) == (5, 3)


def test_wrong_hashing_algorithm(client, repo):
    threshold_of_three(client, repo)
    repo.add_key("snapshot")
    repo.root.roles["snapshot"].threshold = 5
    key = repo.root.keys[repo.root.roles["snapshot"].keyids[0]]
    key.unrecognized_fields = {"keyid_hash_algorithms": ["md5"]}
    repo.publish("root", "snapshot", "timestamp")
    assert client.refresh()
    assert (client.version("root"), client.version("snapshot")) == (5, 4)


def test_snapshot_threshold(client, repo):
    assert client.refresh()
    for _ in range(4):
        repo.add_key("snapshot")
    repo.root.roles["snapshot"].threshold = 6
    repo.publish("root", "snapshot", "timestamp")
    assert not client.refresh()
    assert client.version("snapshot") == 1


def test_duplicate_keys_root(client, repo):
    """A key that is named nine times and has signed nine times counts once."""
    assert client.refresh()
    signer = CryptoSigner.generate_ed25519()
    repo.add_key("snapshot", signer)
    repo.root.roles["snapshot"].threshold = 6
    repo.publish("root", "snapshot", "timestamp")
    file = repo.file("snapshot")
    table = json.loads(file.read_bytes())
    table["signatures"] += [table["signatures"][1]] * 8
    file.write_text(json.dumps(table))
    assert not client.refresh()
    assert client.version("snapshot") == 1


# test_file_download


def test_client_downloads_expected_file_in_sub_dir(client, repo):
    repo.add_target(b"target file contents")
    repo.publish(*REST)
    assert client.refresh()
    assert not any(name.endswith(".edgecnn") for name in client.requests)
    assert client.download() == b"target file contents"


def test_repository_substitutes_target_file(client, repo):
    repo.add_target(b"target file contents")
    repo.add_target(b"content", 2)
    repo.publish(*REST)
    assert client.download(1) == b"target file contents"
    for path in repo.targets.targets:
        repo.put(path, b"malicious data - should not download")
    assert client.download(1) is None and client.download(2) is None


def test_multiple_changes_to_target(client, repo):
    for turn in range(11):
        contents = f"modified file contents {turn}".encode()
        repo.add_target(contents)
        repo.publish(*REST)
        if turn % 5 == 0:
            assert client.download() == contents
            repo.put(PATH, f"malicious contents {turn}".encode())
            repo.publish(*REST)
            assert client.download() is None


# test_updater_key_rotations: (keys, threshold, signatures) of each version


ROOT_ROTATIONS = {
    "1-of-1-key-rotation": ([((1,), 1, (1,)), ((2,), 1, (2, 1)), ((2,), 1, (2,))], True),
    "1-of-1-key-rotation-unused-signatures": (
        [((1,), 1, (3, 1, 4)), ((2,), 1, (3, 2, 1, 4)), ((2,), 1, (3, 2, 4))],
        True,
    ),
    "3-of-5-sign-with-different-keycombos": (
        [(range(5), 3, signers) for signers in ((0, 2, 4), (0, 4, 1), (0, 1, 3), (0, 1, 3))],
        True,
    ),
    "3-of-5-one-key-rotated": ([(range(5), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 4, 1))], True),
    "3-of-5-one-key-rotated-with-intermediate-step": (
        [(range(5), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 2, 4, 5)), ((0, 1, 3, 4, 5), 3, (0, 4, 5))],
        True,
    ),
    "3-of-5-all-keys-rotated-with-intermediate-step": (
        [(range(5), 3, (0, 2, 4)), (range(5, 10), 3, (0, 2, 4, 5, 6, 7)), (range(5, 10), 3, (5, 6, 7))],
        True,
    ),
    "1-of-3-threshold-increase-to-2-of-3": ([((1, 2, 3), 1, (1,)), ((1, 2, 3), 2, (1, 2))], True),
    "2-of-3-threshold-decrease-to-1-of-3": (
        [((1, 2, 3), 2, (1, 2)), ((1, 2, 3), 1, (1, 2)), ((1, 2, 3), 1, (1,))],
        True,
    ),
    "1-of-2-threshold-increase-to-2-of-2": ([((1,), 1, (1,)), ((1, 2), 2, (1, 2))], True),
    "1-of-1-key-rotation-fail-not-signed-with-old-key": ([((1,), 1, (1,)), ((2,), 1, (2, 3, 4))], False),
    "1-of-1-key-rotation-fail-not-signed-with-new-key": ([((1,), 1, (1,)), ((2,), 1, (1, 3, 4))], False),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-new-keys": (
        [(range(5), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 2, 4))],
        False,
    ),
    "3-of-5-one-key-rotate-fails-not-signed-with-3-old-keys": (
        [(range(5), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 4, 5))],
        False,
    ),
    "1-of-3-threshold-bump-to-2-of-3-fails-new-threshold-not-reached": (
        [((1, 2, 3), 1, (1,)), ((1, 2, 3), 2, (2,))],
        False,
    ),
    "2-of-3-threshold-decr-to-1-of-3-fails-old-threshold-not-reached": (
        [((1, 2, 3), 2, (1, 2)), ((1, 2, 3), 1, (1,))],
        False,
    ),
}


@pytest.fixture(scope="module")
def signers():
    return [CryptoSigner.generate_ed25519() for _ in range(10)]


def set_keys(repo, role, signers, keys, threshold, signatures):
    for keyid in list(repo.root.roles[role].keyids):
        repo.root.revoke_key(keyid, role)
    for number in keys:
        repo.root.add_key(signers[number].public_key, role)
    repo.root.roles[role].threshold = threshold
    repo.signers[role] = [signers[number] for number in signatures]


@pytest.mark.parametrize(("versions", "accepted"), ROOT_ROTATIONS.values(), ids=ROOT_ROTATIONS)
def test_root_rotation(repo, tmp_path, signers, versions, accepted):
    repo.root.version = 0
    for version in versions:
        set_keys(repo, "root", signers, *version)
        repo.publish("root")
    client = Subject(repo, tmp_path)
    assert client.refresh() == accepted
    assert client.held.root == repo.file("root", len(versions) - (not accepted)).read_bytes()


ROTATIONS = {
    "1-of-1-key-rotation": ((2,), 1, (2,), True),
    "1-of-1-key-rotation-unused-signatures": ((1,), 1, (3, 1, 4), True),
    "1-of-1-key-rotation-fail-not-signed-with-new-key": ((2,), 1, (1, 3, 4), False),
    "3-of-5-one-key-signature-wrong-not-signed-with-3-expected-keys": ((0, 1, 3, 4, 5), 3, (0, 2, 4), False),
    "2-of-5-one-key-signature-missing-threshold-not-reached": ((0, 1, 3, 4, 5), 3, (0, 4), False),
    "3-of-5-sign-first-combo": (range(5), 3, (0, 2, 4), True),
    "3-of-5-sign-second-combo": (range(5), 3, (0, 4, 1), True),
    "3-of-5-sign-third-combo": (range(5), 3, (0, 1, 3), True),
    "3-of-5-sign-fourth-combo": (range(5), 3, (1, 2, 3), True),
    "3-of-5-sign-fifth-combo": (range(5), 3, (2, 3, 4), True),
}


@pytest.mark.parametrize("role", REST)
@pytest.mark.parametrize(("keys", "threshold", "signatures", "accepted"), ROTATIONS.values(), ids=ROTATIONS)
def test_non_root_rotations(client, repo, signers, role, keys, threshold, signatures, accepted):
    set_keys(repo, role, signers, keys, threshold, signatures)
    repo.publish("root")
    repo.publish(*REST)
    assert client.refresh() == accepted
    assert (getattr(client.held, role) == repo.file(role).read_bytes()) == accepted


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
