"""The half of an update that talks to the server. It may run as a user without rights, since root's half verifies its output again.

`run` starts it in a separate process, with the request on standard input and the answer on standard output, both as a line of JSON.
"""

import json
import os
import shutil
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecnn.device.update.channel import target_file
from edgecnn.device.update.client import Client
from edgecnn.device.update.decide import State, decide
from edgecnn.device.update.fetchers import HttpFetcher
from edgecnn.device.update.trust import Held
from edgecnn.errors import EdgeCNNError, UpdateError
from edgecnn.files import folder_lock, output_errors, write_atomic
from edgecnn.tables import Struct, build

REPOSITORY = "repository"


class Request(Struct):
    """What to fetch and where to put it, and what root trusts. The fetching half itself keeps only parts of files."""

    spool: str
    source: str
    channel: str
    state: State
    root: str
    timestamp: str
    snapshot: str
    targets: str
    age_s: int

    @property
    def held(self) -> Held:
        return Held(*(getattr(self, role).encode() for role in Held._fields))


def fetch(request: Request) -> None:
    """Write a repository of new metadata, and the board's next bundle, to the spool folder. Raises UpdateError or OutputError."""
    spool = Path(request.spool)
    repository, parts, scratch = spool / REPOSITORY, spool / "parts", spool / "scratch"
    metadata, targets = repository / "metadata", repository / "targets"
    with output_errors(spool), folder_lock(spool, UpdateError("an earlier fetch is still running.")):
        for folder in (metadata, scratch):
            if folder.exists():
                shutil.rmtree(folder)
        for folder in (metadata, targets, parts, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        fetcher = HttpFetcher(request.source, scratch, metadata, parts)
        client = Client(request.held, fetcher, request.source.rstrip("/"), scratch)
        client.refresh(datetime.now(UTC), request.age_s)
        for role, data in zip(Held._fields[1:], client.held[1:], strict=True):
            version = "" if role == "timestamp" else f"{json.loads(data)['signed']['version']}."
            write_atomic(metadata / f"{version}{role}.json", data)
        decision = decide(client.entries(request.channel), request.state)
        entry = decision.entry if decision.install else None
        path = targets / target_file(entry.path, entry.sha256) if entry else None
        for old in (*targets.glob("*/*"), *parts.iterdir()):
            if path is None or old.name != path.name:
                old.unlink()
        if entry and path:
            client.download(entry, path)
        shutil.rmtree(scratch)


def end_with_parent() -> None:
    """End this process, and so its lock, when standard input closes: then the process that waits for the answer has ended, however."""
    os.read(0, 1)  # not with sys.stdin, which this thread would lock
    os._exit(1)


def main() -> None:
    answer: dict[str, Any] = {"reason": ""}
    try:
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_parent, daemon=True).start()
        fetch(build(Request, request, UpdateError, "request"))
    except EdgeCNNError as error:
        answer["reason"] = str(error)
    print(f"\n{json.dumps(answer)}")  # on the last line, whatever a library has printed before


if __name__ == "__main__":
    main()
