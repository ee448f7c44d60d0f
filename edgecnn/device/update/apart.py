"""Run the fetching half in a separate process, as a user without rights if possible, and kill it if it takes too long."""

import contextlib
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn.device.secrets import environment
from edgecnn.device.update.board import Board
from edgecnn.errors import UpdateError
from edgecnn.files import output_errors
from edgecnn.labels import printable

USER = "edgecnn-update"
FETCH_S = 3600.0  # a fetch that takes longer is killed; the part of a bundle that it has fetched stays
MAX_ANSWER_BYTES = 1 << 16


class Place(NamedTuple):
    """Where one check fetches to, the `rights` of the process that fetches, perhaps {}, and the name of its user."""

    spool: Path
    rights: dict[str, Any]
    user: str


def prepare(board: Board) -> Place:
    """Make the folder to fetch to. UpdateError for a link or somebody else's folder; OutputError if it cannot be made.

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
    return Place(spool, {"user": owner, "group": entry.pw_gid, "extra_groups": []} if entry else {}, user)


def fetch_apart(request: str, rights: dict[str, Any]) -> None:
    """Run `fetch` on a JSON request in another process, which ends with this one. UpdateError, with the reason, if it fails or is late.

    The other process reads its standard input until it closes, which happens however this process ends.
    """
    command = [sys.executable, "-P", "-m", "edgecnn.device.update.fetch"]
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
