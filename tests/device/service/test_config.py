"""The service's options, its unit and the network."""

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from edgecnn.device.service import config as manage
from edgecnn.device.service.config import (
    Config,
    Host,
    install,
    logs_command,
    parse,
    remove,
    take_options,
    unit_properties,
    unit_text,
)
from edgecnn.device.service.run import MACHINES
from edgecnn.device.slots.record import Disk
from edgecnn.errors import ServiceError
from edgecnn.runtime.child import Finished


def test_no_options_are_the_defaults(tmp_path):
    assert take_options(tmp_path / "service.toml", tmp_path) == (Config(), "")
    assert parse("", "here") == Config()


def test_options():
    config = parse(
        'source = "/dev/video2"\nwidth = 1280\nheight = 720\nthreshold = 0.6\nmqtt = "mqtt://broker/door"\n', "x"
    )
    assert (config.source, config.width, config.threshold) == ("/dev/video2", 1280, 0.6)
    settings = config.settings
    assert (settings.camera.size, settings.camera.retry_for_s) == ((1280, 720), float("inf"))
    assert (settings.decision.threshold, settings.mqtt.address) == (0.6, "mqtt://broker/door")
    assert parse("threshold = 0\n", "x").settings.decision.threshold == 0, "not the bundle's"
    plain = Config().settings
    assert (plain.decision.threshold, plain.mqtt.address, plain.http.address) == (None, None, None)
    assert (plain.reaction.keep, plain.camera.size, Config().good_after) == (None, (640, 480), 10)


def test_a_typo_is_named():
    for text, message in (
        ("thresold = 0.6", r"here: .*thresold.*'threshold'"),
        ("threshold = 2", "here: threshold .*2"),
        ('threshold = "high"', "here: threshold .*'high'"),
        ("threshold = 0.6 0.7", r"here is not TOML: .*line 1"),
        (f"threshold = {'[' * 5000}", r"here is nested too deeply"),
        ("rotate = 45", "here: rotate .*0, 90, 180, 270"),
        ('smooth = "often"', r"here: smooth: "),
        ("max_fps = 0.1", r"here: max_fps must be 0 or at least 0\.2"),
        ('source = "rstp:"', r"here: source 'rstp:' is not a camera or a stream"),
        (
            'keep = "kept"',
            r"here: keep must be the full path of a folder, such as /var/lib/edgecnn/kept; received 'kept'",
        ),
        ('source = "watch:inbox"', r"here: source cannot be a folder"),
        ('source = "folder:photos?loop=1"', r"here: source cannot be a folder"),
        ('mqtt = "http://broker"', "here: mqtt: .*'http://broker'"),
        ('http = "http://board"', "here: http: .*'http://board'"),
    ):
        with pytest.raises(ServiceError, match=message):
            parse(text, "here")
    for at_the_limit in ("max_fps = 0", "max_fps = 0.2", "good_after = 1", "threshold = 1", "keep_days = 3650"):
        parse(at_the_limit, "here")
    for beyond in ("max_fps = -1", "good_after = 0", "width = 0", "keep_days = 0", "keep_days = 3651"):
        with pytest.raises(ServiceError):
            parse(beyond, "here")


def test_options_that_need_a_network():
    for text, needed in (
        ("", False),
        ('source = "/dev/video0"', False),
        ('source = "synthetic:"', False),
        ('source = "rtsp://door.local/1"', True),
        ('source = "RTSP://door.local/1"', True),
        ('source = "exec:ffmpeg"', True),
        ('source = "ffmpeg:/dev/video0"', True),
        ('mqtt = "mqtt://broker/door"', True),
        ('http = "8080"', True),
    ):
        assert parse(text, "here").needs_network is needed, text


def test_the_network_filter_knows_each_processor():
    """An architecture is its number in ELF headers, plus a bit each for little-endian and for 64 bits (linux/audit.h)."""
    elf = {"x86_64": (62, 64), "aarch64": (183, 64), "riscv64": (243, 64), "armv7l": (40, 32), "armv6l": (40, 32)}
    expected = {name: number | 1 << 30 | (bits == 64) << 31 for name, (number, bits) in elf.items()}
    assert {name: architecture for name, (architecture, _) in MACHINES.items()} == expected
    calls = {"x86_64": 41, "aarch64": 198, "riscv64": 198, "armv7l": 281, "armv6l": 281}  # socket(2) in syscalls(2)
    assert {name: number for name, (_, number) in MACHINES.items()} == calls


