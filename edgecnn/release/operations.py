"""The operations of `edgecnn release` on a repository. Each function checks everything before it writes."""

import contextlib
import copy
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from edgecnn.bundle.channel import (
    CUSTOM,
    SHA256,
    AllowOlder,
    Entry,
    Terms,
    entries_of,
    is_board_id,
    plain_name,
    target_path,
)
from edgecnn.bundle.evidence import bad_reason, objection
from edgecnn.bundle.file import Bundle
from edgecnn.errors import ReleaseError, UpdateError, nearest
from edgecnn.files import output_errors
from edgecnn.release.keys import ONLINE, TARGETS, Keys, make_folder, name_of, occupied, refuse_inside
from edgecnn.release.repository import ONLINE_ROLES, Repository, RepositoryState
from edgecnn.tables import Struct, to_json

KEPT = 100
"""Maximum number of releases of a channel, unless more of them are not for all boards: each costs a board about 300 bytes."""

ROOT = "root"
ROOT_KEY = re.compile("root-[1-9][0-9]?")


class Offer(Struct):
    """How a bundle is released. `accepted` is the reason to release it although its gate failed, or without a verdict that it may replace
    what boards have; `instead_of` are the releases that boards may go back from."""

    channel: str
    share: int
    pilots: Sequence[str] = ()
    accepted: str = ""
    instead_of: Sequence[str] = ()


def init(folder: Path, keys: Keys, *, root_keys: int = 3, threshold: int = 2) -> None:
    """Make keys and an empty repository; ReleaseError if one exists, or would contain the keys."""
    if not 1 <= threshold <= root_keys <= 9:
        raise ReleaseError(
            f"{threshold} of {root_keys} root keys cannot sign. Expected 1 to 9 root keys, of which at least one must sign."
        )
    refuse_inside(keys.folders, folder)
    if occupied(folder):
        raise ReleaseError(f"{folder} is not empty. A new repository needs its own folder.")
    make_folder(keys.own)
    root = Root(roles=None, consistent_snapshot=True)
    for role, names in (("root", [f"root-{number + 1}" for number in range(root_keys)]), (TARGETS, [TARGETS])):
        for name in names:
            root.add_key(keys.create(name).public_key, role)
    online = keys.create(ONLINE).public_key
    for role in ONLINE_ROLES:
        root.add_key(online, role)
    root.roles["root"].threshold = threshold
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    repository = Repository(folder)
    with repository.locked():
        metadata = Metadata(root)
        repository.write_root(metadata, keys, previous=None)
        state = RepositoryState((metadata,), Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()))
        for part in (state.targets, state.snapshot, state.timestamp):
            part.signed.version = 0  # the first write makes it 1
        repository.write(state, keys, targets=True)


def add(repository: Repository, keys: Keys, bundle: Bundle, offer: Offer) -> Entry:
    """Release a bundle; ReleaseError, before anything is written, if it may not be released."""
    if wrong := bad_reason(offer.accepted):
        raise ReleaseError(wrong)
    with _changing(repository, keys) as state:
        entries = _channel(state, offer.channel)
        path, allowed = _place(bundle, offer, entries)
        accepted = _accepted(repository, bundle, offer, entries)
        terms = Terms(
            number=1 + max((entry.terms.number for entry in entries), default=0),
            serial=bundle.manifest.serial,
            share=_share(offer.share),
            pilots=_pilots(offer.pilots),
            allow_older=allowed,
            accepted=accepted,
        )
        entry = Entry(path=path, sha256=bundle.sha256, length=len(bundle.data), terms=terms)
        old = _superseded([*(other for other in entries if other.path != path), entry])
        for other in old:
            del state.targets.signed.targets[other.path]
        _put(state, entry)
        repository.write_target(path, entry.sha256, bundle.data)
        repository.write(state, keys, targets=True)
        for other in old:
            with output_errors(repository.folder):
                repository.target_file(other.path, other.sha256).unlink(missing_ok=True)
    return entry


def change(
    repository: Repository,
    keys: Keys,
    channel: str,
    *,
    share: int | None = None,
    pilots: Sequence[str] = (),
    stop: bool = False,
) -> Entry:
    """Change the share and pilots of a channel's newest active release, or stop it; ReleaseError if it has no active release."""
    with _changing(repository, keys) as state:
        offered = [entry for entry in _channel(state, channel) if not entry.terms.stopped]
        if not offered:
            raise ReleaseError(f"the channel {channel} has no active release. See: edgecnn release status")
        terms = offered[-1].terms
        terms = replace(
            terms,
            share=terms.share if share is None else _share(share),
            pilots=tuple(dict.fromkeys((*terms.pilots, *_pilots(pilots)))),
            stopped=stop,
        )
        entry = replace(offered[-1], terms=terms)
        _put(state, entry)
        repository.write(state, keys, targets=True)
    return entry


