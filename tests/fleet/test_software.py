"""Software on boards, and the pictures that they keep."""

import contextlib
import gzip
import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgecnn.boards import UPDATE_SCHEMA
from edgecnn.cli.review import located
from edgecnn.device.keep.folder import kept_pictures
from edgecnn.errors import PartialFailure
from edgecnn.fleet import deploy
from edgecnn.fleet import status as module
from edgecnn.fleet.deploy import Package, Wheels, package_tar, platform_of, tar
from edgecnn.fleet.ssh import BoardError, check_host, on_each, read_hosts
from edgecnn.fleet.status import HEADINGS, Gathered, Look, age, fetch_kept, read_status, row
from edgecnn.packages import Platform
from edgecnn.runtime.default import shipped_bundle

PI = Look(machine="aarch64", bits="64", libc="glibc 2.36", python="3.11")


def names_in(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {entry.name: oct(entry.mode) for entry in opened}


def test_only_a_board_with_64_bits_glibc_and_a_known_python_gets_wheels_and_the_problem_is_named():
    assert platform_of(PI) == Platform("3.11", 36, "aarch64")
    newer = replace(PI, machine="x86_64", libc="glibc 2.41", python="3.13")
    assert platform_of(newer) == Platform("3.13", 41, "x86_64")
    for changed, named in (
        ({"bits": "32"}, "aarch64 with 32 bits"),
        ({"bits": ""}, "aarch64 with unknown bits"),
        ({"machine": "armv7l"}, "armv7l with 64 bits"),
        ({"python": "3.10"}, "3.10"),
        ({"python": "3.14"}, "3.14"),
        ({"python": ""}, "no Python 3"),
        ({"libc": "musl 2.1"}, "musl 2.1"),
        ({"libc": "glibc 2.x"}, "glibc 2.x"),
        ({"libc": "glibc 2."}, "glibc 2."),
        ({"libc": f"glibc 2.{'9' * 5000}"}, "glibc 2.999"),
        ({"libc": ""}, "not the GNU one"),
    ):
        with pytest.raises(BoardError) as caught:
            platform_of(replace(PI, **changed))
        assert named in str(caught.value), changed


def test_an_archive_has_the_same_bytes_for_the_same_files_and_only_programs_can_be_executed(tmp_path):
    (tmp_path / "b").write_bytes(b"two")
    files = {
        "bin/edgecnn": b"1",
        "etc/edgecnn/update.toml": b"secret",
        "etc/edgecnn/root.json": b"{}",
        "sbin/b": tmp_path / "b",
    }
    archive = tar(files)
    assert archive == tar(dict(reversed(files.items())))
    assert names_in(archive) == {
        "bin/edgecnn": "0o755", "etc/edgecnn/root.json": "0o644", "etc/edgecnn/update.toml": "0o600", "sbin/b": "0o644",
    }  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.extractfile("sbin/b").read() == b"two"


def test_a_board_gets_edgecnn_with_its_boards_and_the_shipped_bundle_but_no_tests_or_schemas():
    names = names_in(package_tar())
    assert names.pop("bin/edgecnn") == "0o755" and set(names.values()) == {"0o644"}
    assert {"edgecnn/__main__.py", "edgecnn/_data/targets/rpi4.toml", "edgecnn/report/page.html.j2"} < set(names)
    shipped = shipped_bundle()
    bundles = [name for name in names if name.endswith(".edgecnn")]
    assert bundles == [f"edgecnn/_data/models/{shipped.parent.name}/{shipped.name}"]
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".schema.json"))]


