"""Roll releases out to many boards, each a folder with real edgecnn processes, from one static web server: waves, faults, bytes.

A board is updated by `edgecnn update`; then its service classifies until the release is good or bad. On faulty boards the engine gives
wrong answers from the second release on. `edgecnn release status --hosts` queries all boards through a stand-in for ssh that runs its
command locally.

    python tools/bench/fleet.py --boards 200 --faulty 3
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from harness import about, environment, finish, parser

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.runtime.default import shipped_bundle

CHANNEL = "door"
WAVES = (5, 25, 100)
CHECKS_A_DAY = 24
HEADINGS = ("check", "boards that have it afterwards", "requests per board", "bytes per board", "CPU s per board")
OPTIONS = 'source = "synthetic:32x32?frames=6"\ngood_after = 3\n'

FAULT = """\
import ai_edge_litert.interpreter as litert

class Faulty(litert.Interpreter):
    def get_tensor(self, *arguments):
        return super().get_tensor(*arguments) ^ 64

litert.Interpreter = Faulty
"""
"""A sitecustomize.py that flips one bit of every answer on a faulty board."""

SSH = """\
#!/bin/sh
# stands for ssh: a connection is a file, and a command runs here, as the board that is named
control= board= command=
while [ $# -gt 0 ]; do
    case $1 in
        -N) connect=yes ;;
        -S) control=$2; shift ;;
        --) board=$2 command=$3; break ;;
    esac
    shift
done
if [ "$connect" ]; then
    touch "$control"
    exec sleep 600
