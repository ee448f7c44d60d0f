"""Boards over ssh, several at a time: OpenSSH's own program, with the user's configuration, keys, agent, known hosts and jump hosts."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, TypeVar

from edgecnn.labels import printable
from edgecnn.runtime.child import Finished
from edgecnn.tables import shown

CONNECT_S = 20
OPEN_S = 90
"""Seconds for a connection to open, including jump hosts, each of which has CONNECT_S."""

OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": str(CONNECT_S),
    "ControlPersist": "no",
    "LogLevel": "ERROR",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveInterval": "15",
}
"""Changes to the user's configuration: nobody answers prompts, and many boards are reached at the same time."""

MAX_ANSWER_BYTES = 1 << 20
"""Maximum bytes to keep of a board's answer: somebody else may have taken it over."""

PART_BYTES = 1 << 16
CLOSE_S = 5.0
"""Seconds for a process to end, or for a pipe to close, after everything has arrived."""

AS_ROOT = 'if [ "$(id -u)" = 0 ]; then exec sh -c "$1"; else exec sudo -n sh -c "$1"; fi'

UNREACHABLE = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED[\s\S]*?Offending \S+ key in (.+):(\d+)",
        "its host key is not the one in {0}, line {1}. If the board was reinstalled, remove that line; if not, another machine "
        "is answering under its name",
    ),
    ("Host key verification failed", "this machine does not know its host key. Connect once by hand, and compare it: ssh {host}"),
    ("Permission denied", "it accepts none of your keys. Try by hand: ssh {host}"),
    ("Could not resolve hostname", "no machine has this name"),
    ("Connection refused", "it is on the network, but no ssh server answers there"),
    (
        "timed out|No route to host|Network is unreachable|Host is down",
        "it does not answer: it is off, or not on this network",
    ),
    ("Connection (?:reset|closed) by", "it closed the connection: it is starting or stopping, or has too many connections. Try again"),
    ("Control socket|ControlPath too long", "ssh cannot make its control socket: set TMPDIR to a folder with a short name"),
)  # fmt: skip
"""Messages of ssh, as regular expressions, and their meaning for people."""

FAILED = (
    ("No space left on device", "its disk is full. Free some space there"),
    ("Read-only file system", "its disk is read-only"),
    ("sudo:.*password", "sudo needs a password there. Allow it without one (NOPASSWD), or connect as root"),
    ("sudo: not found|sudo: command not found", "it has no sudo, and its user is not root. Connect as root"),
    ("is not in the sudoers|not allowed to execute", "its user may not use sudo. Allow it, or connect as root"),
    ("Could not get lock|Unable to acquire the dpkg", "another program is installing packages there. Try again later"),
)  # fmt: skip


class BoardError(Exception):
    """A board that cannot be reached, or on which a step failed; the text is the end of a sentence about the board."""


class Sessions:
    """Connections to boards from several threads, and the folder for their sockets; leaving the context ends all of them."""

    def __init__(self) -> None:
        self.program = shutil.which("ssh")
        self._over = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._opened = 0

    def __enter__(self) -> "Sessions":
        self._folder = tempfile.TemporaryDirectory(prefix="edgecnn-")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        with self._lock:
            self._over.set()
            for process in self._running:
                with contextlib.suppress(OSError):
                    process.kill()

    def start(self, arguments: list[str], stdin: IO[bytes] | int = DEVNULL) -> subprocess.Popen[bytes]:
        """Start ssh. BoardError if it is not installed or the sessions have been stopped."""
        with self._lock:
            if self.program is None:
                raise BoardError("this machine has no ssh: apt-get install openssh-client")
            if self._over.is_set():
                raise BoardError("stopped")
            try:
                process = subprocess.Popen([self.program, *arguments], stdin=stdin, stdout=PIPE, stderr=PIPE)
            except OSError as error:  # such as a name that is longer than Linux lets an argument be
                raise BoardError(f"ssh cannot be started for it: {error.strerror}") from None
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        with self._lock:
            self._running.discard(process)

    @contextlib.contextmanager
    def connect(self, host: str) -> Iterator["Board"]:
        """Open a connection that all commands of the block share. BoardError if it does not open."""
        with self._lock:
            self._opened += 1
            control = Path(self._folder.name) / str(self._opened)
        options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        master = self.start([*options, "-oControlMaster=yes", "-S", str(control), "-N", "--", host])
        try:
            deadline = time.monotonic() + OPEN_S
            while not control.exists():
                if master.poll() is not None:
                    raise BoardError(unreachable(host, master.communicate()[1].decode(errors="replace")))
                if time.monotonic() > deadline:
                    raise BoardError(f"no connection within {OPEN_S} s")
                time.sleep(0.02)
            yield Board(host, self, [*options, "-oControlMaster=no", "-S", str(control)])
        finally:
            self.ended(master)