def test_the_wheels_of_a_board_are_installed_once_and_packed_without_the_code_compiled_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def install(needed, platform, folder):
        asked.append(platform)
        for name in ("numpy/__init__.py", "numpy/__pycache__/__init__.pyc", "bin/f2py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(str(platform))
        return {"numpy": "2.0"}

    monkeypatch.setattr(deploy.packages, "install_wheels", install)
    pi = Platform("3.11", 36)
    archive = deploy.wheels_for(pi)
    assert names_in(gzip.decompress(archive.read_bytes())) == {"numpy/__init__.py": "0o644", "bin/f2py": "0o755"}
    assert sorted(path.name for path in archive.parent.iterdir()) == ["made.json", "wheels.tar.gz"]
    newer = deploy.wheels_for(Platform("3.13", 41))
    assert newer != archive and deploy.wheels_for(pi) == archive and asked == [pi, Platform("3.13", 41)]


def test_a_board_gets_only_what_changed_and_its_old_versions_and_half_copies_go(here, root_folder, monkeypatch):
    versions, link, programs = root_folder / "versions", root_folder / "edgecnn", root_folder / "bin"
    quick = root_folder / "quick" / "python3"  # makes an environment without starting Python
    quick.parent.mkdir()
    quick.write_text('#!/bin/sh\n[ "$2" != venv ] || mkdir -p "$4/bin" "$4/lib/python3.11/site-packages"\n')
    quick.chmod(0o755)
    monkeypatch.setenv("PATH", f"{quick.parent}:/usr/bin:/bin")
    monkeypatch.setattr(deploy, "VERSIONS", str(versions))
    monkeypatch.setattr(deploy, "LINK", str(link))
    asked, wheels = [], {"name": "wheels-3.11-aarch64-0123456789ab", "data": tar({"numpy/__init__.py": b"n = 1"})}

    def wheels_for(platform):
        asked.append(platform)
        path = root_folder / wheels["name"] / "wheels.tar.gz"
        path.parent.mkdir(exist_ok=True)
        packed = subprocess.run(["gzip", "-nc"], input=wheels["data"], capture_output=True, check=True).stdout
        path.write_bytes(packed[: wheels.get("cut")])
        return path

    monkeypatch.setattr(deploy, "wheels_for", wheels_for)

    def packed(text):
        files = {"edgecnn/__init__.py": text, "edgecnn-1.dist-info/METADATA": b"", "bin/edgecnn": b"#!/bin/sh\n"}
        monkeypatch.setattr(deploy, "package_tar", lambda: tar(files))
        return Wheels()

    def seen():
        kept = sorted(path.name for path in versions.iterdir()) if versions.exists() else []
        wheels = " ".join(name for name in kept if name.startswith("wheels-"))
        return replace(PI, link=str(link.readlink()) if link.is_symlink() else "", wheels=wheels or "wheels-*"), kept

    board = here({"/usr/local/bin": str(programs)})
    first = packed(b"x = 1")
    assert first.install(board, seen()[0]).endswith(" for Python 3.11 on aarch64")
    look, kept = seen()
    assert len(kept) == 2 and kept[1] == "wheels-0123456789ab" and look.link == str(versions / kept[0])
    (site,) = (link / "lib").glob("python3*/site-packages")
    assert (site / "edgecnn/__init__.py").read_bytes() == b"x = 1"
    assert (site / "wheels.pth").read_text() == f"{versions}/wheels-0123456789ab\n"
    assert (versions / kept[1] / "numpy/__init__.py").is_file() and (programs / "edgecnn").read_text() == "#!/bin/sh\n"
    sent = board.sent
    assert first.install(board, look) == "" and board.sent == sent, "a board that has it gets nothing"

    (versions / "wheels-other" / "deep").mkdir(parents=True)
    (versions / kept[1] / "own").write_text("not unpacked again")
    assert packed(b"x = 2").install(board, seen()[0]) and (versions / kept[1] / "own").exists()
    look, after = seen()
    assert after[1:] == ["wheels-0123456789ab"] and after[0] != kept[0] and look.link == str(versions / after[0])

    wheels |= {"name": "wheels-3.11-aarch64-0123456789a", "cut": 60}
    with pytest.raises(BoardError, match=r"^unpacking the wheels failed: "):
        packed(b"x = 2").install(board, seen()[0])
    assert seen() == (look, after), "nothing half-written stays"
    del wheels["cut"]
    assert packed(b"x = 2").install(board, look)
    assert seen()[1][1:] == ["wheels-0123456789a"], "a name that only begins another one is other wheels"

    count = len(asked)
    for refused in ({"package": "installed 1.0"}, {"foreign": "yes"}):
        with pytest.raises(BoardError):
            first.install(board, replace(look, **refused))
    assert len(asked) == count


def test_a_board_gets_the_package_for_its_architecture_unless_it_has_just_this_file(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dpkg-deb"
    program.write_text('#!/bin/sh\nsed -n "s/^$3: //p" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    arm, intel, text = tmp_path / "arm.deb", tmp_path / "intel.deb", tmp_path / "notes.txt"
    arm.write_text("Architecture: arm64\nVersion: 1.2-3\n")
    intel.write_text("Architecture: amd64\nVersion: 1.2-4\n")
    text.write_text("Version: 1.2-3\n")
    with pytest.raises(ValueError, match=r"^.*notes\.txt "):
        Package([arm, text])
    package = Package([arm, intel])

    class Scripted:
        def must(self, what, script, stdin=b""):
            self.script, self.sent = script, stdin

    def installed(**more):
        board = Scripted()
        return package.install(board, Look(**more)), getattr(board, "sent", None), getattr(board, "script", "")

    text, sent, script = installed(architecture="arm64")
    assert (text, sent) == ("package 1.2-3", arm)
    digest = script.split("echo ")[1].split()[0]
    assert digest == subprocess.run(["sha256sum", arm], capture_output=True, text=True).stdout.split()[0]
    assert installed(architecture="amd64")[:2] == ("package 1.2-4", intel)
    has = {"architecture": "arm64", "package": "installed 1.2-3", "packed": digest}
    assert installed(**has) == ("", None, "")
    for changed in (
        {"packed": "0" * 64},
        {"packed": ""},
        {"package": "installed 1.2-4"},
        {"package": "half-installed 1.2-3"},
    ):
        assert installed(**has | changed)[:2] == ("package 1.2-3", arm), changed
    for refused, named in (
        ({"architecture": "armhf"}, "armhf"),
        ({}, "not a Debian"),
        (has | {"link": "/x"}, "virtual"),
    ):
        with pytest.raises(BoardError, match=named):
            installed(**refused)


def test_wheels_for_two_boards_are_made_one_after_the_other(monkeypatch, tmp_path):
    monkeypatch.setattr(deploy, "package_tar", lambda: b"package")
    making, most = [], []

    def wheels_for(platform):
        making.append(platform)
        most.append(len(making))
        time.sleep(0.2)
        making.pop()
        return tmp_path / f"wheels-{platform.machine}-0123" / "wheels.tar.gz"

    monkeypatch.setattr(deploy, "wheels_for", wheels_for)
    wheels = Wheels()
    board = SimpleNamespace(must=lambda *step: "")
    done = on_each(["one", "two", "three"], 3, lambda host: wheels.install(board, PI), bool)
    assert len([*done]) == 3 and most == [1, 1, 1]


def test_names_that_ssh_accepts_are_hosts_and_other_text_is_not():
    for text in (
        "door", "pi@door.local", "10.0.0.5", "fe80::1%eth0", "pi@[::1]", "ssh://pi@door:2222", "ssh://[::1]:22",
    ):  # fmt: skip
        assert check_host(text) == text
    for text in (
        "", "-oProxyCommand=reboot", "pi@-oProxyCommand=reboot", "-l@door", "door;reboot", "$(reboot)", "`reboot`@door", "a b", "door\n",
        "door|x", "ssh://-x", "ssh://door:22/path", "door:22", "dőor", "'door'", "a@b@c", "ssh://pi@door:22 -v",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is not a host: expected NAME, USER@NAME or ssh://USER@NAME:PORT"):
            check_host(text)


def test_a_file_of_hosts_has_comments_and_its_wrong_lines_are_named(tmp_path):
    path = tmp_path / "boards"
    path.write_text("# doors\ndoor\n\n pi@gate  # the old one\n")
    assert read_hosts(path) == ["door", "pi@gate"]
    path.write_text("door\n-x\n")
    with pytest.raises(ValueError, match=r"boards:2: '-x'"):
        read_hosts(path)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere: No such file"):
        read_hosts(tmp_path / "nowhere")


def test_each_host_is_worked_on_once():
    seen = []
    assert sorted(on_each(["a", "b", "a"], 2, lambda host: seen.append(host) or host, bool)) == ["a", "b"]
    assert sorted(seen) == ["a", "b"]


def test_an_exception_stops_the_work_in_progress():
    stopped = []
    with pytest.raises(ZeroDivisionError):
        list(on_each("abc", 1, lambda host: 1 // 0, lambda: stopped.append(True)))
    assert stopped == [True]


def test_the_age_of_a_check_changes_its_unit_at_twice_the_unit():
    ages = [None, 0, 119, 120, 7199, 7200, 172_799, 172_800, 1_000_000]
    assert [age(seconds) for seconds in ages] == [
        "never", "0 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "47 h ago", "2 d ago", "11 d ago",
    ]  # fmt: skip


def test_a_board_is_a_row():
    status = {
        "schema": UPDATE_SCHEMA, "channel": "door", "age_s": 300, "reason": "the server is gone",
        "in_use": {"name": "cats", "serial": 7, "state": "good"}, "bad": {"ab" * 32: "it crashed"},
        "held_back": {"name": "dogs", "serial": 8, "reason": "rolled back by hand"},
    }  # fmt: skip
    assert row(Gathered(host="pi@a", status=read_status(json.dumps(status)))) == (
        "pi@a", "door", "cats serial 7 good", "5 min ago", "the server is gone; dogs serial 8 is held back: rolled back by hand; "
        "abababababab is bad: it crashed",
    )  # fmt: skip
    fresh = {"schema": UPDATE_SCHEMA, "channel": "door", "age_s": 0, "reason": None, "in_use": None, "bad": {}}
    assert row(Gathered(host="b", status=fresh)) == ("b", "door", "no release", "0 s ago", "-")
    lost = row(Gathered(host="c", problem="no answer"))
    assert lost == ("c", "-", "-", "-", "no answer") and len(lost) == len(HEADINGS)
    for text in ("null", "{}", '{"schema": "edgecnn.other/1"}', "["):
        with pytest.raises(BoardError):
            read_status(text)


@pytest.fixture
def fetch(here):
    """Return a function that fetches from a folder of this machine."""
    return lambda remote, folder, progress=bool: fetch_kept(here(), str(remote), folder, progress)


class Sent:
    """A board that sends these bytes in answer to anything."""

    def __init__(self, data):
        self.data = data

    @contextlib.contextmanager
    def reading(self, script, stdin=b""):
        yield io.BytesIO(self.data)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_missing_pictures_are_fetched(tmp_path, keep_pictures, fetch):
    remote, folder = tmp_path / "a board's kept", tmp_path / "here" / "kept"
    kept = keep_pictures(remote, scenes=4)
    (remote / "sample.json").write_text("{}")
    expected = files(remote)
    day = kept[0].path.parent
    for name in ("notes.txt", f".{kept[0].path.name}.0123.tmp", "-rf.jpg", "a\nb.jpg"):
        (day / name).write_text("no picture")
    (day / kept[0].path.name.replace("-0", "-9")).symlink_to("/etc/passwd")
    leftover = folder / day.name / ".20261128T101502.500000Z-0.jpg.0123.tmp"  # from a fetch that was killed
    for made in (folder.parent, folder, leftover.parent):
        made.mkdir(mode=0o700)
    leftover.write_text("half")
    counted = []
    assert fetch(remote, folder, counted.append) == 4 and files(folder) == expected
    assert counted == [1, 2, 3, 4]
    assert {oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))} == {"0o700", "0o600"}
    (remote / "labels.jsonl").write_text("{}\n")
    lost = folder / kept[1].path.relative_to(remote)
    lost.unlink()
    lost.with_suffix(".json").unlink()
    assert fetch(remote, folder) == 1 and files(folder) == expected | {"labels.jsonl": b"{}\n"}
    kept[2].path.unlink()
    assert fetch(remote, folder) == 0 and len(kept_pictures(folder)) == 4, "files that the board removes stay here"
    with pytest.raises(BoardError, match=r"^no folder /no/such$"):
        fetch("/no/such", folder)


def test_a_boards_data_is_hostile_or_cut(tmp_path, keep_pictures, monkeypatch):
    name, outside = "./2026-11-28/20261128T101502.500000Z-0.jpg", tmp_path / "outside"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (
            "../outside",
            f"/{outside}",
            "2026-11-28/../../outside",
            "./labels.jsonl/x",
            f"{name}x",
            "sample.json",
        ):
            entry = tarfile.TarInfo(path)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        sparse = tarfile.TarInfo(name)
        sparse.pax_headers = {"GNU.sparse.map": f"0,{1 << 50}", "GNU.sparse.size": str(1 << 50)}
        archive.addfile(sparse)
    folder = tmp_path / "kept"
    assert fetch_kept(Sent(buffer.getvalue()), "", folder, bool) == 0
    assert not outside.exists() and list(folder.iterdir()) == []
    for odd in ("x,y", "9" * 5000, "0"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.pax_headers = {"GNU.sparse.map": odd}
            archive.addfile(entry)
        with contextlib.suppress(BoardError):
            fetch_kept(Sent(buffer.getvalue()), "", folder, bool)
        assert list(folder.rglob("*.jpg")) == []

    remote = tmp_path / "remote"
    keep_pictures(remote, scenes=12)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(remote.rglob("*.j*")):
            archive.add(path, f"./{path.relative_to(remote)}")
    whole, chance = files(remote), random.Random(1)
    for _ in range(40):
        cut = buffer.getvalue()[: chance.randrange(buffer.tell() - 2 * tarfile.BLOCKSIZE)]
        with contextlib.suppress(BoardError):
            fetch_kept(Sent(cut), "", tmp_path / "cut", bool)
        assert files(tmp_path / "cut").items() <= whole.items()
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 15)  # more than a picture, and than what tarfile reads at a time
    assert buffer.tell() > module.MOST_BYTES, "the limit is for each file, not for all"
    assert fetch_kept(Sent(buffer.getvalue()), "", tmp_path / "each", bool) == 12
    monkeypatch.setattr(module, "MOST_BYTES", 4000)
    with pytest.raises(BoardError, match="a file of more than 4,000 bytes"):
        fetch_kept(Sent(buffer.getvalue()), "", tmp_path / "large", bool)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.guard)])
def test_after_a_kill_at_any_moment_it_continues(tmp_path, keep_pictures, fetch, kills):
    remote, folder, chance, came = tmp_path / "remote", tmp_path / "kept", random.Random(1), 0
    keep_pictures(remote, scenes=3 * kills)
    for _ in range(kills):
        begun, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                fetch(remote, folder, lambda count, says=says: os.write(says, b"."))
            finally:
                os._exit(0)
        os.close(says)
        with open(begun, "rb", buffering=0) as file:
            file.read(1)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before, came = came, len(kept_pictures(folder))
        assert came >= before and all(kept.read() for kept in kept_pictures(folder))
    assert came > 0
    fetch(remote, folder)
    assert files(folder) == files(remote)


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
def test_a_board_whose_service_keeps_pictures(boards, tmp_path, keep_pictures):
    boards.make("door", user="pi")
    keep_pictures(tmp_path / "remote", scenes=3)
    packed = subprocess.run(["tar", "-cC", tmp_path / "remote", "."], capture_output=True, check=True).stdout
    into = "sudo -n sh -c 'mkdir -p /etc/edgecnn && mkdir -m 700 /srv /srv/kept && tar -xC /srv/kept && chmod 700 /srv/kept'"
    subprocess.run(["ssh", "door", into], input=packed, check=True)
    photos = tmp_path / "photos"
    with pytest.raises(
        PartialFailure, match=r"^pi@door: its service keeps no pictures: /etc/edgecnn/service.toml has no keep"
    ):
        located("pi@door", photos, None)
    with pytest.raises(
        PartialFailure, match=r"^no folder kpet exists, and as a board it failed: no machine has this name\.$"
    ):
        located("kpet", photos, None)
    boards.run("door", "echo 'keep = \"/srv/kept\"' | sudo -n tee /etc/edgecnn/service.toml")
    boards.counted("door")
    folder, board, _ = located("pi@door", photos, None)
    assert (folder, board) == (tmp_path / "photos-kept" / "door", "door")
    assert files(folder) == files(tmp_path / "remote") and boards.counted("door") > len(packed)
    assert located("pi@door", photos, "/srv/kept")[0] == folder and boards.counted("door") < 25_000