fi
BOARD=BOARDS/$board exec sh -c "$command"
"""
EDGECNN = """\
#!/bin/sh
exec PYTHON -m edgecnn "$@" --prefix "$BOARD"
"""


SUDO = """\
#!/bin/sh
[ "$1" = -n ] && shift
exec "$@"
"""
"""On these boards everyone is root."""


class Server(http.server.ThreadingHTTPServer):
    """A folder served over HTTP. `requests`, and `sent` and `received` bytes, count the traffic including headers."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path) -> None:
        self.requests = self.sent = self.received = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def counted(self) -> dict[str, int]:
        """Return the counts since the last call."""
        with self.lock:
            counts = {"requests": self.requests, "sent": self.sent, "received": self.received}
            self.requests = self.sent = self.received = 0
        return counts


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts the traffic."""

    protocol_version = "HTTP/1.1"
    server: Server

    def handle_one_request(self) -> None:
        before = self.wfile
        written = 0
        write = before.write

        def counting(data: Any) -> int:
            nonlocal written
            written += len(data)
            return write(data)

        before.write = counting  # type: ignore[method-assign]
        try:
            super().handle_one_request()
        finally:
            before.write = write  # type: ignore[method-assign]
            if written:
                received = len(self.raw_requestline) + len(bytes(self.headers))  # type: ignore[attr-defined]
                with self.server.lock:
                    self.server.requests += 1
                    self.server.sent += written
                    self.server.received += received

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class Fleet:
    """Boards below a folder, by name, and their commands, which run in parallel on all processors."""

    def __init__(self, folder: Path, count: int, faulty: int) -> None:
        self.folder = folder
        self.names = [f"board{number:03}" for number in range(count)]
        self.faulty = set(self.names[:: max(1, count // max(1, faulty))][:faulty])
        self.environment = {**environment(), "EDGECNN_RELEASE_PASSPHRASE_FILE": str(folder / "passphrase")}
        (folder / "passphrase").write_text("a long passphrase\n")
        (folder / "passphrase").chmod(0o600)
        (folder / "fault").mkdir()
        (folder / "fault" / "sitecustomize.py").write_text(FAULT)

    def edgecnn(self, *arguments: str | Path, fault: bool = False, check: bool = True) -> str:
        """Run edgecnn in a separate process and return its standard output."""
        env = dict(self.environment)
        if fault:
            env["PYTHONPATH"] = f"{self.folder / 'fault'}:{env['PYTHONPATH']}"
        line = [sys.executable, "-m", "edgecnn", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=self.folder)
        if check and done.returncode:
            sys.exit(f"edgecnn {shlex.join(map(str, arguments))}: code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def release(self, *arguments: str | Path) -> None:
        self.edgecnn("release", *arguments)

    def make(self, url: str) -> None:
        """Write each board's initial files."""
        for name in self.names:
            etc = self.folder / name / "etc/edgecnn"
            etc.mkdir(parents=True)
            (self.folder / name / "var/lib").mkdir(parents=True)
            (self.folder / name / "etc/machine-id").write_text(f"{hashlib.md5(name.encode()).hexdigest()}\n")
            (etc / "update.toml").write_text(f'from = "{url}"\nchannel = "{CHANNEL}"\n')
            (etc / "root.json").write_bytes((self.folder / "releases/metadata/1.root.json").read_bytes())
            (etc / "service.toml").write_text(OPTIONS)

    def on_all(self, work: Callable[[str], Any]) -> list[Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(work, self.names))

    def update(self, name: str) -> float:
        started = time.perf_counter()
        self.edgecnn("update", "--prefix", self.folder / name)
        return time.perf_counter() - started

    def serve(self, name: str, fault: bool) -> None:
        """Run a board's service until its camera ends, if a release still has to prove itself."""
        if self.current(name)["state"] == "pending":
            place = self.folder / name
            options, slots = place / "etc/edgecnn/service.toml", place / "var/lib/edgecnn"
            self.edgecnn("service", "run", "--config", options, "--slots", slots, fault=fault and name in self.faulty)

    def current(self, name: str) -> dict[str, Any]:
        """Return the release in use, from the slots' record."""
        record = json.loads((self.folder / name / "var/lib/edgecnn/current").read_text())
        return {"sha256": record["chain"][0], **record["releases"][record["chain"][0]]}

    def ids(self) -> dict[str, str]:
        return {
            name: json.loads((self.folder / name / "var/lib/edgecnn-trust/board.json").read_text())["id"]
            for name in self.names
        }


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "fleet")
    made.add_argument("--boards", type=int, default=200, help="how many (default: 200)")
    made.add_argument("--faulty", type=int, default=3, help="how many with an engine that answers wrongly (default: 3)")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = measure(Fleet(Path(name), arguments.boards, arguments.faulty))
    finish(arguments.out, report, HEADINGS, rows(report))
    print(sentence(report))


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the phases of a report as rows under HEADINGS."""
    return [
        (
            item["phase"],
            f"{item['boards']} of {report['boards']}",
            f"{item['requests_per_board']:.1f}",
            f"{item['bytes_per_board']:,.0f}",
            f"{item['update_cpu_seconds']:.1f}",
        )
        for item in report["phases"]
    ]


def sentence(report: Mapping[str, Any]) -> str:
    """Return the report's other figures in words."""
    in_use = ", ".join(f"serial {text} on {count}" for text, count in sorted(report["in_use"].items(), reverse=True))
    quiet = f"{report['quiet_day_bytes_per_board']:,.0f} bytes per board"
    return (
        f"In use at the end: {in_use} boards. A quiet day of {CHECKS_A_DAY} checks: {quiet}. `release status --hosts` queried "
        f"{report['boards']} boards in {report['status_seconds']:.0f} s. {report['machine']}, shared with other programs."
    )


