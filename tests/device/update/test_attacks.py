"""The attacks from TUF's specification (section 1.5.2) on a board. Each runs again without the rule that stops it, and then succeeds.

An attack is a function that prepares a repository and a board, and returns the repository from which the board will update.
"""

import copy
import shutil
import threading
from datetime import UTC, datetime, timedelta

import pytest

from edgecnn.device.update import last_check
from edgecnn.device.update.board import Held, Trust
from edgecnn.errors import UpdateError
from edgecnn.runtime.engines import is_installed

pytestmark = [
    pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed"),
    pytest.mark.usefixtures("in_this_process"),
]
tuf = pytest.importorskip("tuf", reason="updates need the update extra")
from tuf.api._payload import TargetFile, _DelegatorMixin  # noqa: E402
from tuf.api.metadata import MetaFile, Signed  # noqa: E402
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet  # noqa: E402

from edgecnn.device.update import client  # noqa: E402


class Attack:
    """The attacker's setting: the repository, the board, three bundles, a folder for forged files, and a server for it."""

    def __init__(self, repository, board, bundles, make_bundle, folder, serve):
        self.repository, self.board, self.bundles, self.make_bundle = repository, board, bundles, make_bundle
        self.folder, self.serve = folder, serve

    def first(self):
        """Release and install the first bundle."""
        digest = self.repository.add(self.bundles[1], 1)
        self.board.update(self.repository.folder)
        return digest

    def forged(self):
        """Return a copy of the repository to change."""
        return self.repository.copied(self.folder / "forged")

    def own_bundle(self):
        """Return a bundle from the attacker with the name and serial number of the second."""
        return self.make_bundle("photos2", 2, labels=("cat", "dig"))


@pytest.fixture
def attack(repository, board, bundles, make_bundle, tmp_path, serve):
    return Attack(repository, board, bundles, make_bundle, tmp_path, serve)


def rollback(attack):
    attack.first()
    old = attack.forged()
    attack.repository.add(attack.bundles[2], 2)
    attack.board.update(attack.repository.folder)
    return old


def mix_and_match(attack):
    """The newest timestamp with the old snapshot and targets, for a board that has seen neither."""
    attack.repository.add(attack.bundles[1], 1)
    attack.repository.add(attack.bundles[2], 2)
    forged = attack.forged()
    metadata = forged / "metadata"
    shutil.copy(metadata / "2.snapshot.json", metadata / "3.snapshot.json")
    return forged


def arbitrary_file(attack):
    """A bundle from the attacker with the same length, under the signed name."""
    attack.first()
    attack.repository.add(attack.bundles[2], 2)
    forged = attack.forged()
    (path,) = forged.glob("targets/*/*photos2*")
    own = attack.own_bundle().read_bytes()
    assert len(own) == path.stat().st_size and own != path.read_bytes()
    path.write_bytes(own)
    return forged


def wrong_keys(attack):
    """All metadata except the root, signed with the attacker's keys."""
    attack.first()
    other = type(attack.repository)(attack.folder / "other")
    other.number = 1
    for _ in range(3):
        other.publish("targets", "snapshot", "timestamp")
    other.add(attack.own_bundle(), 2)
    return other.folder


def endless_metadata(attack):
    """A valid timestamp that continues for half a megabyte."""
    attack.first()
    attack.repository.publish("timestamp")
    with (attack.repository.folder / "metadata/timestamp.json").open("ab") as file:
        file.write(b" " * (1 << 19))
    return attack.repository.folder


def endless_metadata_by_a_stolen_online_key(attack):
    """A snapshot as long as the timestamp allows, signed with the stolen key."""
    attack.first()
    repository = attack.repository
    repository.publish("snapshot")
    path = repository.folder / "metadata" / f"{repository.signed['snapshot'].version}.snapshot.json"
    path.write_bytes(path.read_bytes() + b" " * (1 << 21))
    timestamp = repository.signed["timestamp"]
    timestamp.version += 1
    timestamp.snapshot_meta = MetaFile(repository.signed["snapshot"].version, length=path.stat().st_size)
    repository.write("timestamp", timestamp, repository.keys["online"])
    return repository.folder