def test_invalid_options_leave_the_last_valid_ones(tmp_path):
    path, folder = tmp_path / "service.toml", tmp_path / "slots"
    folder.mkdir()
    path.write_text("thresold = 0.6\n")
    config, problem = take_options(path, folder)
    assert config == Config() and "thresold" in problem and "The defaults are in use" in problem
    path.write_text("threshold = 0.6\n")
    assert take_options(path, folder) == (Config(threshold=0.6), "")
    for text in (b"thresold = 0.7\n", b"\xff", b"threshold = " + 5000 * b"["):
        path.write_bytes(text)
        config, problem = take_options(path, folder)
        assert config == Config(threshold=0.6) and "The last valid options stay in use" in problem
    path.write_text("threshold = 0.7\n")
    assert take_options(path, folder) == (Config(threshold=0.7), "")
    path.write_text("thresold = 0.8\n")
    assert take_options(path, folder)[0] == Config(threshold=0.7), (
        "the copy is of the last that were valid, not of the first"
    )


def test_a_full_disk_does_not_block_valid_options(tmp_path):
    class Full(Disk):
        def write(self, path, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "options.toml").write_text("threshold = 0.6\n")
    config, problem = take_options(tmp_path / "options.toml", tmp_path, Full(tmp_path))
    assert config == Config(threshold=0.6) and "No space left" in problem


