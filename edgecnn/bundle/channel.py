"""The releases of a channel in signed metadata, and the choice of the one that a board should have.

Workstation and board share this module, so that both agree on a wave. It does not import TUF: a target is any object with TUF's attributes.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from edgecnn.bundle.evidence import LONGEST_REASON
from edgecnn.bundle.file import MAX_BYTES
from edgecnn.bundle.manifest import NAME_CHARACTERS
from edgecnn.errors import UpdateError
from edgecnn.files import sha256
from edgecnn.labels import unsafe
from edgecnn.tables import Struct, build, key, shown

CUSTOM = "edgecnn"
"""The key in a target's `custom` that holds its Terms."""

CHANNEL = re.compile("[a-z0-9][a-z0-9_-]{0,63}")
BOARD_ID = re.compile("[0-9a-f]{32}")
SHA256 = re.compile("[0-9a-f]{64}")

MAX_NUMBER = 2**53
MAX_NAME = 120
"""Longest name of a bundle in a release; the file name also contains a hash and a serial number."""

MAX_METADATA = {"root": 1 << 17, "timestamp": 1 << 14, "snapshot": 1 << 17, "targets": 1 << 20}
"""Maximum bytes of metadata by role. python-tuf allows 5 MB, which costs a board more than 100 MB of memory if an attacker wrote it."""

DATE = "edgecnn_date"
"""The field of timestamp.json that holds its signing time. A board that has seen it never assumes an earlier time."""

MAX_HASHES = 1000
MAX_PILOTS = 1000


class AllowOlder(Struct):
    """A signed permission to go back to the bundle `to` from any bundle in `instead_of`, which have larger serial numbers."""

    to: str
    instead_of: tuple[str, ...]


class Terms(Struct):
    """The signed terms of a release. `number` counts a channel's releases; `serial` is the bundle's own number."""

    number: int = key(low=1, high=MAX_NUMBER)
    serial: int = key(low=1, high=MAX_NUMBER)
    share: int = key(low=0, high=100)
    pilots: tuple[str, ...] = key((), left_out=True)
    stopped: bool = key(False, left_out=True)
    allow_older: AllowOlder | None = key(None, left_out=True)
    accepted: str = key("", left_out=True)
    """Why the bundle was released although its gate had failed, or without a verdict that it may replace the one before."""


class Entry(Struct):
    """A release: a signed target and its terms."""

    path: str
    sha256: str
    length: int
    terms: Terms

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].rpartition("-")[0]

    def may_follow(self, serial: int, digest: str) -> bool:
        """Return whether a board may take this release after one with the given serial number and SHA-256.

        The serial number must be larger, unless the bundle is the same or the signed terms allow going back from that release.
        """
        allowed = self.terms.allow_older
        return self.terms.serial > serial or digest in (self.sha256, *(allowed.instead_of if allowed else ()))


def check_channel(channel: str) -> str:
    """Return a channel's name; UpdateError if it is not valid."""
    if not CHANNEL.fullmatch(channel):
        raise UpdateError(f"a channel's name is at most 64 lower-case letters, digits, _ and -, not {shown(channel)}")
    return channel


def is_board_id(text: str) -> bool:
    return BOARD_ID.fullmatch(text) is not None


def plain_name(name: str) -> str:
    """Return a bundle's name for a release, with hyphens for characters that are not allowed in a path."""
    plain = "".join(character if character in NAME_CHARACTERS else "-" for character in name)
    return plain.strip("-.")[:MAX_NAME] or "bundle"


def target_path(channel: str, name: str, serial: int) -> str:
    """Return the path of a release's target; UpdateError if it is not valid."""
    check_channel(channel)
    if not 0 < len(name) <= MAX_NAME or name[0] == "." or not NAME_CHARACTERS.issuperset(name):
        raise UpdateError(
            f"a release's name must be at most {MAX_NAME} letters, digits, ., _ and -, and not begin with a dot; received {shown(name)}"
        )
    return f"{channel}/{name}-{serial}.edgecnn"


def entries_of(targets: Mapping[str, Any], channel: str) -> tuple[Entry, ...]:
    """Return a channel's releases, ordered by number. UpdateError names a target that `edgecnn release` would not write.

    `targets` is `Targets.targets` from verified metadata: TUF's TargetFile by path. Those of other channels are ignored.
    """
    check_channel(channel)
    prefix = f"{channel}/"
    entries = [_entry(path, target) for path, target in targets.items() if path.startswith(prefix)]
    entries.sort(key=lambda entry: entry.terms.number)
    for one, other in itertools.pairwise(entries):
        if one.terms.number == other.terms.number:
            raise UpdateError(f"{shown(one.path)} and {shown(other.path)} have the same number, {one.terms.number}")
    return tuple(entries)