def refresh(repository: Repository, keys: Keys, what: str = ONLINE) -> None:
    """Sign again, to expire later: what the online key signs, the targets as well, or the root with its own keys."""
    with _changing(repository, keys) as state:
        if what == "root":
            _next_root(repository, keys, state)
        else:
            repository.write(state, keys, targets=what == TARGETS)


def rotate(repository: Repository, keys: Keys, names: Collection[str]) -> None:
    """Replace lost or stolen keys: `online`, `targets`, `root-1` and so on. Enough root keys must be present.

    A new online or targets key takes two versions of the root. The first trusts the old and the new key; then the new key signs everything,
    and the second version trusts only that key. So boards accept the repository wherever this is interrupted. Boards that see the last
    version forget what only the old online key has signed.
    """
    with _changing(repository, keys) as state:
        root = state.root
        roles = {
            name: [ROOT] if ROOT_KEY.fullmatch(name) else [TARGETS] if name == TARGETS else list(ONLINE_ROLES)
            for name in names
        }
        known = {name_of(root.keys[keyid]): keyid for role in root.roles.values() for keyid in role.keyids}
        if unknown := [name for name in names if name not in known]:
            raise ReleaseError(f"there is no key {unknown[0]}. {nearest(unknown[0], known)}")
        for name in names:
            keys.replace(name, root.keys[known[name]])  # if an earlier command was interrupted

        def trust_new(new: Root) -> None:
            for name in names:
                key = keys.create(name, fresh=True).public_key
                for role in roles[name]:
                    if role == ROOT:
                        new.revoke_key(known[name], role)
                    new.add_key(key, role)

        def forget_old(new: Root) -> None:
            for role in {role for name in names for role in roles[name] if role != ROOT}:
                for keyid in new.roles[role].keyids[:-1]:
                    new.revoke_key(keyid, role)

        state = _next_root(repository, keys, state, trust_new)
        if any(role != ROOT for name in names for role in roles[name]):
            repository.write(state, keys, targets=TARGETS in names)
            state = _next_root(repository, keys, state, forget_old)
        newest = {name_of(state.root.keys[keyid]): keyid for role in state.root.roles.values() for keyid in role.keyids}
        for name in names:
            keys.replace(name, state.root.keys[newest[name]])


def left_behind(repository: Repository, entry: Entry) -> list[Entry]:
    """Return the releases of a channel that boards cannot leave for an older one, since it does not name them."""
    entries = _channel(repository.read(), entry.path.partition("/")[0])
    return [other for other in entries if not entry.may_follow(other.terms.serial, other.sha256)]