def freeze(attack):
    """Yesterday's repository, forever: a month later its timestamp has expired."""
    attack.first()
    frozen = attack.forged()
    attack.board.clocks.now += timedelta(days=31)
    return frozen


def freeze_without_a_clock(attack):
    """The same for a board with a clock in 1970 that has run for the month, with power cuts."""
    attack.first()
    frozen, clocks = attack.forged(), attack.board.clocks
    clocks.now = datetime(1970, 1, 1, tzinfo=UTC)
    for boot in range(7):
        clocks.boot, clocks.up = f"boot {boot + 2}", 60
        attack.board.update(frozen)
        assert last_check(attack.board.board.trust)["clock"] == "behind"
        clocks.up += 5 * 24 * 3600 + 1
        if boot < 5:
            attack.board.update(frozen)
    return frozen


def expired_targets_without_a_clock(attack):
    """Targets that expired long ago, under today's timestamp, for a board with a clock in 1970."""
    attack.first()
    attack.repository.now += timedelta(days=450)
    attack.repository.publish("root", "snapshot", "timestamp")
    attack.board.clocks.now = datetime(1970, 1, 1, tzinfo=UTC)
    return attack.repository.folder


def one_root_key_of_three(attack):
    """One stolen root key, when two must sign, makes a root with the attacker's keys."""
    attack.first()
    repository = attack.repository
    other = type(repository)(attack.folder / "other")
    stolen = repository.keys["root"][0]
    repository.keys = {**other.keys, "root": [stolen, *other.keys["root"][1:]]}
    repository.publish("root")
    repository.add(attack.own_bundle(), 2)
    return repository.folder


def stolen_online_key(attack):
    """The online key signs targets."""
    attack.first()
    attack.repository.keys["targets"] = attack.repository.keys["online"]
    attack.repository.add(attack.own_bundle(), 2)
    return attack.repository.folder


class NoMemory:
    """Keep only the root of the verified metadata, and no mark."""

    @property
    def held(self):
        return Held(self.root.encode())


def nothing(*arguments, **more):
    return None


def no_threshold(self, role, payload, signatures):
    """Accept any signature, as if one key were enough."""
    result = self.get_verification_result(role, payload, signatures)
    if not result.signed:
        raise tuf.api.exceptions.UnsignedMetadataError("no key has signed")


def targets_by_any_key(self, role, payload, signatures):
    """Check targets with the snapshot's keys too."""
    roles = [role, "snapshot"] if role == "targets" else [role]
    if not any(self.get_verification_result(name, payload, signatures).verified for name in roles):
        raise tuf.api.exceptions.UnsignedMetadataError("no key has signed")


ATTACKS = {
    rollback: ("the metadata is older", [(Trust, "held", NoMemory.held)]),
    mix_and_match: ("the metadata is older", [(TrustedMetadataSet, "_check_final_snapshot", nothing)]),
    arbitrary_file: ("not the one that was signed", [(TargetFile, "verify_length_and_hashes", nothing)]),
    wrong_keys: ("lacks signatures", [(_DelegatorMixin, "verify_delegate", nothing)]),
    endless_metadata: ("more than the allowed 16,384 bytes", [(client, "MAX_METADATA", {"timestamp": 1 << 30})]),
    endless_metadata_by_a_stolen_online_key: (
        "more than the allowed 1,048,576 bytes",
        [(client, "MAX_METADATA_BYTES", 1 << 30)],
    ),
    freeze: ("has expired", [(Signed, "is_expired", lambda *arguments: False)]),
    freeze_without_a_clock: ("has expired", [(Trust, "age", lambda self, now: 0)]),
    expired_targets_without_a_clock: ("has expired", [(client, "DATE", "no date")]),
    one_root_key_of_three: ("lacks signatures", [(_DelegatorMixin, "verify_delegate", no_threshold)]),
    stolen_online_key: ("lacks signatures", [(_DelegatorMixin, "verify_delegate", targets_by_any_key)]),
}
"""Each attack: the text of the refusal, and the rule that is removed."""


