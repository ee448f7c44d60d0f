"""A running board: QEMU with the files of image.py, commands run on it over ssh, and a guaranteed shutdown."""

import contextlib
import functools
import io
import os
import shlex
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from debian_image import DebianImage
from debian_image import make_initramfs as make_debian_initramfs
from image import Image, install_project, make_initramfs

from edgecnn.errors import EmulatorError

QEMU = "qemu-system-aarch64"
BOOT_S = 90
"""Maximum seconds for a boot; 5 to 13 were seen on two shared cores."""
DEBIAN_BOOT_S = 300
"""The same for Debian's systemd; 18 to 41 were seen."""
PATIENCE_S = 60
"""Seconds that ssh and the board's shell may add to a command's own time. A busy host is slow without the board being at fault."""
CONSOLE_LINES = 15
NEEDED = {QEMU: "qemu-system-arm", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
"""Programs on the host, with their Debian packages."""

NEEDED_BY_DEBIAN = {**NEEDED, "mkfs.ext4": "e2fsprogs", "setpriv": "util-linux", "timeout": "coreutils"}
"""The same for the board with Debian's systemd."""


class Finished(NamedTuple):
    """A command's exit code and output on the board."""

    code: int
    out: str
    err: str


def lacking(needed: Mapping[str, str] = NEEDED) -> str:
    """Describe the programs that a board needs and this host lacks; "" if none."""
    missing = {name: package for name, package in needed.items() if shutil.which(name) is None}
    if not missing:
        return ""
    packages = " ".join(sorted(set(missing.values())))
    return f"the emulated board needs {', '.join(missing)}, missing on this machine: apt-get install {packages}"


class Machine:
    """A booted board; use `boot` to get one.

    `boot_s` is the seconds from the start of QEMU to the first usable command, `port` the local port of the board's ssh server.
    """

    def __init__(self, folder: Path, qemu: subprocess.Popen[bytes], port: int) -> None:
        self.folder = folder
        self.boot_s = 0.0
        self._qemu = qemu
        self.port = port
        self._master: subprocess.Popen[bytes] | None = None
        self._jobs = 0

    def run(self, command: Sequence[str], *, timeout: float = 150, stdin: bytes = b"", check: bool = False) -> Finished:
        """Run a command on the board and wait for it to finish.

        Args:
            command: a program on the board and its arguments; run in /root, as root.
            timeout: seconds after which it is killed there.
            stdin: its standard input.
            check: whether an exit code other than 0 is an error.

        Raises:
            EmulatorError: if it runs too long, the board is gone, or `check` fails; with the console's last lines.
        """
        limit = max(1, int(timeout))
        # `exit` keeps a shell that survives the signal: ssh returns no exit code for a killed command
        there = f"cd /root; timeout -s KILL {limit} {shlex.join(command)}; exit $?"
        try:
            done = subprocess.run([*self._ssh(), there], input=stdin, capture_output=True, timeout=limit + PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise self._failure(f"{shlex.join(command)} did not end within {limit} s on the board") from None
        result = Finished(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if result.code == 137:
            raise self._failure(
                f"{shlex.join(command)} was killed on the board after its limit of {limit} s. {result.err[-400:]}"
            )
        if result.code == 255:
            raise self._failure(f"ssh cannot run {shlex.join(command)} on the board: {result.err.strip()[-400:]}")
        if check and result.code:
            said = (result.err or result.out).strip()[-400:]
            raise self._failure(f"{shlex.join(command)} ended with exit code {result.code} on the board: {said}")
        return result

    @contextlib.contextmanager
    def job(self, command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """Start a command on the board; if it is still running at the end of the block, it is killed.

        Yields:
            The local process that represents it (with pipes for stdin, stdout and stderr), and its process id on the board.
        """
        self._jobs += 1
        note = f"/run/job-{self._jobs}"
        there = f"cd /root; echo $$ > {note}; exec {shlex.join(command)}"
        pipe = subprocess.PIPE
        process = subprocess.Popen([*self._ssh(), there], stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            waiting = f"until [ -s {note} ]; do sleep 0.1; done; cat {note}"
            number = int(self.run(["sh", "-c", waiting], timeout=PATIENCE_S, check=True).out)
            yield process, number
        finally:
            if process.poll() is None:
                with contextlib.suppress(EmulatorError):
                    self.run(["sh", "-c", f"kill -9 $(cat {note})"], timeout=10)
            process.kill()
            process.communicate()

    def put(self, files: Mapping[str, bytes], folder: str) -> None:
        """Write files into a folder on the board, which is created."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        self.run(["mkdir", "-p", folder], check=True)
        self.run(["tar", "-x", "-f", "-", "-C", folder], stdin=packed.getvalue(), check=True)

    def get(self, path: str) -> bytes:
        """Return the content of a file on the board.

        Raises:
            EmulatorError: if it cannot be read.
        """
        done = subprocess.run([*self._ssh(), f"cat {shlex.quote(path)}"], capture_output=True, timeout=60)
        if done.returncode:
            raise self._failure(f"cannot read {path} on the board: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def console(self) -> str:
        """Return the last lines of the serial console."""
        text = (self.folder / "console").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-CONSOLE_LINES:])

    def connect(self, deadline: float) -> None:
        """Wait for the board's ssh, and keep one connection open that all commands share, because the handshake is expensive.

        Raises:
            EmulatorError: if there is no answer by `deadline` (of time.monotonic()), or QEMU has ended.
        """
        control = ["-M", "-N", "-o", "ControlPersist=no"]
        while True:
            if self._qemu.poll() is not None:
                raise self._failure("the board shut down before it was ready")
            if time.monotonic() > deadline:
                raise self._failure("the board did not answer in time")
            if not self._answers():
                time.sleep(0.1)
                continue
            self._master = subprocess.Popen(
                [*_tied(), *self._ssh(control)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(self.folder / "ssh").open("wb"),
                start_new_session=True,
            )
            while self._master.poll() is None and time.monotonic() < deadline:
                if (self.folder / "control").exists():
                    return
                time.sleep(0.05)

    def close(self) -> None:
        """Switch the board off. Nothing remains: its root is read-only, and its changes are in memory."""
        for process in (self._master, self._qemu):
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _answers(self) -> bool:
        """Return whether an ssh server answers with its greeting."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
                return link.recv(4) == b"SSH-"
        except OSError:
            return False

    def _ssh(self, more: Sequence[str] = ()) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "ControlPath": str(self.folder / "control"),
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "no",  # the board makes a new key at each boot, and listens only on this machine
            "UserKnownHostsFile": "/dev/null",
        }
        options_ = [f"-o{name}={value}" for name, value in options.items()]
        key = str(self.folder / "key")
        return ["ssh", "-F", "none", *options_, *more, "-i", key, "-p", str(self.port), "root@127.0.0.1"]

    def _failure(self, text: str) -> EmulatorError:
        return EmulatorError(f"{text}. The console's last lines:\n{self.console() or '(nothing)'}")


@contextlib.contextmanager
def boot(
    image: Image, project: Path, *, cpu: str = "cortex-a72", memory_mib: int = 384, limit_s: int = 900
) -> Iterator[Machine]:
    """Boot a board, and switch it off at the end of the block.

    It has one emulated CPU: two are slower, because they share translated code.

    Args:
        image: from `image.build`.
        project: the checkout of edgecnn to install on the board, with its current files.
        cpu: QEMU's name for the processor.
        memory_mib: the board's memory.
        limit_s: seconds after which the board switches itself off, so that none keeps running if this process dies.

    Raises:
        EmulatorError: if a program is missing here or the board does not start; with the console's last lines.
    """
    missing = lacking()
    if missing:
        raise EmulatorError(missing[0].upper() + missing[1:])
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        folder = Path(name)
        install_project(project, image, folder / "edgecnn")
        _call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "board", "-f", str(folder / "key")])
        (folder / "initramfs").write_bytes(make_initramfs(image, (folder / "key.pub").read_bytes()))
        start = time.monotonic()
        command = functools.partial(_command, image, folder, cpu=cpu, memory_mib=memory_mib, limit_s=limit_s)
        qemu, port = _start(folder, command)
        machine = Machine(folder, qemu, port)
        try:
            machine.connect(start + BOOT_S)
            machine.boot_s = time.monotonic() - start
            yield machine
        finally:
            machine.close()


@contextlib.contextmanager
def boot_debian(
    image: DebianImage,
    disk: Path,
    *,
    cpu: str = "cortex-a72",
    memory_mib: int = 512,
    limit_s: int = 900,
    forward: tuple[int, int] | None = None,
) -> Iterator[Machine]:
    """Boot a board with Debian's systemd, and cut its power at the end of the block without a shutdown.

    Args:
        image: from `debian_image.build`.
        disk: stores its changes, from `debian_image.make_disk`; they persist there.
        cpu, memory_mib: as in `boot`.
        limit_s: seconds after which QEMU is killed, even if this process dies.
        forward: a free port on this machine, and the board's port that it reaches.

    Raises:
        EmulatorError: as in `boot`.
    """
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        folder, key = Path(name), disk.with_suffix(".key")
        if not key.exists():
            _call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "board", "-f", str(key)])
        shutil.copy(key, folder / "key")
        (folder / "initramfs").write_bytes(make_debian_initramfs(image, key.with_suffix(".key.pub").read_bytes()))
        start = time.monotonic()
        command = functools.partial(
            _debian_command, image, folder, disk=disk, machine=(cpu, memory_mib), limit_s=limit_s, forward=forward
        )
        qemu, port = _start(folder, command)
        machine = Machine(folder, qemu, port)
        try:
            machine.connect(start + DEBIAN_BOOT_S)
            machine.boot_s = time.monotonic() - start
            yield machine
        finally:
            machine.close()