class Board:
    """A board with an open connection. `sent` and `received` count the bytes that its commands carried."""

    def __init__(self, host: str, sessions: Sessions, options: list[str]) -> None:
        self.host = host
        self.sent = self.received = 0
        self._sessions, self._options = sessions, options

    def run(self, script: str, stdin: bytes | Path = b"", *, limit_s: float = 900) -> Finished:
        """Run a shell script on the board, as root.

        Args:
            script: what sh reads.
            stdin: bytes, or a file, that the script may read.
            limit_s: most seconds that it may take.

        Raises:
            BoardError: if the connection breaks, or the script fails for a known reason, such as a full disk.
        """
        process = self._start(script, stdin)
        drains = Drain(process, process.stdout), Drain(process, process.stderr)
        try:
            process.wait(limit_s)
            for drain in drains:
                drain.join(CLOSE_S)
        except subprocess.TimeoutExpired:
            raise BoardError(f"a step took longer than {limit_s:g} s") from None
        finally:
            self._sessions.ended(process)
        out, err = (bytes(drain.kept) for drain in drains)
        if max(len(out), len(err)) >= MAX_ANSWER_BYTES:
            raise BoardError(f"it answers with more than {MAX_ANSWER_BYTES:,} bytes")
        self.received += len(out) + len(err)
        return Finished(process.returncode, out.decode(errors="replace"), self._judged(process, err))

    @contextlib.contextmanager
    def reading(self, script: str, stdin: bytes = b"") -> Iterator[IO[bytes]]:
        """Run a script as `run` does, and yield its standard output, of any length. Errors are raised at the end of the block."""
        process = self._start(script, stdin)
        assert process.stdout
        errors = Drain(process, process.stderr)
        try:
            yield process.stdout
            process.stdout.close()
            process.wait()
        finally:
            self._sessions.ended(process)
        errors.join(CLOSE_S)
        said = self._judged(process, bytes(errors.kept))
        if process.returncode:
            raise BoardError(last_line(said) or f"it ended with exit code {process.returncode}")

    def _start(self, script: str, stdin: bytes | Path) -> subprocess.Popen[bytes]:
        command = shlex.join(["sh", "-c", AS_ROOT, "sh", script])
        with stdin.open("rb") if isinstance(stdin, Path) else tempfile.TemporaryFile() as source:
            if isinstance(stdin, bytes):
                source.write(stdin)
                source.seek(0)
            self.sent += len(command) + os.fstat(source.fileno()).st_size
            return self._sessions.start([*self._options, "--", self.host, command], source)

    @staticmethod
    def _judged(process: subprocess.Popen[bytes], err: bytes) -> str:
        """Return the standard error of a process that has ended; BoardError if it failed for a known reason."""
        said = err.decode(errors="replace")
        if process.returncode in (255, -9):
            raise BoardError("the connection broke")
        if process.returncode and (meaning := first_meaning(FAILED, said)):
            raise BoardError(meaning)
        return said

    def must(self, what: str, script: str, stdin: bytes | Path = b"") -> str:
        """Run a script as root and return what it printed; BoardError with `what` and its last line if it fails."""
        done = self.run(script, stdin)
        if done.code:
            raise BoardError(f"{what} failed: {last_line(done.err or done.out) or done.how}")
        return done.out


class Drain(threading.Thread):
    """Reads a pipe of a process to its end; MAX_ANSWER_BYTES end the process.

    Nobody waits for this thread for long: ssh's master has the pipe too, and keeps it open if the process is killed.
    """

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes] | None) -> None:
        super().__init__(daemon=True)
        assert pipe
        self.kept = bytearray()
        self._process, self._pipe = process, pipe
        self.start()

    def run(self) -> None:
        while data := os.read(self._pipe.fileno(), PART_BYTES):
            self.kept += data
            if len(self.kept) >= MAX_ANSWER_BYTES:
                self._process.kill()
                return


def unreachable(host: str, said: str) -> str:
    return first_meaning(UNREACHABLE, said, host=host) or f"ssh says: {last_line(said) or 'nothing'}"


def first_meaning(meanings: tuple[tuple[str, str], ...], said: str, **words: str) -> str | None:
    for pattern, meaning in meanings:
        if match := re.search(pattern, said):
            return printable(meaning.format(*match.groups(), **words))
    return None


def last_line(text: str) -> str:
    return printable(next(iter(text.strip().splitlines()[::-1]), ""))[:300]


T = TypeVar("T")

NAME = r"(?:\w[\w.+-]*@)?(?:\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?)"
HOST = re.compile(rf"{NAME}|ssh://{NAME}(?::\d+)?", re.ASCII)
"""A host for ssh. ssh may pass it to a shell (ProxyCommand, Match exec), so no shell syntax is let through."""


def check_host(text: str) -> str:
    """Return a valid host for ssh, such as pi@door.local or ssh://pi@10.0.0.5:2222; ValueError if it is not one."""
    if not HOST.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a host: expected NAME, USER@NAME or ssh://USER@NAME:PORT")
    return text


def read_hosts(path: Path) -> list[str]:
    """Return the hosts in a file, one per line, in order; # starts a comment. ValueError names a line that is not a host."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    hosts = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                hosts.append(check_host(text))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return hosts


def on_each(hosts: Iterable[str], jobs: int, work: Callable[[str], T], stop: Callable[[], object]) -> Iterator[T]:
    """Do some work for each host, once and at most `jobs` at a time; yield results as they arrive. `stop` is called if this ends early."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work, host) for host in dict.fromkeys(hosts)]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
