"""Run the fetching half in a separate process, as a user without rights if possible, and kill it if it takes too long."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from edgecnn.device.secrets import environment
from edgecnn.errors import UpdateError
from edgecnn.files import output_errors
from edgecnn.labels import printable

USER = "edgecnn-update"
FETCH_S = 3600.0  # a fetch that takes longer is killed; the part of a bundle that it has fetched stays
MAX_ANSWER_BYTES = 1 << 16


def prepare(spool: Path) -> tuple[dict[str, Any], str]:
    """Make the spool folder; return the `rights` for `fetch_apart`, perhaps {}, and the name of the fetching user. Raises OutputError."""
    rights: dict[str, Any] = {}
    who = f"user {os.geteuid()}"
    with output_errors(spool):
        if os.geteuid() == 0:
            who = "root"
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(USER)
                rights, who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}, USER
                if spool.exists() and spool.stat().st_uid != entry.pw_uid:  # made before this user existed
                    shutil.rmtree(spool)
        spool.mkdir(mode=0o755, parents=True, exist_ok=True)
        if rights:
            os.chown(spool, rights["user"], rights["group"])
    return rights, who


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
