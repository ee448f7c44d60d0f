import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from edgecnn.device.service import manage
from edgecnn.device.service.manage import Host, install, logs_command, remove, status, unit_text
from edgecnn.errors import ServiceError
from edgecnn.runtime.child import Finished


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
    for action in (install, remove, status, lambda host: logs_command(host, 1, False)):
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
    found = status(machine.host)
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
