"""Update this board: fetch as a user without rights, verify as root, put the release in use and report the outcome."""

import contextlib
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from edgecnn.bundle.read import read_bundle
from edgecnn.device.slots.store import Store, Use
from edgecnn.device.update import apart, status
from edgecnn.device.update import trust as trusts
from edgecnn.device.update.board import ROOT_FILE, Board, Options
from edgecnn.device.update.channel import MAX_METADATA, Entry, plain_name, target_file
from edgecnn.device.update.client import Client, dated
from edgecnn.device.update.decide import State, decide, remembered
from edgecnn.device.update.fetch import REPOSITORY, Request
from edgecnn.device.update.fetchers import FolderFetcher
from edgecnn.errors import OutputError, UpdateError
from edgecnn.files import sha256
from edgecnn.labels import printable
from edgecnn.tables import Struct, to_json

BEHIND = timedelta(minutes=1)  # clocks of two machines differ by less
KEPT = 2  # releases kept in the slots before a new one is added


ROOT_AGAIN = "Copy the repository's metadata/1.root.json there again."


class Outcome(Struct):
    """The outcome of a check: the channel's release for this board, whether it has just been put in use, and a sentence.

    `held` is a sentence on a newer release that this board does not put in use, or "".
    """

    entry: Entry | None
    installed: bool
    note: str
    user: str
    """The user that fetched; empty if nothing was fetched."""
    held: str = ""


def update(board: Board, options: Options, root_file: Path | None = None) -> Outcome:
    """Check for a release, put this board's release in use if there is a new one, and write the outcome to status.json.

    `root_file` is the signed trust root, by default /etc/edgecnn/root.json.

    Raises UpdateError if the repository cannot be reached or is refused; SlotError, BundleError, EngineError or OutputError if its bundle
    cannot be put in use. The current model then stays in use.
    """
    with board.locked() as scratch:
        identity = ""
        try:
            identity = board.identity()
            outcome, good = _check(board, options, root_file or board.path(ROOT_FILE), identity, scratch)
        except Exception as error:
            with contextlib.suppress(OutputError):  # on a full disk, say; the original error matters more
                status.write(board, options, identity, str(error) or type(error).__name__)
            raise
        status.write(board, options, identity, good)
        return outcome


def _check(
    board: Board, options: Options, root_file: Path, identity: str, scratch: Path
) -> tuple[Outcome, status.Good]:
    root = _read_root(root_file)
    before = trusts.read(board, sha256(root), root)
    store = board.slots()
    slots = store.read()
    trust = replace(before, held_back=remembered(before.held_back, slots))
    state = State(board=identity, current=slots.current, held=trust.held_back, mark=trust.marks.get(options.channel))
    ticks, clock = board.ticks(), board.clock()
    user = ""
    owned = folder = Path(options.source)
    if options.is_url:
        # the other user may have put links there, even instead of the repository
        owned, user = _fetch(board, options, state, trust, trust.age(ticks))
        folder = owned / REPOSITORY
    client = Client(trust.held, FolderFetcher(owned, scratch), str(folder), scratch)
    date = dated(trust.held)
    try:
        now = client.refresh(clock, trust.age(ticks))
    finally:  # keep what was verified before something was refused
        behind = date is not None and clock < date
        trust = trusts.keep(board, before, trust.holding(client.held, ticks, count=behind))
    behind = now - clock > BEHIND
    decision = decide(client.entries(options.channel), state)
    mark = decision.mark
    if decision.install and decision.entry:
        path = scratch / target_file(decision.entry.path, decision.entry.sha256)
        client.download(decision.entry, path)
        _install(store, path, decision.entry)
        mark = trusts.Mark.of(decision.entry)
    if mark:
        trusts.keep(board, trust, replace(trust, marks={**trust.marks, options.channel: mark}))
    held = decision.held
    why = slots.held.get(held.sha256, "this board has had it, and left it") if held else ""
    outcome = Outcome(
        entry=decision.entry,
        installed=decision.install,
        note=decision.note,
        user=user,
        held=f"release {held.terms.number}, {held.name} serial {held.terms.serial}, is held back: {why}"
        if held
        else "",
    )
    return outcome, status.Good(entry=decision.entry, now=now, behind=behind, held=held, why=why)


def _install(store: Store, path: Path, entry: Entry) -> None:
    bundle, terms = read_bundle(path).manifest, entry.terms
    if (plain_name(bundle.name), bundle.serial) != (entry.name, terms.serial):
        raise UpdateError(
            f"{entry.path} contains {printable(bundle.name)} with serial number {bundle.serial}, which does not match its metadata."
        )
    store.prune(KEPT)
    store.add(path, Use(older=terms.allow_older is not None, accept=terms.accepted, signed=True))


def _read_root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METADATA["root"] + 1)
            data.decode()
    except FileNotFoundError:
        raise UpdateError(
            f"{path}, the root of trust, does not exist. Copy it there from the releases' folder, or name one with --root."
        ) from None
    except OSError as error:
        raise UpdateError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UpdateError(f"{path} is not a root of trust: it is not UTF-8. {ROOT_AGAIN}") from None
    if len(data) > MAX_METADATA["root"]:
        most = f"it has more than {MAX_METADATA['root']:,} bytes"
        raise UpdateError(f"{path} is not a root of trust: {most}. {ROOT_AGAIN}")
    return data


def _fetch(board: Board, options: Options, state: State, trust: trusts.Trust, age_s: int) -> tuple[Path, str]:
    place = apart.prepare(board)
    request = Request(
        spool=str(place.spool),
        source=options.source,
        channel=options.channel,
        state=state,
        age_s=age_s,
        **{role: data.decode() for role, data in trust.held._asdict().items()},
    )
    apart.fetch_apart(json.dumps(to_json(request)), place.rights)
    return place.spool, place.user
