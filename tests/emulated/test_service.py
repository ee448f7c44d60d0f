"""The Debian package on a board with Debian's own systemd, from apt install to apt purge. The tests depend on their order."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.device.slots.record import NO_RELEASE
from edgecnn.errors import EmulatorError
from edgecnn.runtime.default import shipped_bundle

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools" / "board"))

from debian_image import build, make_disk
from machine import NEEDED_BY_DEBIAN, boot_debian, lacking

pytestmark = pytest.mark.guard

LIMIT_S = 600
"""The longest wait for a journal line or a command: on a busy machine, apt-get install takes five minutes."""

DROP_IN = """[Service]
WatchdogSec=12
RestartSec=1
"""
"""A frozen camera is noticed sooner than on a real board, because the test has to wait for that three times."""

OPTIONS = """width = 320
height = 180
max_fps = 2
good_after = 5
"""
PORT = 8080

TOKEN = "correct-horse-battery-staple"

FROZEN, MOVING = 100, 0
"""The percentage of frames that the camera drops."""


class Board:
    """A board with a disk that can be switched off and on, and the service's events since it was switched on."""

    def __init__(self, image, disk, port):
        self.image, self.disk, self.port = image, disk, port
        self.boots, self.events = [], []
        self.changed = threading.Condition()
        self.power = contextlib.ExitStack()

    def on(self):
        booted = boot_debian(self.image, self.disk, limit_s=3000, forward=(self.port, PORT))
        self.machine = self.power.enter_context(booted)
        self.boots.append(self.machine.boot_s)
        self.events.clear()
        command = ["journalctl", "--unit=edgecnn", "--output=cat", "--boot", "--lines=all", "--follow"]
        process, _ = self.power.enter_context(self.machine.job(command))
        threading.Thread(target=self.read, args=(process.stdout,), daemon=True).start()

    def off(self):
        """Cut the power."""
        self.power.close()

    def read(self, lines):
        for line in lines:
            if line.startswith(b"{"):
                with self.changed:
                    self.events.append(json.loads(line))
                    self.changed.notify_all()

    def run(self, *command, check=True):
        return self.machine.run(command, check=check, timeout=LIMIT_S)

    def wait(self, wanted, what, after=0):
        """Return the number of the first matching event from a number on."""
        with self.changed:
            found = self.changed.wait_for(lambda: self.first(wanted, after) is not None, LIMIT_S)
        if not found:
            journal = self.run("journalctl", "--unit=edgecnn", "--no-pager", "--lines=40", check=False).out
            pytest.fail(f"no {what} within {LIMIT_S} s:\n{journal}")
        return self.first(wanted, after)

    def first(self, wanted, after):
        return next((number for number, event in enumerate(self.events) if number >= after and wanted(event)), None)

    def released(self, name, state, after=0):
        wanted = ("release", name, state)
        return self.wait(lambda event: (event["event"], event.get("name"), event.get("state")) == wanted, wanted, after)

    def classifying(self, after=0):
        return self.wait(lambda event: event["event"] == "state_changed" and event["state"], "state", after)

    def filters(self):
        """Return the service's number of system call filters."""
        pid = self.run("systemctl", "show", "--property=MainPID", "--value", "edgecnn").out.strip()
        (line,) = (
            line for line in self.run("cat", f"/proc/{pid}/status").out.splitlines() if "Seccomp_filters" in line
        )
        return int(line.split()[1])

    def ask(self, path, **headers):
        """Return (status, body) of a request to the board's page, from outside."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def camera(self, dropped):
        self.run("v4l2-ctl", "-d", "/dev/video0", "-c", f"percentage_of_dropped_buffers={dropped}")


@pytest.fixture(scope="module")
def service_board(tmp_path_factory, root, free_port):
    """A board that has been booted once, with the package and three bundles in /root; skipped, with the reason, if it cannot run."""
    missing = lacking(NEEDED_BY_DEBIAN)
    if missing:
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tools")
        package = importlib.import_module("deb").build("arm64", tmp_path_factory.mktemp("deb"))
    folder = tmp_path_factory.mktemp("disk")
    make_disk(folder / "disk")
    board = Board(build(), folder / "disk", free_port())
    try:
        board.on()
        board.machine.put({"edgecnn.deb": package.read_bytes(), **bundles(folder)}, "/root")
        board.run("sh", "-c", f"{LISTING} > /root/before")
        board.machine.put({"test.conf": DROP_IN.encode()}, "/etc/systemd/system/edgecnn.service.d")
        board.machine.put({"service.toml": OPTIONS.encode()}, "/etc/edgecnn")
        yield board
    finally:
        board.off()


@pytest.fixture(scope="module")
def make_repository(root):
    """The repository class of the update tests."""
    pytest.importorskip("cryptography", reason="releases are signed with the release extra")
    path = root / "tests/device/update/conftest.py"
    spec = importlib.util.spec_from_file_location("of_updates", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Repository


LISTING = "find /etc /usr /var /opt -path /var/log -prune -o -path /var/cache -prune -o -print | sort"
"""A board's files, without logs and apt's cache."""


def bundles(folder):
    """Return bundles as files: the shipped one under other names, one of them with wrong golden answers."""
    shipped = read_bundle(shipped_bundle())
    made = {}
    for name in ("new", "wrong", "silent"):
        files = dict(shipped.files)
        if name == "wrong":
            for model in shipped.manifest.models:
                content = files[model.golden]
                files[model.golden] = content[:-100] + bytes(byte ^ 64 for byte in content[-100:])
        write_bundle(folder / name, dataclasses.replace(shipped.manifest, name=name), files)
        made[f"{name}.edgecnn"] = (folder / name).read_bytes()
    return made


def test_apt_installs_it_and_it_waits_for_a_release(service_board):
    service_board.run("apt-get", "install", "--yes", "./edgecnn.deb")
    waits = service_board.wait(lambda event: event.get("about") == "release", "problem")
    assert service_board.events[waits]["message"] == f"{NO_RELEASE}."
    assert service_board.run("edgecnn", "service", "status").out.splitlines()[1:] == [
        f"status  {NO_RELEASE}",
        NO_RELEASE,
    ]
    shown = service_board.run("systemctl", "show", "--property=ActiveState,UnitFileState", "edgecnn").out
    assert shown.split() == ["ActiveState=active", "UnitFileState=enabled"]
    service_board.run("systemd-analyze", "security", "--no-pager", "--threshold=15", "edgecnn.service")  # 1.5 of 10


@pytest.mark.slow
def test_the_doctor_finds_no_problem(service_board):
    done = service_board.run("edgecnn", "doctor", "--json")
    findings = json.loads(done.out)["findings"]
    assert [finding for finding in findings if finding["severity"] in ("error", "warning")] == []


def test_a_new_bundle_becomes_good(service_board):
    after = len(service_board.events)
    service_board.run("edgecnn", "slot", "add", "new.edgecnn", "--activate", "--accept", "a test")
    pending = service_board.released("new", "pending", after)
    opened = service_board.wait(lambda event: event["event"] == "camera_opened", "camera", pending)
    assert service_board.events[opened]["source"] == "/dev/video0"
    service_board.classifying(opened)
    service_board.released("new", "good", pending)


@pytest.mark.slow
def test_its_page_is_reachable_and_without_one_its_network_is_closed(service_board):
    closed = service_board.filters()
    service_board.machine.put({"environment": f"EDGECNN_HTTP_TOKEN={TOKEN}\n".encode()}, "/etc/edgecnn")
    service_board.run("chmod", "600", "/etc/edgecnn/environment")
    for options, filters in ((f'{OPTIONS}http = "0.0.0.0:{PORT}"\n', closed - 1), (OPTIONS, closed)):
        after = len(service_board.events)
        service_board.machine.put({"service.toml": options.encode()}, "/etc/edgecnn")
        service_board.run("systemctl", "restart", "edgecnn")
        service_board.classifying(service_board.released("new", "good", after))
        assert service_board.filters() == filters
        if filters < closed:
            assert service_board.ask("/v1/state")[0] == 401
            token = {"authorization": f"Bearer {TOKEN}"}
            state = json.loads(service_board.ask("/v1/state", **token)[1])
            assert (state["camera"], state["model"]["name"]) == ("open", "new") and state["state"]
            status, jpeg = service_board.ask("/v1/frame.jpg", **token)
            assert status == 200 and jpeg.startswith(b"\xff\xd8")
            status, page = service_board.ask("/", accept="text/html", **token)
            assert status == 200 and b"<html" in page
            service_board.run("systemd-analyze", "security", "--no-pager", "--threshold=15", "edgecnn.service")
        else:
            with pytest.raises(OSError):
                service_board.ask("/healthz")


@pytest.mark.slow
def test_after_a_reboot_it_still_classifies(service_board):
    with pytest.raises(EmulatorError):
        service_board.run("sh", "-c", "systemctl reboot; sleep 100")  # QEMU ends when the board would restart
    service_board.off()
    service_board.on()
    service_board.classifying(service_board.released("new", "good"))


def test_a_bundle_whose_selftest_fails_is_rolled_back(service_board):
    after = len(service_board.events)
    service_board.run("edgecnn", "slot", "add", "wrong.edgecnn", "--activate", "--accept", "a test")
    bad = service_board.released("wrong", "bad", after)
    assert "does not reproduce the bundle's answers" in service_board.events[bad]["reason"]
    service_board.classifying(service_board.released("new", "good", bad))


def test_a_bundle_without_frames_is_rolled_back_and_the_watchdog_restarts_a_frozen_camera(service_board):
    after = len(service_board.events)
    service_board.camera(FROZEN)
    service_board.run("edgecnn", "slot", "add", "silent.edgecnn", "--activate", "--accept", "a test")
    bad = service_board.released("silent", "bad", after)
    assert "did not prove itself" in service_board.events[bad]["reason"]
    service_board.camera(MOVING)
    service_board.classifying(service_board.released("new", "good", bad))
    journal = service_board.run("journalctl", "--unit=edgecnn", "--boot", "--no-pager").out
    assert journal.count("Watchdog timeout") >= 2


def test_systemd_fetches_a_release_without_privileges_and_root_puts_it_in_use(service_board, make_repository, tmp_path):
    shipped = read_bundle(shipped_bundle())
    manifest = dataclasses.replace(shipped.manifest, name="fetched", serial=7)
    write_bundle(tmp_path / "fetched.edgecnn", manifest, dict(shipped.files))
    repository = make_repository(tmp_path / "releases", now=datetime.now(UTC).replace(microsecond=0))
    repository.add(tmp_path / "fetched.edgecnn", 7)
    files = {str(path.relative_to(repository.folder)): path for path in repository.folder.rglob("*") if path.is_file()}
    service_board.machine.put({name: path.read_bytes() for name, path in files.items()}, "/srv/releases")
    service_board.run("chmod", "-R", "a+rX", "/srv/releases")
    server = ("python3", "-m", "http.server", "--directory", "/srv/releases", "8000")
    service_board.run("systemd-run", "--unit=server", *server)
    root = files["metadata/1.root.json"].read_bytes()
    options = b'from = "http://127.0.0.1:8000"\nchannel = "door"\n'
    service_board.machine.put({"root.json": root, "update.toml": options}, "/etc/edgecnn")
    after = len(service_board.events)
    done = service_board.run("systemctl", "start", "edgecnn-update.service", check=False)
    journal = service_board.run("journalctl", "--unit=edgecnn-update", "--no-pager", "--output=cat").out
    assert done.code == 0, journal
    service_board.released("fetched", "good", after)
    found = json.loads(service_board.run("edgecnn", "update", "status", "--json").out)
    assert (found["reason"], found["in_use"]["serial"], found["in_use"]["state"]) == (None, 7, "good")
    owners = service_board.run(
        "sh", "-c", "stat -c %U /var/lib/edgecnn-update/repository/* /var/lib/edgecnn-trust/*"
    ).out
    assert owners.split() == ["edgecnn-update", "edgecnn-update", "root", "root", "root"], owners
    shown = service_board.run("systemctl", "show", "--property=ActiveState,UnitFileState", "edgecnn-update.timer").out
    assert shown.split() == ["ActiveState=active", "UnitFileState=enabled"]


def test_purge_leaves_nothing(service_board):
    service_board.run("apt-get", "purge", "--yes", "edgecnn")
    service_board.run("sh", "-c", f"{LISTING} > /root/after")
    left = service_board.run("sh", "-c", "diff before after", check=False).out
    assert "edgecnn" not in left, left
    assert (
        service_board.run("sh", "-c", "ls /var/lib/private; systemctl list-units --all edgecnn.service --no-legend").out
        == ""
    )
    print("boots took", [f"{seconds:.0f} s" for seconds in service_board.boots])
