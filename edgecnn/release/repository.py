"""The folder of signed metadata: read with every signature checked, and written so that boards accept it after every single write.

Its status is what it offers, and how long that is valid.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from edgecnn.bundle.channel import DATE, MAX_METADATA, entries_of, target_file
from edgecnn.errors import ReleaseError
from edgecnn.files import folder_lock, sha256_file, sync_folder, write_atomic
from edgecnn.labels import plural
from edgecnn.release.keys import ANCHOR, Keys, name_of
from edgecnn.tables import to_json

DAYS = {"root": 3 * 365, "targets": 365, "snapshot": 30, "timestamp": 30}
"""How long metadata is valid after it was signed."""

ONLINE_ROLES = ("snapshot", "timestamp")

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class RepositoryState:
    """The metadata of a repository, all of it verified; `roots` has each version in the folder, newest last."""

    roots: tuple[Metadata[Root], ...]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    @property
    def root(self) -> Root:
        return self.roots[-1].signed


class Repository:
    """Reads and writes a repository's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = folder / "metadata"

    def target_file(self, path: str, sha256: str) -> Path:
        """Return the path of a target's file, whose name begins with its hash."""
        return self.folder / "targets" / target_file(path, sha256)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the repository meanwhile; ReleaseError if one is. A lock ends with its process."""
        busy = f"another edgecnn release is changing {self.folder}. Wait until it ends."
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(folder_lock(self.folder, ReleaseError(busy)))
            except OSError as error:
                raise self._foreign(error.strerror) from None
            yield

    def read(self, anchor: bytes | None = None) -> RepositoryState:
        """Read the metadata, and check that the root's keys signed each part, and that the root follows from the root metadata `anchor`.

        ReleaseError if not. Expired metadata is no error here.
        """
        roots = self._roots(anchor)
        root = roots[-1].signed
        timestamp = self._signed(Timestamp, "timestamp.json", root)
        snapshot = self._signed(Snapshot, f"{timestamp.signed.snapshot_meta.version}.snapshot.json", root)
        named = snapshot.signed.meta["targets.json"]
        targets = self._signed(Targets, f"{named.version}.targets.json", root, named)
        return RepositoryState(roots, targets, snapshot, timestamp)

    def write_root(self, root: Metadata[Root], keys: Keys, *, previous: Root | None) -> None:
        """Sign and write a version of the root metadata, with enough keys of the previous version and of its own."""
        root.signed.expires = expiry("root")
        root.signatures.clear()
        for signing in (previous or root.signed, root.signed):
            self._sign_by_threshold(root, signing, keys)
        data = self._put(f"{root.signed.version}.root.json", root)
        sync_folder(self.metadata)
        write_atomic(keys.own / ANCHOR, data)

    def write(self, state: RepositoryState, keys: Keys, *, targets: bool) -> None:
        """Sign and write the next snapshot and timestamp, and with `targets` these as well. timestamp.json is written last."""
        now, root = self._now(state), state.root
        online = _only_signer(root, "timestamp", keys)
        if targets:
            self._advance(state.targets, "targets", _only_signer(root, "targets", keys))
            version = state.targets.signed.version
            data = self._put(f"{version}.targets.json", state.targets)
            # with its hash: a thief of the targets key, but not of the online key, could otherwise put another file of this version there
            state.snapshot.signed.meta = {"targets.json": MetaFile.from_data(version, data, ["sha256"])}
        self._advance(state.snapshot, "snapshot", online)
        self._put(f"{state.snapshot.signed.version}.snapshot.json", state.snapshot)
        sync_folder(self.metadata)
        state.timestamp.signed.snapshot_meta = MetaFile(state.snapshot.signed.version)
        state.timestamp.signed.unrecognized_fields[DATE] = now.isoformat().replace("+00:00", "Z")
        self._advance(state.timestamp, "timestamp", online)
        self._put("timestamp.json", state.timestamp)
        sync_folder(self.metadata)

    def write_target(self, path: str, sha256: str, data: bytes) -> None:
        file = self.target_file(path, sha256)
        write_atomic(file, data)
        for folder in (file.parent, file.parent.parent, self.folder):
            sync_folder(folder)

    def _roots(self, anchor: bytes | None) -> tuple[Metadata[Root], ...]:
        versions = sorted(
            int(number)
            for name in self._names()
            if name.endswith(".root.json") and (number := name.partition(".")[0]).isdecimal()
        )
        if not versions or versions != list(range(versions[0], versions[0] + len(versions))):
            raise self._foreign("its root metadata, or a version of it, is missing")
        roots = [self._read(Root, f"{version}.root.json") for version in versions]
        for file, before, after in zip(versions, (roots[0], *roots), roots, strict=False):
            try:
                for root in (before, after):
                    root.signed.verify_delegate(Root.type, after.signed_bytes, after.signatures)
            except RepositoryError as error:
                raise self._foreign(f"{file}.root.json is not signed by enough keys ({error})") from None
            if after.signed.version != file:
                raise self._foreign(f"{file}.root.json has version {after.signed.version}")
        if anchor is not None:
            try:
                known = Metadata[Root].from_bytes(anchor)
            except DeserializationError:
                raise ReleaseError(
                    f"{ANCHOR} of the keys is damaged. Copy the newest root metadata of the repository there, if you trust it."
                ) from None
            if known.signed.version < versions[0] or known.signed not in (root.signed for root in roots):
                raise ReleaseError(
                    f"the root metadata in {self.folder} does not follow from that of the keys ({ANCHOR}, version {known.signed.version}): "
                    "it is an older copy, or another repository. Nothing was changed. Name the newest copy of the keys' repository with "
                    "--repo."
                )
        return tuple(roots)

    def _signed(self, kind: type[T], name: str, root: Root, named: MetaFile | None = None) -> Metadata[T]:
        metadata = self._read(kind, name)
        try:
            if named:
                named.verify_length_and_hashes((self.metadata / name).read_bytes())
            root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise ReleaseError(f"{self.metadata / name} was not signed by the repository's keys: {error}.") from None
        return metadata

    def _read(self, kind: type[T], name: str) -> Metadata[T]:
        try:
            metadata = Metadata[T].from_bytes((self.metadata / name).read_bytes())
        except (OSError, DeserializationError) as error:
            raise self._foreign(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        if not isinstance(metadata.signed, kind):
            raise self._foreign(f"{name} contains other metadata")
        return metadata

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.metadata)
        except OSError as error:
            raise self._foreign(error.strerror) from None

    def _foreign(self, why: object) -> ReleaseError:
        return ReleaseError(
            f"{self.folder} is not a repository of releases, or is damaged: {why}. Name its folder with --repo. To make a new one: "
            "edgecnn release init DIR"
        )

    def _now(self, state: RepositoryState) -> datetime:
        """Return the time; ReleaseError if it is before that of the last signature, or the root metadata has expired."""
        now, last = utc_now(), state.timestamp.signed.unrecognized_fields.get(DATE)
        if last is not None and now < datetime.fromisoformat(str(last)):
            raise ReleaseError(
                f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, but the repository was last signed at {last}. Set the clock."
            )
        if state.root.is_expired(now):
            raise ReleaseError(
                f"the root metadata expired on {state.root.expires:%Y-%m-%d}, so no board accepts anything. "
                "First, with the root keys: edgecnn release refresh root"
            )
        return now

    def _advance(self, metadata: Metadata, role: str, signer: Any) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = expiry(role)
        metadata.sign(signer)

    def _sign_by_threshold(self, metadata: Metadata[Root], signing: Root, keys: Keys) -> None:
        """Sign with as many root keys as needed, of those whose files are here; ReleaseError if there are not enough."""
        role = signing.roles["root"]
        lacking = role.threshold - len(metadata.signatures.keys() & set(role.keyids))
        for key in [signing.keys[keyid] for keyid in role.keyids if keyid not in metadata.signatures]:
            if lacking > 0 and (signer := keys.find(key)):
                metadata.sign(signer, append=True)
                lacking -= 1
        if lacking > 0:
            names = ", ".join(f"{name_of(signing.keys[keyid])}.pem" for keyid in role.keyids)
            raise ReleaseError(
                f"{role.threshold} of the keys {names} must sign, but only {role.threshold - lacking} of them are in {keys.searched}. Name "
                "the folders of the others with --keys, which may be repeated."
            )

    def _put(self, name: str, metadata: Metadata) -> bytes:
        data = metadata.to_bytes(JSONSerializer(compact=True, validate=True))
        most = MAX_METADATA[metadata.signed.type]
        if len(data) > most:
            raise ReleaseError(
                f"{name} would have {len(data):,} bytes, but a board accepts at most {most:,}. Name fewer pilots."
            )
        write_atomic(self.metadata / name, data)
        return data


def expiry(role: str) -> datetime:
    return utc_now() + timedelta(days=DAYS[role])


def utc_now() -> datetime:
    """Return the time in whole seconds, as TUF writes it."""
    return datetime.now(UTC).replace(microsecond=0)


def metadata_bytes(folder: Path, state: RepositoryState) -> int:
    """Return the bytes of the metadata files that a board downloads after a change."""
    versions = f"{state.snapshot.signed.version}.snapshot", f"{state.targets.signed.version}.targets"
    return sum((folder / "metadata" / f"{name}.json").stat().st_size for name in ("timestamp", *versions))


def _only_signer(root: Root, role: str, keys: Keys) -> Any:
    """Return the signer of a role's newest key: while a key is being replaced, there are two."""
    return keys.signer(root.keys[root.roles[role].keyids[-1]])


