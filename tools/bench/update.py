"""The cost of updates for a board: size, time, memory and bytes on the wire, for a quiet check, changed metadata and a new bundle.

A relay in front of a static server on this machine counts the traffic in each direction, including headers. Times are medians.

    python tools/bench/update.py --n 11
"""

import contextlib
import dataclasses
import os
import socket
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

from harness import Ran, about, edgecnn, edgecnn_command, finish, parser, ran

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.runtime.default import shipped_bundle

IMPORTS = {
    "what the service imports of it": "import edgecnn.device.update",
    "the slots, which an update needs anyway": "import edgecnn.device.slots.store",
    "the half of root": "import edgecnn.device.update.run",
    "the half that fetches": "import edgecnn.device.update.client",
}


class Static(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass


class Wire:
    """A server for a folder, behind a relay that counts the bytes in both directions."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Static, directory=folder))
        self.server.daemon_threads = True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.counts = {"up": 0, "down": 0}
        for target in (self.server.serve_forever, self.relay):
            threading.Thread(target=target, daemon=True).start()

    def relay(self) -> None:
        while True:
            board, _ = self.listener.accept()
            behind = socket.create_connection(("127.0.0.1", self.server.server_port))
            for way in (("up", board, behind), ("down", behind, board)):
                threading.Thread(target=self.pass_on, args=way, daemon=True).start()

    def pass_on(self, way: str, source: socket.socket, into: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.counts[way] += len(data)
                into.sendall(data)
            into.shutdown(socket.SHUT_WR)

    @contextlib.contextmanager
    def counted(self, into: dict[str, int]) -> Iterator[None]:
        self.counts.update(up=0, down=0)
        yield
        into.update(self.counts)


def numbered(folder: Path, serial: int) -> Path:
    """Write the shipped bundle with a serial number."""
    bundle = read_bundle(shipped_bundle())
    path = folder / f"model{serial}.edgecnn"
    write_bundle(path, dataclasses.replace(bundle.manifest, serial=serial), dict(bundle.files))
    return path


def size_of(name: str) -> int:
    return sum(file.size or 0 for file in metadata.files(name) or () if file.suffix != ".pyc")


def summary(runs: list[Ran]) -> dict[str, float]:
    return {key: statistics.median(getattr(run, key) for run in runs) for key in Ran._fields}


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "update")
    made.add_argument("--n", type=int, default=11, help="runs that count (default: 11)")
    arguments = made.parse_args()
    sizes = {name: size_of(name) for name in ("tuf", "securesystemslib", "urllib3")}
    times = {
        name: summary([ran([sys.executable, "-c", code]) for _ in range(arguments.n)]) for name, code in IMPORTS.items()
    }
    wire: dict[str, dict[str, int]] = {"quiet": {}, "changed metadata": {}, "new bundle": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "passphrase").write_text("only for this measurement\n")
        (folder / "passphrase").chmod(0o600)
        os.environ["EDGECNN_RELEASE_PASSPHRASE_FILE"] = str(folder / "passphrase")
        edgecnn("release", "init", "releases", cwd=folder)
        (folder / "board/etc/edgecnn").mkdir(parents=True)
        (folder / "board/etc/edgecnn/root.json").write_bytes((folder / "releases/metadata/1.root.json").read_bytes())
        server = Wire(folder / "releases")
        update = [*edgecnn_command(), "update", "--from", server.address, "--channel", "door"]
        update += ["--prefix", str(folder / "board")]
        edgecnn("release", "add", numbered(folder, 1), "--to", "door", "--share", "100", cwd=folder)
        ran(update)
        with server.counted(wire["quiet"]):
            ran(update)
        times["a quiet check, both halves"] = summary([ran(update) for _ in range(arguments.n)])
        edgecnn(
            "release", "add", numbered(folder, 2), "--to", "door", "--share", "0", "--accept", "a bench", cwd=folder
        )
        with server.counted(wire["changed metadata"]):
            ran(update)
        edgecnn("release", "share", "door", "100", cwd=folder)
        with server.counted(wire["new bundle"]):
            times["an update with a bundle"] = summary([ran(update)])
        bundle = (folder / "model2.edgecnn").stat().st_size
    report = {
        **about("update", n=arguments.n),
        "size_bytes": sizes,
        "times": times,
        "wire_bytes": wire,
        "bundle_bytes": bundle,
    }
    rows = [(name, f"{size:,} bytes") for name, size in sizes.items()]
    rows += [
        (name, f"{row['cpu_seconds']:.2f} s of a processor, {row['peak_mib']:.0f} MiB") for name, row in times.items()
    ]
    rows += [(name, f"{row['up']:,} bytes up, {row['down']:,} down") for name, row in wire.items()]
    finish(arguments.out, report, ("", ""), rows)


if __name__ == "__main__":
    main()