@contextlib.contextmanager
def power_on(image: DebianImage, disk: Path, project: Path, *, limit_s: int = 120) -> Iterator[subprocess.Popen[bytes]]:
    """Boot a board whose first process is guest/releases.py, and cut its power at the end of the block.

    Args:
        image, disk: as in `boot_debian`.
        project: a folder that the board sees: edgecnn, compiled, releases.py, and its inputs.
        limit_s: as in `boot_debian`.

    Yields:
        The process of QEMU, whose standard output is the board's console.
    """
    with tempfile.TemporaryDirectory(prefix="board-") as name:
        folder = Path(name)
        (folder / "initramfs").write_bytes(make_debian_initramfs(image, b""))
        command = [
            *_tied(), "timeout", "--signal=KILL", str(limit_s),
            *_qemu(folder, None, image.kernel, "board.first=releases", "cortex-a72", 512),
            *_share("root", image.root), *_share("project", project), *_disk(disk),
        ]  # fmt: skip
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            yield qemu
        finally:
            qemu.kill()
            qemu.communicate()


def _start(folder: Path, command_on: Callable[[int], list[str]]) -> tuple[subprocess.Popen[bytes], int]:
    """Start QEMU on a free port, or on another one if that was taken in the meantime."""
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = command_on(port)
        with (folder / "console").open("wb") as console:
            qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            qemu.wait(timeout=0.3)
        said = (folder / "console").read_text(encoding="utf-8", errors="replace")
        if qemu.poll() is None or "host forwarding" not in said:
            return qemu, port
    raise EmulatorError(f"QEMU found no free port for the board's ssh: {said.strip()[-300:]}")