def choose_release(entries: Iterable[Entry], board_id: str, held: Collection[str], current: str | None) -> Entry | None:
    """Return the release that a board should have, which may be the one in use, or None.

    It is the newest that is not stopped, includes the board in its wave or pilots, and is not held on the board. A board never goes back
    to a release older than the one in use: to go back, the older bundle is released anew.

    `held` has the SHA-256s of bundles that went bad on this board or were rolled back there; `current` is that of the bundle in use.
    """
    chosen = None
    for entry in sorted(entries, key=lambda entry: entry.terms.number):
        if entry.sha256 == current or (entry.sha256 not in held and is_for(entry, board_id)):
            chosen = entry
    return chosen


def is_for(entry: Entry, board_id: str) -> bool:
    """Return whether a release is offered to a board: it is not stopped, and the board is in its wave or one of its pilots."""
    terms = entry.terms
    return not terms.stopped and (board_id in terms.pilots or in_wave(board_id, entry.sha256, terms.share))


def in_wave(board_id: str, digest: str, share: int) -> bool:
    """Return whether a board is in a target's wave: the SHA-256 of "ID:TARGET" as a number, mod 100, is below the share in percent.

    A board in one wave is in every larger wave of the same target. Different targets have different waves.
    """
    return int(sha256(f"{board_id}:{digest}".encode()), 16) % 100 < share


def target_file(path: str, digest: str) -> str:
    """Return the path of a target's file below targets/ in a repository; the file name begins with its hash."""
    channel, _, file = path.partition("/")
    return f"{channel}/{digest}.{file}"


def _entry(path: str, target: Any) -> Entry:
    """Return a target's release after checking every value, since the signer of the metadata may have stolen the key."""
    where = f"the release {shown(path)}"
    custom = target.custom
    if not isinstance(custom, Mapping) or CUSTOM not in custom:
        raise UpdateError(f"{where} has no terms: its custom must contain {CUSTOM!r}; received {shown(custom)}")
    terms = build(Terms, custom[CUSTOM], UpdateError, where, exact=True)
    digest, allowed = target.hashes.get("sha256"), terms.allow_older
    channel, _, file = path.partition("/")
    name = file.removesuffix(f"-{terms.serial}.edgecnn")
    for right, expected, received in (
        (_is_path(channel, name, path, terms.serial), f"its path must be CHANNEL/NAME-{terms.serial}.edgecnn", path),
        (type(digest) is str and SHA256.fullmatch(digest), "its hashes must contain a SHA-256", target.hashes),
        (
            type(target.length) is int and 0 < target.length <= MAX_BYTES,
            f"its length must be from 1 to {MAX_BYTES:,}",
            target.length,
        ),
        (_each(BOARD_ID, terms.pilots, MAX_PILOTS), f"pilots must be at most {MAX_PILOTS:,} board ids", terms.pilots),
        (len(terms.accepted) <= LONGEST_REASON, "accepted must have at most 1,000 characters", terms.accepted),
        (not any(map(unsafe, terms.accepted)), "accepted must not contain control characters", terms.accepted),
        (allowed is None or allowed.to == digest, "allow_older.to must be its own SHA-256", allowed and allowed.to),
        (
            allowed is None or (allowed.instead_of and _each(SHA256, allowed.instead_of, MAX_HASHES)),
            f"allow_older.instead_of must be 1 to {MAX_HASHES:,} SHA-256",
            allowed and allowed.instead_of,
        ),
    ):
        if not right:
            raise UpdateError(f"{where}: {expected}; received {shown(received)}")
    return Entry(path=path, sha256=str(digest), length=target.length, terms=terms)


def _is_path(channel: str, name: str, path: str, serial: int) -> bool:
    try:
        return target_path(channel, name, serial) == path
    except UpdateError:
        return False


def _each(pattern: re.Pattern[str], texts: Collection[str], most: int) -> bool:
    """Return whether there are at most `most` texts, all different and all matching the pattern."""
    return len(texts) <= most and len(set(texts)) == len(texts) and all(map(pattern.fullmatch, texts))