def test_the_example_of_the_page_is_valid(root):
    page = (root / "docs" / "service.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert parse(example, "docs/service.md").mqtt == "mqtt://broker.local/door"


class Machine:
    """A machine made of files in a folder, with systemd or without, that records the commands that are run."""

    def __init__(self, root, systemd=True, answer=Finished(0, "", "")):
        self.calls = []
        self.answer = answer
        if systemd:
            (root / "run/systemd/system").mkdir(parents=True)
        self.root = root
        self.host = Host(root=root, run=self.run, is_root=True, python="/opt/edgecnn/bin/python", package="/opt/x")

    def run(self, command):
        self.calls.append(" ".join(command[1:]))
        return self.answer


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_install_writes_the_unit_and_starts_it(machine, tmp_path):
    options = tmp_path / "mine.toml"
    options.write_text("threshold = 0.5\n")
    unit = install(machine.host, options)
    assert unit == tmp_path / "etc/systemd/system/edgecnn.service"
    assert "\nExecStart=/opt/edgecnn/bin/python -m edgecnn service run\n" in unit.read_text()
    assert (tmp_path / "etc/edgecnn/service.toml").read_text() == "threshold = 0.5\n"
    assert (
        "\nExecStart=/opt/edgecnn/bin/python -m edgecnn update\n"
        in unit.with_name("edgecnn-update.service").read_text()
    )
    assert machine.calls == [
        "/etc/sysusers.d/edgecnn.conf", "daemon-reload", "enable edgecnn.service", "restart --no-block edgecnn.service",
        "enable --now edgecnn-update.timer",
    ]  # fmt: skip
    remove(machine.host)
    assert [path.name for path in tmp_path.rglob("etc/**/*") if path.is_file()] == ["service.toml"]
    assert machine.calls[5:] == ["disable --now edgecnn.service edgecnn-update.timer", "daemon-reload"]
    with pytest.raises(ServiceError, match="not installed"):
        remove(machine.host)


def test_options_with_a_typo_change_nothing(machine, tmp_path):
    (tmp_path / "mine.toml").write_text("thresold = 0.5\n")
    with pytest.raises(ServiceError, match=r"thresold.*'threshold'"):
        install(machine.host, tmp_path / "mine.toml")
    with pytest.raises(ServiceError, match="does not exist"):
        install(machine.host, tmp_path / "other.toml")
    assert machine.calls == [] and not (tmp_path / "etc").exists()
    written = tmp_path / "etc/edgecnn/service.toml"
    written.parent.mkdir(parents=True)
    written.write_text("thresold = 0.5\n")
    with pytest.raises(ServiceError, match="thresold"):
        install(machine.host)
    assert machine.calls == [] and [path for path in tmp_path.rglob("etc/**/*") if path.is_file()] == [written]
    (tmp_path / "mine.toml").write_text("threshold = 0.25\n")
    install(machine.host, tmp_path / "mine.toml")
    assert written.read_text() == "threshold = 0.25\n", "the old ones do not matter"
    install(replace(machine.host, python="/opt/other/bin/python"))
    assert written.read_text() == "threshold = 0.25\n", "without new ones they stay"
    for name in ("edgecnn.service", "edgecnn-update.service"):
        assert "ExecStart=/opt/other/bin/python -m" in (tmp_path / "etc/systemd/system" / name).read_text()


def test_the_packages_unit_is_used_and_not_removed(machine, tmp_path):
    unit = tmp_path / "usr/lib/systemd/system/edgecnn.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("of the package")
    (tmp_path / "mine.toml").write_text("threshold = 0.5\n")
    assert install(machine.host, tmp_path / "mine.toml") == unit and unit.read_text() == "of the package"
    assert [path.name for path in tmp_path.rglob("etc/**/*") if path.is_file()] == ["service.toml"]
    assert machine.calls[0] == "daemon-reload" and machine.calls[-1] == "enable --now edgecnn-update.timer"
    with pytest.raises(ServiceError, match="apt remove edgecnn"):
        remove(machine.host)


def test_paths_that_the_service_cannot_see_are_refused(machine, tmp_path):
    places = {"python": "/opt/bin/python", "package": "/opt/x"}
    for what, where in (("python", "/home/pi/bin/python"), ("package", "/root/edgecnn"), ("package", "/run/user/7/x")):
        host = Host(root=tmp_path, run=machine.run, is_root=True, **{**places, what: where})
        with pytest.raises(ServiceError, match=f"^{where} is in a folder that the service cannot see"):
            install(host)
    assert machine.calls == [] and not (tmp_path / "etc").exists()


def test_without_systemd_or_root_there_is_a_clear_error(tmp_path):
    bare = Machine(tmp_path / "bare", systemd=False)
    for action in (install, remove, unit_properties, lambda host: logs_command(host, 1, False)):
        with pytest.raises(ServiceError, match=r"needs systemd.* Start edgecnn service run"):
            action(bare.host)
    ordinary = Machine(tmp_path / "ordinary")
    for action in (install, remove):
        with pytest.raises(ServiceError, match="only root"):
            action(Host(root=ordinary.root, run=ordinary.run, is_root=False))
    assert bare.calls == ordinary.calls == []


def test_systemds_refusals_are_passed_on(tmp_path):
    machine = Machine(tmp_path, answer=Finished(1, "", "Access denied\n"))
    with pytest.raises(ServiceError, match="systemctl daemon-reload failed: Access denied"):
        install(machine.host)


def test_status_and_logs(tmp_path, monkeypatch):
    machine = Machine(tmp_path, answer=Finished(0, "ActiveState=active\nStatusText=state: 'cat=1'\n", ""))
    found = unit_properties(machine.host)
    assert found["ActiveState"] == "active" and found["StatusText"] == "state: 'cat=1'" and found["NRestarts"] == ""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert logs_command(machine.host, 5, True) == [
        "journalctl", "--unit=edgecnn.service", "--output=cat", "--lines=5", "--follow",
    ]  # fmt: skip
    assert logs_command(machine.host, 20, False)[3:] == ["--lines=20", "--no-pager"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ServiceError, match="journalctl"):
        logs_command(machine.host, 5, True)


@pytest.mark.needs("systemd-analyze", package="systemd")
@pytest.mark.parametrize(("name", "most"), [(manage.UNIT, 1.5), ("edgecnn-update.service", 2.6)])
def test_the_unit_is_valid_and_well_confined(tmp_path, name, most):
    unit = tmp_path / name
    unit.write_text(unit_text(["/usr/bin/env", "edgecnn"], name).replace("Documentation=man:edgecnn(1)\n", ""))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={most * 10:.0f}", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    score = float(re.search(rf"Overall exposure level for {re.escape(name)}: ([0-9.]+)", done.stdout)[1])
    assert done.returncode == 0 and score <= most


@pytest.mark.needs("systemd-analyze", package="systemd")
def test_the_timer_is_valid_and_gives_each_board_its_own_minute(tmp_path):
    for name in manage.UNITS:
        text = unit_text(["/usr/bin/env", "edgecnn"], name).replace("Documentation=man:edgecnn(1)\n", "")
        (tmp_path / name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / manage.TIMER], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


CODE = """
import os, socket, subprocess, sys
from edgecnn.device.service.run import close_network, is_closed
print(is_closed(), [close_network()], is_closed())
socket.socketpair()
more = "from edgecnn.device.service.run import is_closed; print(is_closed())"
subprocess.run([sys.executable, "-c", more], check=True)
socket.socket()
"""


def test_a_closed_network_stays_closed_and_leaves_local_sockets():
    done = subprocess.run([sys.executable, "-uc", CODE], capture_output=True, text=True)
    assert done.stdout == "False [''] True\nTrue\n", done.stderr
    assert "Address family not supported" in done.stderr
