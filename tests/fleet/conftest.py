"""Boards with Debian's ssh servers, each in its own namespaces, with its own root, disk, processes and host key."""

import contextlib
import functools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgecnn.fleet.ssh import Board, Sessions

HERE = Path(__file__).parent

SSHD = """ListenAddress 127.0.0.1:{port}
HostKey /etc/ssh/host
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
"""
HOST = """Host {name}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile "{folder}/key"
    IdentitiesOnly yes
    UserKnownHostsFile "{folder}/known"
    ProxyCommand {proxy} %h %p
"""
USERS = {"root": "", "pi": "pi ALL=(ALL) NOPASSWD: ALL\n", "guest": "guest ALL=(ALL) ALL\n"}
"""Who can log in to a board, and what sudo allows them."""


class Boards:
    """Boards in a folder. `config` is ssh's configuration, with each board's name and host key."""

    def __init__(self, folder, config, spawn, free_port):
        self.folder, self.config, self._spawn, self._free_port = folder, config, spawn, free_port
        self._processes, self.ports = {}, {}
        self.keygen(folder / "key")

    def keygen(self, path):
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True, input=b"y\n")

    def make(self, name, user="root", size="300m"):
        """Make a board and switch it on."""
        self.ports[name] = port = self._free_port()
        folder = self.folder / name
        (folder / "etc/ssh").mkdir(parents=True)
        (folder / "etc/ssh/sshd_config").write_text(SSHD.format(port=port))
        shutil.copy(self.folder / "key.pub", folder / "etc/ssh/authorized_keys")
        (folder / "sudoers").write_text("root ALL=(ALL) ALL\n" + USERS[user])
        proxy = shlex.join(map(str, (sys.executable, HERE / "count.py", folder / "bytes")))
        host = HOST.format(name=name, port=port, user=user, folder=self.folder, proxy=proxy)
        with self.config.open("a") as config:
            config.write(host)
        self.keygen(folder / "etc/ssh/host")
        self.trust(name)
        self.on(name, size)

    def trust(self, name):
        """Make ssh trust only this host key of a board."""
        known, host = self.folder / "known", f"[127.0.0.1]:{self.ports[name]} "
        lines = known.read_text().splitlines(True) if known.exists() else []
        lines = [line for line in lines if not line.startswith(host)]
        known.write_text("".join([*lines, host + (self.folder / name / "etc/ssh/host.pub").read_text()]))

    def new_key(self, name):
        """Give a board a new host key; return a function that makes ssh trust it."""
        self.keygen(self.folder / name / "etc/ssh/host")
        return functools.partial(self.trust, name)

    def on(self, name, size="300m"):
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", HERE / "board.sh"]
        with (self.folder / name / "log").open("ab") as log:
            self._processes[name] = self._spawn([*command, self.folder / name, size], stderr=log, stdout=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.ports[name])).close()
                return
            except OSError:
                time.sleep(0.05)
        pytest.fail(f"{name} did not come up: {(self.folder / name / 'log').read_text()}")

    def off(self, name):
        """Cut a board's power: its disk is in memory, and gone."""
        os.killpg(self._processes[name].pid, signal.SIGKILL)
        self._processes[name].wait()
        with contextlib.suppress(ConnectionRefusedError):  # its processes may briefly outlive the first one
            while True:
                with contextlib.suppress(ConnectionResetError):
                    socket.create_connection(("127.0.0.1", self.ports[name])).close()
                time.sleep(0.02)

    def run(self, name, command):
        """Run a command on a board and return what it printed."""
        done = subprocess.run(["ssh", name, command], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {command}: {done.stderr}"
        return done.stdout

    def counted(self, name):
        """Return the number of bytes sent to and from a board since the last call."""
        path = self.folder / name / "bytes"
        total = sum(map(int, path.read_text().split())) if path.exists() else 0
        path.unlink(missing_ok=True)
        return total


@pytest.fixture
def boards(tmp_path, spawn, ssh_config, free_port):
    """Boards that ssh knows but that are yet to be made."""
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("this user cannot make namespaces for boards: run it as root")
    (tmp_path / "boards").mkdir()
    return Boards(tmp_path / "boards", ssh_config, spawn, free_port)


class Here(Sessions):
    """Runs on this machine, as its user, the commands that ssh would run on a board; `other` has texts to replace in their scripts."""

    def __init__(self, other=None):
        super().__init__()
        self.other = other or {}

    def start(self, arguments, stdin):
        self.program = "sh"
        script = shlex.split(arguments[-1])[-1]
        for old, new in self.other.items():
            script = script.replace(old, new)
        return super().start(["-c", script], stdin)


@pytest.fixture
def root_folder():
    """A folder that stands for a board's root: the paths of its programs and data contain no space."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="edgecnn-") as folder:
        yield Path(folder)


@pytest.fixture
def here():
    """Return a function that makes a board of this machine, which runs scripts with some texts replaced."""
    with contextlib.ExitStack() as opened:
        yield lambda other=None: Board("here", opened.enter_context(Here(other)), [])
