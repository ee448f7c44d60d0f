"""Update this board: fetch as a user without rights, verify as root, put the release in use and report the outcome.

The fetching half runs in a separate process, as a user without rights if possible, and is killed if it takes too long.
"""

import contextlib
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from edgecnn.bundle.channel import MAX_METADATA, Entry, plain_name, target_file
from edgecnn.bundle.file import read_bundle
from edgecnn.device.slots.store import Store, Use
from edgecnn.device.system import environment
from edgecnn.device.update.board import (
    ROOT_FILE,
    Board,
    BoardState,
    Held,
    Mark,
    Options,
    Trust,
    UpdateOutcome,
    decide,
    keep_trust,
    read_trust,
    remembered,
    write_status,
)
from edgecnn.device.update.client import REPOSITORY, Client, FolderFetcher, Request, dated
from edgecnn.errors import OutputError, UpdateError
from edgecnn.files import output_errors, sha256
from edgecnn.labels import printable
from edgecnn.tables import to_json

USER = "edgecnn-update"
FETCH_S = 3600.0  # a fetch that takes longer is killed; the part of a bundle that it has fetched stays
MAX_ANSWER_BYTES = 1 << 16


def prepare_spool(board: Board) -> tuple[Path, dict[str, Any], str]:
    """Make the folder to fetch to; return it, the `rights` of the process that fetches, perhaps {}, and the name of its user.

    UpdateError for a link or somebody else's folder; OutputError if it cannot be made.
    Without the user, root fetches to a folder in its own `trust`: the user's may have belonged to somebody who left links there.
    """
    spool, user, entry = board.spool, f"user {os.geteuid()}", None
    if os.geteuid() == 0:
        spool, user = board.trust / "spool", "root"
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(USER)
            spool, user = board.spool, USER
    owner = entry.pw_uid if entry else os.geteuid()
    with output_errors(spool):
        if entry and not spool.is_symlink() and spool.exists() and spool.stat().st_uid != owner:
            shutil.rmtree(spool)  # made before this user existed
        spool.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            spool.mkdir(mode=0o755)
            os.chown(spool, owner, entry.pw_gid if entry else -1)
        found = spool.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise UpdateError(f"{spool} must be a folder of {user}, and is a link or somebody else's. Remove it.")
    return spool, {"user": owner, "group": entry.pw_gid, "extra_groups": []} if entry else {}, user


def fetch_in_sandbox(request: str, rights: dict[str, Any]) -> None:
    """Run `fetch` on a JSON request in another process, which ends with this one. UpdateError, with the reason, if it fails or is late.

    The other process reads its standard input until it closes, which happens however this process ends.
    """
    command = [sys.executable, "-P", "-m", "edgecnn.device.update.client"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        begun = subprocess.Popen(command, **pipes, **rights, cwd="/", env=environment(), umask=0o022)
    except OSError as error:
        hint = (
            f"The user {USER} must be able to run it: install edgecnn outside /root and /home, such as in /opt/edgecnn."
        )
        raise UpdateError(f"cannot run {sys.executable}: {error.strerror}. {hint}") from None
    with begun as process:
        late = threading.Timer(FETCH_S, process.kill)
        late.start()
        try:
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):  # its answer, or the lack of one, gives the reason
                process.stdin.write(f"{request}\n".encode())
                process.stdin.flush()
            answer = process.stdout.read(MAX_ANSWER_BYTES)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        finally:
            process.kill()
            late.cancel()
    last = (answer.decode(errors="replace").splitlines() or ["nothing"])[-1]
    try:
        reason = json.loads(last)["reason"]
    except (ValueError, KeyError, TypeError, RecursionError):
        spent = f"its last line was {printable(last)}, and it may have been killed after {FETCH_S / 60:.0f} minutes"
        raise UpdateError(f"the fetch ended without an answer: {spent}.") from None
    if reason:
        raise UpdateError(printable(str(reason)))


BEHIND = timedelta(minutes=1)  # clocks of two machines differ by less
KEPT = 2  # releases kept in the slots before a new one is added


def update(board: Board, options: Options, root_file: Path | None = None) -> UpdateOutcome:
    """Check for a release, put this board's release in use if there is a new one, and write the outcome to status.json.

    `root_file` is the signed trust root, by default /etc/edgecnn/root.json.

    Raises UpdateError if the repository cannot be reached or is refused; SlotError, BundleError, EngineError or OutputError if its bundle
    cannot be put in use. The current model then stays in use.
    """
    with board.locked() as scratch:
        identity = ""
        try:
            identity = board.identity()
            outcome = _check(board, options, root_file or board.path(ROOT_FILE), identity, scratch)
        except Exception as error:
            with contextlib.suppress(OutputError):  # on a full disk, say; the original error matters more
                write_status(board, options, identity, str(error) or type(error).__name__)
            raise
        write_status(board, options, identity, outcome)
        return outcome


def _check(board: Board, options: Options, root_file: Path, identity: str, scratch: Path) -> UpdateOutcome:
    root = _read_root(root_file)
    before = read_trust(board, sha256(root), root)
    store = board.slots()
    slots = store.read()
    trust = replace(before, held_back=remembered(before.held_back, slots))
    state = BoardState(
        board=identity, current=slots.current, held=trust.held_back, mark=trust.marks.get(options.channel)
    )
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
        trust = keep_trust(board, before, trust.holding(client.held, ticks, count=behind))
    behind = now - clock > BEHIND
    decision = decide(client.entries(options.channel), state)
    mark = decision.mark
    if decision.install and decision.entry:
        path = scratch / target_file(decision.entry.path, decision.entry.sha256)
        client.download(decision.entry, path)
        _install(store, path, decision.entry)
        mark = Mark.of(decision.entry)
    if mark:
        keep_trust(board, trust, replace(trust, marks={**trust.marks, options.channel: mark}))
    held = decision.held
    why = slots.held.get(held.sha256, "this board has had it, and left it") if held else ""
    return UpdateOutcome(
        entry=decision.entry, now=now, behind=behind, installed=decision.install, note=decision.note, user=user, held=held, why=why
    )  # fmt: skip


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
        wrong = "it is not UTF-8"
    else:
        if len(data) <= MAX_METADATA["root"]:
            return data
        wrong = f"it has more than {MAX_METADATA['root']:,} bytes"
    raise UpdateError(
        f"{path} is not a root of trust: {wrong}. Copy the repository's metadata/1.root.json there again."
    )


def _fetch(board: Board, options: Options, state: BoardState, trust: Trust, age_s: int) -> tuple[Path, str]:
    spool, rights, user = prepare_spool(board)
    texts = {role: getattr(trust, role) for role in Held._fields}
    request = Request(
        spool=str(spool), source=options.source, channel=options.channel, state=state, age_s=age_s, **texts
    )
    fetch_in_sandbox(json.dumps(to_json(request)), rights)
    return spool, user
