"""The keys that sign releases: Ed25519 key files in folders that only their owner can read."""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgecnn.errors import ReleaseError
from edgecnn.files import output_errors, sync_folder, write_atomic

ONLINE, TARGETS = "online", "targets"
NAME = "edgecnn_name"
"""The field of a key in root metadata with the name of its file, so that a message can name a lost file."""

ANCHOR = "root.json"
"""The file in a key folder with the newest root metadata seen there, from which a repository has to follow."""

PASSPHRASE_FILE = "EDGECNN_RELEASE_PASSPHRASE_FILE"
MIN_PASSPHRASE = 16
"""Fewest characters: a thief of the file can try a million per second, since cryptography's PKCS#8 takes 2,048 rounds of PBKDF2."""

FRESH, REVOKED = ".new", ".revoked"
"""Suffixes of a key file that is not yet in use, and of one that no longer is."""


@dataclass
class Keys:
    """Folders with key files; new ones go to the first.

    `ask` returns a passphrase, given the key's name and whether the key is new.
    """

    folders: Sequence[Path]
    ask: Callable[[str, bool], str]
    _known: list[bytes] = field(default_factory=list, repr=False)
    _new: bytes = field(default=b"", repr=False)
    _made: dict[str, CryptoSigner] = field(default_factory=dict, repr=False)

    @property
    def own(self) -> Path:
        return self.folders[0]

    def known(self) -> bytes | None:
        """Return the root metadata that the keys belong to; None if no folder has it."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                return (folder / ANCHOR).read_bytes()
        return None

    def anchor(self) -> bytes:
        """Return `known`; ReleaseError if no folder has it."""
        if known := self.known():
            return known
        raise ReleaseError(
            f"no {ANCHOR} in {self.searched}, so the root of the keys is unknown. Name their folder with --keys, or copy "
            f"{ANCHOR} there from the folder where the keys were made."
        )

    def create(self, name: str, *, fresh: bool = False) -> CryptoSigner:
        """Make a key and write its file; a `fresh` one goes next to the one in use. All but the online key get the passphrase."""
        path = self.own / f"{name}.pem{FRESH if fresh else ''}"
        if path.exists() and not fresh:
            raise ReleaseError(f"{path} exists, and keys are not overwritten. Name another folder with --keys.")
        private = Ed25519PrivateKey.generate()
        protection: KeySerializationEncryption = NoEncryption()
        if name != ONLINE:
            protection = BestAvailableEncryption(self._new_passphrase(name))
        write_atomic(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), mode=0o600)
        sync_folder(self.own)
        signer = _signer(private, name)
        self._made[signer.public_key.keyid] = signer
        return signer

    def signer(self, key: Key) -> CryptoSigner:
        """Return the signer of a key that root metadata names; ReleaseError if its file is missing or the passphrase is wrong."""
        signer = self.find(key)
        if signer is None:
            name = name_of(key)
            raise ReleaseError(
                f"no {name}.pem that the repository trusts is in {self.searched}. Name the folder that has it with --keys, which may be "
                f"repeated; if it is lost: edgecnn release rotate {name}"
            )
        return signer

    def find(self, key: Key) -> CryptoSigner | None:
        """Return the signer of a key, or None if no file has it; ReleaseError for a wrong passphrase."""
        if key.keyid in self._made:  # the previous file may be one whose passphrase was forgotten
            return self._made[key.keyid]
        name = name_of(key)
        names = (f"{name}.pem{ending}" for ending in ("", FRESH))
        for path in [path for file in names for folder in self.folders if (path := folder / file).exists()]:
            signer = _signer(self._load(path, name), name)
            if signer.public_key.keyid == key.keyid:
                return signer
        return None

    def replace(self, name: str, key: Key) -> None:
        """Give a `fresh` key's file the name of the previous key's file, which signs nothing more and gets another suffix.

        Does nothing if it already has its name.
        """
        fresh = self.own / f"{name}.pem{FRESH}"
        if not fresh.exists() or _signer(self._load(fresh, name), name).public_key.keyid != key.keyid:
            return
        with output_errors(fresh):
            for used in [folder / f"{name}.pem" for folder in self.folders]:
                if used.exists():
                    os.replace(used, f"{used}{REVOKED}")
            os.replace(fresh, self.own / f"{name}.pem")
        sync_folder(self.own)

    def _new_passphrase(self, name: str) -> bytes:
        """Return the passphrase for new keys, which is requested only once; ReleaseError if it is too short."""
        if not self._new:
            text = self.ask(name, True)
            if len(text) < MIN_PASSPHRASE:
                raise ReleaseError(
                    f"a passphrase needs at least {MIN_PASSPHRASE} characters, such as five random words; received {len(text)}."
                )
            self._new = text.encode()
            self._known.append(self._new)
        return self._new

    def _load(self, path: Path, name: str) -> Ed25519PrivateKey:
        """Read a key, if possible with a passphrase that opened another one."""
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ReleaseError(f"other users can use the key {path}. To change that: chmod 600 {path}")
            data = path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"cannot read the key {path}: {error.strerror}.") from None
        protected = b"ENCRYPTED" in data
        for secret in [*self._known, None] if protected else [b""]:
            given = self.ask(name, False).encode() if secret is None else secret
            try:
                private = load_pem_private_key(data, given or None)
            except (TypeError, ValueError):
                continue
            if not isinstance(private, Ed25519PrivateKey):
                raise ReleaseError(f"{path} is not an Ed25519 key, the only kind that edgecnn release makes.")
            if protected and given not in self._known:
                self._known.append(given)
            return private
        why = "the passphrase is wrong, or the file is damaged" if protected else "the file is damaged"
        raise ReleaseError(f"cannot read the key {path}: {why}.")

    @property
    def searched(self) -> str:
        """The folders, as text for messages."""
        return " or ".join(map(str, self.folders))


def default_folder(repository: Path) -> Path:
    """Return the folder of a repository's keys: DIR-keys next to DIR."""
    folder = repository.resolve()
    return folder.with_name(f"{folder.name}-keys")


def refuse_inside(folders: Sequence[Path], repository: Path) -> None:
    """Raise ReleaseError if a key folder is in the repository, which everybody may read, or the other way round."""
    public = repository.resolve()
    for folder in folders:
        if folder.resolve().is_relative_to(public) or public.is_relative_to(folder.resolve()):
            raise ReleaseError(
                f"the key folder {folder} and the repository {repository} must not contain each other, since the repository goes to the "
                "web server. Name another folder with --keys."
            )


def make_folder(folder: Path) -> None:
    """Make a folder for keys that only its owner can use; ReleaseError if it is not empty or belongs to others as well."""
    if occupied(folder):
        raise ReleaseError(f"the key folder {folder} is not empty. Name another with --keys.")
    with output_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)


def occupied(folder: Path) -> bool:
    """Return whether a path exists and is not an empty folder."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def name_of(key: Key) -> str:
    """Return the name of a key in root metadata; a name from somebody else's root is not used as a path."""
    name = str(key.unrecognized_fields.get(NAME, ""))
    return name if name.replace("-", "").isalnum() and name.isascii() else key.keyid[:12]


def _signer(private: Ed25519PrivateKey, name: str) -> CryptoSigner:
    public = SSlibKey.from_crypto(private.public_key())
    public.unrecognized_fields[NAME] = name
    return CryptoSigner(private, public)