def measure(fleet: Fleet) -> dict[str, Any]:
    """Go through all phases and return the figures. Exits if a board is in the wrong state."""
    phases = []
    fleet.release("init", "releases")
    with serving(fleet.folder / "releases") as server:
        fleet.make(server.url)
        first, second = (bundle(fleet, serial) for serial in (1, 2))
        fleet.release("add", "photos-1", "--to", CHANNEL, "--share", "100", "--accept-gate", "a bench")
        phases.append(phase(fleet, server, "first release", first, set(fleet.names), fault=False))
        ids = fleet.ids()
        fleet.release("add", "photos-2", "--to", CHANNEL, "--share", "0", "--accept-gate", "a bench")
        for share in WAVES:
            fleet.release("share", CHANNEL, str(share))
            wave = {
                name
                for name, board in ids.items()
                if int(hashlib.sha256(f"{board}:{second}".encode()).hexdigest(), 16) % 100 < share
            }
            phases.append(phase(fleet, server, f"share {share} %", second, wave - fleet.faulty, fault=True))
        quiet = phase(fleet, server, "quiet check", second, set(fleet.names) - fleet.faulty, fault=True)
        phases.append(quiet)
        status, seconds = ask(fleet)
    in_use = Counter(f"{board['status']['in_use']['serial']} {board['status']['in_use']['state']}" for board in status)
    bad = [board["host"] for board in status if board["status"]["bad"].keys() == {second}]
    if set(bad) != fleet.faulty or in_use != {"2 good": len(fleet.names) - len(bad), "1 good": len(bad)}:
        sys.exit(f"in use: {dict(in_use)}; bad on {bad}, expected {sorted(fleet.faulty)}")
    return {
        **about("fleet", boards=len(fleet.names), faulty=len(fleet.faulty)),
        "phases": phases,
        "in_use": dict(in_use),
        "quiet_day_bytes_per_board": CHECKS_A_DAY * quiet["bytes_per_board"],
        "status_seconds": seconds,
    }  # fmt: skip


def phase(fleet: Fleet, server: Server, title: str, release: str, expected: set[str], fault: bool) -> dict[str, Any]:
    """Let all boards look for a release and prove it, and return the cost. Exits if the wrong boards have it."""
    print(f"{title}: {len(fleet.names)} boards", file=sys.stderr, flush=True)
    server.counted()
    started, cpu = time.perf_counter(), children_seconds()
    updates = fleet.on_all(fleet.update)
    seconds, cpu = time.perf_counter() - started, children_seconds() - cpu
    counts = server.counted()
    fleet.on_all(partial(fleet.serve, fault=fault))
    have = {name for name in fleet.names if fleet.current(name)["sha256"] == release}
    if have != expected:
        sys.exit(f"{title}: {len(have)} boards have it, expected {len(expected)}: off by {sorted(have ^ expected)}")
    return {
        "phase": title,
        "boards": len(have),
        "seconds": seconds,
        "update_seconds_median": statistics.median(updates),
        "update_cpu_seconds": cpu / len(fleet.names),
        "requests_per_board": counts["requests"] / len(fleet.names),
        "bytes_per_board": (counts["sent"] + counts["received"]) / len(fleet.names),
    }


def children_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bundle(fleet: Fleet, serial: int) -> str:
    """Write the bundle that ships, with another name and a serial number. Returns its SHA-256."""
    shipped, path = read_bundle(shipped_bundle()), fleet.folder / f"photos-{serial}"
    write_bundle(path, dataclasses.replace(shipped.manifest, name="photos", serial=serial), shipped.files)
    return read_bundle(path).sha256


def ask(fleet: Fleet) -> tuple[list[dict[str, Any]], float]:
    """Return the output of `edgecnn release status --hosts` for all boards, and the seconds it took."""
    programs = fleet.folder / "bin"
    programs.mkdir()
    for name, text in (
        ("ssh", SSH.replace("BOARDS", shlex.quote(str(fleet.folder)))),
        ("edgecnn", EDGECNN.replace("PYTHON", shlex.quote(sys.executable))),
        ("sudo", SUDO),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (fleet.folder / "boards.txt").write_text("\n".join(fleet.names))
    fleet.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    started = time.perf_counter()
    answer = json.loads(
        fleet.edgecnn("release", "status", "--hosts", "boards.txt", "--json", "--jobs", str(2 * (os.cpu_count() or 1)))
    )
    return answer, time.perf_counter() - started


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