def _qemu(
    folder: Path,
    port: int | None,
    kernel: Path,
    append: str,
    cpu: str,
    memory_mib: int,
    forward: tuple[int, int] | None = None,
) -> list[str]:
    """Return what the commands of all boards share, with or without a local port for the board's ssh."""
    reached = ([] if port is None else [(port, 22)]) + ([] if forward is None else [forward])
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in reached)
    return [
        *_tied(), QEMU, "-M", "virt", "-cpu", cpu, "-smp", "1", "-m", str(memory_mib), "-accel", "tcg,thread=multi",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(folder / "initramfs"), "-append", f"console=ttyAMA0 earlycon quiet panic=-1 {append}",
        "-netdev", f"user,id=net,restrict=on{forwards}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def _share(tag: str, path: Path) -> list[str]:
    return ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,readonly=on"]


def _disk(path: Path) -> list[str]:
    return ["-drive", f"file={path},if=virtio,format=raw"]


def _command(image: Image, folder: Path, port: int, *, cpu: str, memory_mib: int, limit_s: int) -> list[str]:
    command = _qemu(folder, port, image.kernel, f"board.camera=vivid board.limit={limit_s}", cpu, memory_mib)
    for tag, path in {"root": image.root, "site": image.site, "edgecnn": folder / "edgecnn"}.items():
        command += _share(tag, path)
    return command


def _debian_command(
    image: DebianImage,
    folder: Path,
    port: int,
    *,
    disk: Path,
    machine: tuple[str, int],
    limit_s: int,
    forward: tuple[int, int] | None,
) -> list[str]:
    append = "systemd.unit=multi-user.target systemd.show_status=false net.ifnames=0"
    return [
        *_tied(), "timeout", "--signal=KILL", str(limit_s), *_qemu(folder, port, image.kernel, append, *machine, forward),
        *_share("root", image.root), *_disk(disk),
    ]  # fmt: skip


def _tied() -> list[str]:
    """Return a prefix that ends a program whenever this process ends; empty if setpriv is missing."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    if done.returncode:
        raise EmulatorError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
