"""Bring boards edgecnn, the keys that they trust, their options, and the releases that they lack; they update from that copy."""

import json
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn.bundle.channel import entries_of, is_for
from edgecnn.errors import ReleaseError
from edgecnn.files import sha256, sha256_file
from edgecnn.fleet.software import Software, tar
from edgecnn.fleet.ssh import Board, BoardError, Sessions, last_line
from edgecnn.fleet.status import CONFIGURED, REPOSITORY, Look, look, read_status
from edgecnn.release.keys import ANCHOR, default_folder
from edgecnn.release.repository import Repository
from edgecnn.tables import Struct

ROOT, UPDATE, SERVICE = CONFIGURED

PUT_FILES = """set -e
umask 022
fresh={repository}/.new
rm -rf $fresh
trap 'rm -rf '$fresh EXIT
mkdir -p $fresh
tar -x -o -C $fresh
sync
cd $fresh
for part in etc .{repository}/targets .{repository}/metadata; do
    find $part -type f 2>/dev/null | LC_ALL=C sort | while read -r file; do
        mkdir -p "/${{file%/*}}"
        mv "$file" "/$file"
    done
done
"""
"""The timestamp comes last: by then, everything that it leads to is there."""

RUN_UPDATE = """edgecnn update --from {repository} >&2
code=$?
edgecnn update status --json
exit $code
"""


class File(NamedTuple):
    """A file here, and its SHA-256."""

    path: Path
    sha256: str


class Offer:
    """What a repository offers the boards of a channel: its only one, unless one is named. `roots` are all versions that it has had.

    ReleaseError if the folder is not a repository, has an invalid signature or lacks the channel; also if it does not follow from the root
    that its keys have seen, if these are in their default folder.
    """

    def __init__(self, folder: Path, channel: str | None = None) -> None:
        repository = Repository(folder)
        seen = default_folder(folder) / ANCHOR
        state = repository.read(seen.read_bytes() if seen.is_file() else None)
        targets = state.targets.signed.targets
        channels = sorted({path.partition("/")[0] for path in targets})
        if channel not in channels and (channel is not None or len(channels) != 1):
            problem = (
                f"has no channel {channel}" if channel else f"has {len(channels)} channels: name one with --channel"
            )
            raise ReleaseError(f"{folder} {problem}. Known: {', '.join(channels) or 'none'}.")
        self.channel = channel or channels[0]
        names = [f"{root.signed.version}.root.json" for root in state.roots]
        names += [f"{state.snapshot.signed.version}.snapshot.json", f"{state.targets.signed.version}.targets.json"]
        metadata = [repository.metadata / name for name in (*names, "timestamp.json")]
        self.roots = [path.read_bytes() for path in metadata[: len(state.roots)]]
        self._metadata = {f"{REPOSITORY}/metadata/{path.name}": File(path, sha256_file(path)) for path in metadata}
        self._releases = {
            entry: File(repository.target_file(entry.path, entry.sha256), entry.sha256)
            for entry in entries_of(targets, self.channel)
        }
        for file in self.files("").values():
            if not file.path.is_file() or sha256_file(file.path) != file.sha256:
                raise ReleaseError(f"{file.path} is missing or damaged. Copy the whole repository here again.")

    def files(self, board_id: str) -> dict[str, File]:
        """Return the files of a board's copy, by path there: metadata, and the releases that it may choose. Without an id: of any board."""
        files = dict(self._metadata)
        for entry, file in reversed(self._releases.items()):
            if is_for(entry, board_id) if board_id else not entry.terms.stopped:
                files[f"{REPOSITORY}/targets/{self.channel}/{file.path.name}"] = file
                if entry.terms.share == 100:  # no board takes an older one
                    break
        return files