SCHEMA = "edgecnn.release/1"

SOON_DAYS = {"root": 90, "targets": 30, "snapshot": 7, "timestamp": 7}
"""Days before a role's metadata expires from which that is a problem."""


def repository_status(repository: Repository, anchor: bytes | None = None) -> dict[str, Any]:
    """Return what a repository offers, as JSON: roles with their keys and expiry, channels with their releases, and problems as text.

    ReleaseError if it is not a repository, a signature in it is not valid, or it does not follow from the root metadata `anchor`.
    """
    state, now = repository.read(anchor), utc_now()
    channels = sorted({path.partition("/")[0] for path in state.targets.signed.targets})
    releases = {channel: entries_of(state.targets.signed.targets, channel) for channel in channels}
    problems = [text for role in state.root.roles if (text := _expiry(state, role, now))]
    for entry in [entry for entries in releases.values() for entry in entries]:
        file = repository.target_file(entry.path, entry.sha256)
        if not file.is_file() or sha256_file(file) != entry.sha256:
            problems.append(f"{file} is missing or damaged: put the bundle there again")
    return {
        "schema": SCHEMA,
        "folder": str(repository.folder),
        "signed": state.timestamp.signed.unrecognized_fields.get(DATE),
        "roles": {role: _role(state, role) for role in state.root.roles},
        "channels": {
            channel: [
                {
                    "name": entry.name,
                    "sha256": entry.sha256,
                    "length": entry.length,
                    **{field: to_json(value) for field, value in vars(entry.terms).items()},
                }
                for entry in entries
            ]
            for channel, entries in releases.items()
        },
        "problems": problems,
    }


def _role(state: RepositoryState, role: str) -> dict[str, Any]:
    signed, known = _signed(state, role), state.root.roles[role]
    return {
        "version": signed.version,
        "expires": signed.expires.isoformat().replace("+00:00", "Z"),
        "threshold": known.threshold,
        "keys": [name_of(state.root.keys[keyid]) for keyid in known.keyids],
    }


def _expiry(state: RepositoryState, role: str, now: datetime) -> str:
    """Return a line if a role's metadata has expired or soon will, with what to do; "" otherwise."""
    expires = _signed(state, role).expires
    days = (expires - now).days
    if days > SOON_DAYS[role]:
        return ""
    command = "edgecnn release refresh" + (f" {role}" if role in ("root", "targets") else "")
    if expires <= now:
        return f"{role} expired on {expires:%Y-%m-%d}: boards keep what they have and take nothing new. Now: {command}"
    return f"{role} expires in {plural(days, 'day')}, on {expires:%Y-%m-%d}: {command}"


def _signed(state: RepositoryState, role: str) -> Any:
    return state.root if role == "root" else getattr(state, role).signed
