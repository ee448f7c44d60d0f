"""A repository of releases signed by python-tuf, in a folder that attacks can change, and boards that update from it."""

import contextlib
import copy
import functools
import http.server
import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from edgecnn.device.update import run
from edgecnn.device.update.board import Board, Options, Ticks
from edgecnn.errors import UpdateError
from edgecnn.files import sha256_file
from edgecnn.tables import build

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
CHANNEL = "door"


class Repository:
    """A folder like those that `edgecnn release` writes. Each change is published immediately, dated `now`."""

    def __init__(self, folder, now=NOW):
        from securesystemslib.signer import CryptoSigner
        from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

        self.folder, self.now = folder, now
        self.keys = {"root": [CryptoSigner.generate_ed25519() for _ in range(3)]}
        self.keys |= {name: [CryptoSigner.generate_ed25519()] for name in ("targets", "online")}
        self.signed = {kind.type: kind() for kind in (Root, Targets, Snapshot, Timestamp)}
        for signed in self.signed.values():
            signed.version = 0
        self.lasts = {"root": 500, "targets": 400, "snapshot": 30, "timestamp": 30}
        self.number, self.root_threshold = 0, 2
        for name in ("metadata", "targets"):
            (folder / name).mkdir(parents=True)
        self.publish("root", "targets", "snapshot", "timestamp")

    def signers(self, role):
        return self.keys["online" if role in ("snapshot", "timestamp") else role]

    def publish(self, *roles, replaced=()):
        """Re-sign roles with the next version; a root also with the signers that it replaces."""
        from tuf.api.metadata import MetaFile

        for role in roles:
            signed = self.signed[role]
            signed.version += 1
            signed.expires = self.now + timedelta(days=self.lasts[role])
            if role == "root":
                for name in self.signed:
                    for key in list(signed.roles[name].keyids):
                        signed.revoke_key(key, name)
                    for signer in self.signers(name):
                        signed.add_key(signer.public_key, name)
                signed.roles["root"].threshold = self.root_threshold
            elif role == "snapshot":
                signed.meta["targets.json"] = MetaFile(self.signed["targets"].version)
            elif role == "timestamp":
                signed.snapshot_meta = MetaFile(self.signed["snapshot"].version)
                signed.unrecognized_fields["edgecnn_date"] = f"{self.now:%FT%TZ}"
            self.write(role, signed, [*self.signers(role), *replaced])
        return self

    def write(self, role, signed, signers):
        from tuf.api.metadata import Metadata

        metadata = Metadata(copy.deepcopy(signed))
        for signer in signers:
            metadata.sign(signer, append=True)
        version = "" if role == "timestamp" else f"{signed.version}."
        metadata.to_file(str(self.folder / "metadata" / f"{version}{role}.json"))

    def add(self, bundle, serial, share=100, channel=CHANNEL, **terms):
        """Release a bundle; return its SHA-256."""
        from tuf.api.metadata import TargetFile

        self.number += 1
        digest = sha256_file(bundle)
        path = f"{channel}/{bundle.stem}-{serial}.edgecnn"
        custom = {"edgecnn": {"number": self.number, "serial": serial, "share": share, **terms}}
        target = TargetFile(bundle.stat().st_size, {"sha256": digest}, path, {"custom": custom})
        self.signed["targets"].targets[path] = target
        stored = self.folder / "targets" / channel / f"{digest}.{bundle.stem}-{serial}.edgecnn"
        stored.parent.mkdir(exist_ok=True)
        shutil.copy(bundle, stored)
        self.publish("targets", "snapshot", "timestamp")
        return digest

    def stored(self, digest):
        (path,) = self.folder.glob(f"targets/*/{digest}.*")
        return path

    def copied(self, folder):
        """Return a copy of the current folder."""
        return Path(shutil.copytree(self.folder, folder))


class Clocks:
    """A board's clock and the seconds since its boot."""

    def __init__(self):
        self.now, self.boot, self.up = NOW, "boot 1", 100

    def __call__(self):
        return self.now

    def ticks(self):
        return Ticks(self.boot, self.up)


class Tested(NamedTuple):
    """A board in its own folder, with its clocks."""

    board: Board
    clocks: Clocks

    @property
    def store(self):
        return self.board.slots()

    @property
    def current(self):
        return self.store.read().current

    @property
    def spool(self):
        return run.prepare_spool(self.board)[0]

    def update(self, source, channel=CHANNEL):
        from edgecnn.device.update.run import update

        return update(self.board, Options(source=str(source), channel=channel))


@pytest.fixture
def repository(tmp_path):
    pytest.importorskip("cryptography", reason="releases are signed with the release extra")
    pytest.importorskip("tuf", reason="updates need the update extra")
    return Repository(tmp_path / "releases")


@pytest.fixture
def make_board(tmp_path, repository):
    """Make a board, `make_board("name")`, that trusts the repository's first root."""

    def make(name="board", **settings):
        prefix = tmp_path / name
        (prefix / "etc/edgecnn").mkdir(parents=True)
        (prefix / "etc/machine-id").write_text(f"machine of {name}\n")
        shutil.copy(repository.folder / "metadata/1.root.json", prefix / "etc/edgecnn/root.json")
        clocks = Clocks()
        return Tested(Board(prefix=prefix, clock=clocks, ticks=clocks.ticks, **settings), clocks)

    return make


@pytest.fixture
def board(make_board):
    return make_board()


@pytest.fixture
def bundles(make_bundle):
    """Bundles with the serial numbers 1 to 3."""
    return {serial: make_bundle(f"photos{serial}", serial) for serial in (1, 2, 3)}


@pytest.fixture
def in_this_process(monkeypatch):
    """Fetch in this process, which is quicker and allows a rule to be removed."""
    from edgecnn.device.update.client import Request, fetch_release

    def fetch_here(request, rights):
        fetch_release(build(Request, json.loads(request), UpdateError))

    monkeypatch.setattr(run, "fetch_in_sandbox", fetch_here)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A static server that supports Range, counts requests, and can end a connection early."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        path = Path(self.translate_path(self.path))
        server.requests.append((self.path, self.headers.get("Range")))
        if server.before:
            server.before(self)
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, status = path.read_bytes(), 200
        start = self.headers.get("Range") if server.ranges else None
        self.send_response(206 if start else status)
        if start:
            first = int(start.removeprefix("bytes=").removesuffix("-"))
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            data = data[first:]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        sent = data if server.left is None else data[: server.left]
        server.sent += len(sent)
        self.wfile.write(sent)
        if server.left is not None:
            server.left -= len(sent)
            if len(sent) < len(data) or not server.left:
                self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder: `serve(folder)` returns the server, with `address`, `requests`, and `left`, the bytes still to send."""
    from edgecnn.device.update import client

    monkeypatch.setattr(client, "BACKOFF_S", 0.0)
    with contextlib.ExitStack() as stack:

        def start(folder):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
            server.daemon_threads = True
            server.address = f"http://127.0.0.1:{server.server_port}"
            server.requests, server.left, server.sent, server.ranges, server.before = [], None, 0, True, None
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start