class Plan(Struct):
    """What boards get: `software`, an `offer`, and the service's options; `url` is where they look later, "" to leave that unchanged."""

    software: Software
    offer: Offer
    url: str = ""
    options: bytes | None = None
    replace_root: bool = False

    def configuration(self, found: Look) -> dict[str, bytes]:
        """Return the options that a board lacks, by path there. Without a `url`, it looks where it did before, or in its copy.

        A root that it trusts is not replaced, since new ones follow from it. BoardError if that belongs to another repository.
        """
        source = json.dumps(self.url) if self.url else found.source or json.dumps(REPOSITORY)
        text = f"from = {source}\nchannel = {json.dumps(self.offer.channel)}\n"
        files = {ROOT: self.offer.roots[-1], UPDATE: text.encode()}
        if self.options is not None:
            files[SERVICE] = self.options
        trusted = found.hashes.get(ROOT, "")
        if trusted in [sha256(root) for root in self.offer.roots]:
            del files[ROOT]
        elif trusted and not self.replace_root:
            raise BoardError(
                f"{ROOT} there belongs to another repository. To make it trust this one from now on: --replace-root"
            )
        return {path: content for path, content in files.items() if found.hashes.get(path) != sha256(content)}


NO_SERVICE = "it has no systemd, so nothing runs the model there; start edgecnn service run yourself, at each boot"


class DeployOutcome(Struct):
    """The outcome for a board: `problem` is why it failed, or ""; `warning` is what it does not do although nothing failed, or "".

    `status` is the output of its `edgecnn update status`.
    """

    host: str
    problem: str = ""
    warning: str = ""
    installed: str = ""
    files: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0
    status: Mapping[str, Any] | None = None


def deploy(host: str, plan: Plan, sessions: Sessions, progress: Callable[[str, str], object]) -> DeployOutcome:
    """Carry out a plan on one board, and return the outcome. `progress` receives the host and the step."""
    started = time.monotonic()
    made: dict[str, Any] = {}
    board = None
    try:
        with sessions.connect(host) as board:
            found = look(board)
            progress(host, "connected")
            configuration = plan.configuration(found)
            made["installed"] = plan.software.install(board, found)
            if made["installed"]:
                progress(host, f"installed {made['installed']}")
            brought = bring(board, found, plan, configuration)
            made["files"] = len(brought)
            if not found.systemd:
                made["warning"] = NO_SERVICE
            elif made["installed"] or SERVICE in brought or found.service in ("inactive", "failed"):
                board.must("starting the service", "edgecnn service install >&2")
            made["status"] = update_board(board)
    except BoardError as error:
        made["problem"] = str(error)
    if board is not None:
        made |= {"sent_bytes": board.sent, "received_bytes": board.received}
    return DeployOutcome(host=host, seconds=round(time.monotonic() - started, 3), **made)


def bring(board: Board, found: Look, plan: Plan, configuration: Mapping[str, bytes]) -> Collection[str]:
    """Write the files that a board lacks, remove old ones from its copy of the repository, and return the paths of the new ones."""
    files: dict[str, bytes | Path] = {**configuration}
    kept = plan.offer.files(found.board)
    for path, source in kept.items():
        if found.hashes.get(path) != source.sha256:
            files[path] = source.path
    old = [path for path in found.hashes if path.startswith(f"{REPOSITORY}/") and path not in kept]
    script = f"rm -f {shlex.join(old)}\n" if old else ""
    if files:
        script = PUT_FILES.format(repository=REPOSITORY) + script
    if script:
        board.must("writing files", script, tar({path.lstrip("/"): content for path, content in files.items()}))
    return files.keys()


def update_board(board: Board) -> dict[str, Any]:
    """Run `edgecnn update` on a board from its copy, and return its status afterwards. BoardError with the board's reason if it fails."""
    done = board.run(RUN_UPDATE.format(repository=REPOSITORY))
    if done.code:
        raise BoardError(f"edgecnn update failed: {last_line(done.err).rstrip('.') or done.how}")
    return read_status(done.out)