def why_not_passed(bundle: Bundle) -> str:
    """Return why a bundle's own gate has not passed, from its report; "" if it has."""
    try:
        report = json.loads(bundle.files["parity.json"])
        passed = report["passed"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return "it contains no parity report with a passed gate"
    return "" if passed is True else "its gate failed, according to its parity report"


def _accepted(repository: Repository, bundle: Bundle, offer: Offer, entries: Sequence[Entry]) -> str:
    """Return the reason to sign for a bundle that lacks a gate or verdict, "" for none; ReleaseError if it needs one.

    A bundle that the channel has had goes back with its own reason.
    """
    for entry in entries:
        if entry.sha256 == bundle.sha256:
            return entry.terms.accepted
    serial = 1 + max((entry.terms.serial for entry in entries), default=0)
    olds = {entry.sha256: repository.target_file(entry.path, entry.sha256) for entry in _in_use(entries)}
    why = why_not_passed(bundle) or objection(bundle, olds, serial)
    if why and not offer.accepted:
        raise ReleaseError(f"{bundle.path}: {why}. To release it anyway, on record: --accept REASON")
    return offer.accepted if why else ""


def _in_use(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the releases that a new one replaces: what the channel offers, from the newest that is for all boards on.

    If all are stopped, boards still have the newest.
    """
    offered = [entry for entry in entries if not entry.terms.stopped]
    full = [number for number, entry in enumerate(offered) if entry.terms.share == 100]
    return offered[full[-1] if full else 0 :] or entries[-1:]


@contextlib.contextmanager
def _changing(repository: Repository, keys: Keys) -> Iterator[RepositoryState]:
    """Lock a repository and read it; an invalid release raises ReleaseError."""
    refuse_inside(keys.folders, repository.folder)
    with repository.locked():
        try:
            yield repository.read(keys.anchor())
        except UpdateError as error:
            raise ReleaseError(f"{error}.") from None


def _channel(state: RepositoryState, channel: str) -> tuple[Entry, ...]:
    return entries_of(state.targets.signed.targets, channel)


def _put(state: RepositoryState, entry: Entry) -> None:
    """Put a release into the targets, and read it back like a board: what a board would refuse is not signed."""
    custom = {"custom": {CUSTOM: to_json(entry.terms)}}
    state.targets.signed.targets[entry.path] = TargetFile(entry.length, {"sha256": entry.sha256}, entry.path, custom)
    if entry not in _channel(state, entry.path.partition("/")[0]):
        raise ReleaseError(f"{entry.path} does not read back as it was written")


def _superseded(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the releases to leave out: beyond the newest KEPT, and older than one that is for all boards."""
    full = max(
        (entry.terms.number for entry in entries if entry.terms.share == 100 and not entry.terms.stopped), default=0
    )
    return [entry for entry in entries[:-KEPT] if entry.terms.number < full]


def _place(bundle: Bundle, offer: Offer, entries: Sequence[Entry]) -> tuple[str, AllowOlder | None]:
    """Return a new release's path, and the releases from which boards may go back to it; ReleaseError for an invalid serial number."""
    serial = bundle.manifest.serial
    highest = max((entry.terms.serial for entry in entries), default=0)
    path = target_path(offer.channel, plain_name(bundle.manifest.name), serial)
    if serial == 0:
        raise ReleaseError(
            f"{bundle.path} has no serial number, so a board could not tell it from an older one. Bundle it again: "
            f"edgecnn bundle --serial {highest + 1}"
        )
    if not offer.instead_of:
        if serial <= highest:
            raise ReleaseError(
                f"{bundle.path} has serial number {serial}, but {offer.channel} has had {highest}. Bundle it again: edgecnn bundle "
                f"--serial {highest + 1}. To go back to an older bundle, name the releases to go back from: --allow-older-from SHA256"
            )
        return path, None
    sources = [_source(text, entries, serial) for text in offer.instead_of]
    if any(entry.path == path and entry.sha256 != bundle.sha256 for entry in entries):
        raise ReleaseError(
            f"{path} was released with other content than {bundle.path}. Going back needs the same file."
        )
    return path, AllowOlder(to=bundle.sha256, instead_of=tuple(dict.fromkeys(sources)))


def _source(text: str, entries: Sequence[Entry], serial: int) -> str:
    """Return the SHA-256 of a release to go back from, given its first digits.

    One that the channel does not have needs all of them: a thief of the keys may have released it to boards.
    """
    digest = text.lower()
    found = [entry for entry in entries if text and entry.sha256.startswith(digest)]
    if not found and SHA256.fullmatch(digest):
        return digest
    if len(found) != 1:
        known = ", ".join(entry.sha256[:12] for entry in entries)
        what = "several releases begin" if found else "no release of the channel begins"
        raise ReleaseError(
            f"{what} with {text}. Releases here: {known or 'none'}. One that is not here needs all 64 digits."
        )
    if found[0].terms.serial <= serial:
        raise ReleaseError(
            f"{found[0].sha256[:12]} has the serial number {found[0].terms.serial}, not above the bundle's, {serial}: a board moves "
            "from it to the bundle without --allow-older-from."
        )
    return found[0].sha256


def _share(share: int) -> int:
    if not 0 <= share <= 100:
        raise ReleaseError(
            f"a share is 0 to 100 percent of the boards, received {share}. Expected a whole number, such as --share 5."
        )
    return share


def _pilots(pilots: Sequence[str]) -> tuple[str, ...]:
    for pilot in pilots:
        if not is_board_id(pilot):
            raise ReleaseError(
                f"{pilot!r} is not the id of a board, which has 32 hexadecimal digits. To see it there: edgecnn update status"
            )
    return tuple(dict.fromkeys(pilots))


def _next_root(
    repository: Repository, keys: Keys, state: RepositoryState, change: Callable[[Root], None] = lambda root: None
) -> RepositoryState:
    """Write the next version of the root metadata, with a change; return the state with it."""
    metadata = copy.deepcopy(state.roots[-1])
    metadata.signed.version += 1
    change(metadata.signed)
    repository.write_root(metadata, keys, previous=state.root)
    return replace(state, roots=(*state.roots, metadata))