@pytest.mark.parametrize("name", ATTACKS, ids=lambda name: name.__name__)
def test_an_attack_is_refused_and_succeeds_without_its_rule(attack, name, monkeypatch):
    expected, rules = ATTACKS[name]
    source = name(attack)
    current = attack.board.current
    with pytest.raises(UpdateError, match=expected):
        attack.board.update(source)
    assert attack.board.current == current
    for owner, rule, instead in rules:
        monkeypatch.setattr(owner, rule, instead)
    outcome = attack.board.update(source)
    new = name in (mix_and_match, arbitrary_file, wrong_keys, one_root_key_of_three, stolen_online_key)
    assert outcome.installed == new and (attack.board.current != current) == new


@pytest.mark.parametrize("rule", [True, False])
def test_endless_data(attack, monkeypatch, rule):
    """An endless answer is not read beyond the signed length."""
    attack.first()
    attack.repository.add(attack.bundles[2], 2)
    forged = attack.forged()
    (path,) = forged.glob("targets/*/*photos2*")
    with path.open("ab") as file:
        file.truncate(20 << 20)
    server = attack.serve(forged)
    if not rule:
        monkeypatch.setattr(client.Fetcher, "_fill", without_a_limit)
    read = []
    chunks = client.HttpFetcher._chunks
    monkeypatch.setattr(
        client.HttpFetcher, "_chunks", lambda *given: (read.append(len(chunk)) or chunk for chunk in chunks(*given))
    )
    with pytest.raises(UpdateError):
        attack.board.update(server.address)
    assert (sum(read) < 200_000) == rule


def without_a_limit(self, file, url, max_length):
    for chunk in self._chunks(file, url, max_length):
        file.write(chunk)
    length = file.tell()
    file.seek(0)
    return length


def test_slow_retrieval(attack, monkeypatch):
    """A server that sends a byte now and then never stops, but the board gives up."""
    attack.first()
    new = attack.repository.add(attack.bundles[2], 2)
    server = attack.serve(attack.repository.folder)
    done = threading.Event()

    def drip(handler):
        if "photos2" not in handler.path:
            return
        write = handler.wfile.write

        def slowly(data):
            for number in range(0, len(data), 50):
                done.wait(0.02)
                write(data[number : number + 50])

        handler.wfile.write = slowly

    server.before = drip
    with monkeypatch.context() as patched:
        patched.setattr(client, "TIMEOUT_S", 0.2)
        patched.setattr(client, "SLOWEST_BYTES_PER_S", 1e9)
        with pytest.raises(UpdateError, match=r"did not send .*photos2-2\.edgecnn within 0 s"):
            attack.board.update(server.address)
    part = attack.board.spool / "parts" / attack.repository.stored(new).name
    assert 0 < part.stat().st_size < 1800, "the received part is kept for the next attempt"
    done.set()
    attack.board.update(server.address)
    assert attack.board.current == new


def test_a_board_recovers_from_a_stolen_online_key_by_its_rotation(attack):
    """It signed versions and a date far ahead, so that nothing newer counts. A root with a different key recovers the board."""
    attack.first()
    repository = attack.repository
    saved = {name: copy.deepcopy(repository.signed[name]) for name in ("snapshot", "timestamp")}
    repository.now = datetime(2028, 2, 1, tzinfo=UTC)
    repository.signed["timestamp"].version = repository.signed["snapshot"].version = 10**6
    repository.lasts |= {"snapshot": 10**6, "timestamp": 10**6}
    repository.publish("snapshot", "timestamp")
    with pytest.raises(UpdateError, match="expired"):
        attack.board.update(repository.folder)  # by then the targets have expired
    repository.now = attack.board.clocks.now
    repository.lasts |= {"snapshot": 30, "timestamp": 30}
    repository.signed |= saved
    new = repository.add(attack.bundles[2], 2)
    with pytest.raises(UpdateError, match=r"expired|older"):
        attack.board.update(repository.folder)
    repository.keys["online"] = type(repository)(attack.folder / "other").keys["online"]
    repository.publish("root", "snapshot", "timestamp")
    attack.board.update(repository.folder)
    assert attack.board.current == new
