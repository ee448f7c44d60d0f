"""Files, names from outside, errors and the processor."""

import errno
import hashlib
import json
import os
import re
import resource
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgecnn import files
from edgecnn.errors import OutputError, OutputExistsError, first_line
from edgecnn.files import canonical_json, data_folder, output_errors, quiet_stderr, refuse_existing, write_atomic
from edgecnn.labels import plural, printable, printable_lines, why_not_a_label
from edgecnn.versions import read_cpu


def test_writes_bytes_and_text(tmp_path):
    write_atomic(tmp_path / "new" / "folder" / "a", b"\0\1")
    write_atomic(tmp_path / "b", "ü\n")
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"\0\1"
    assert (tmp_path / "b").read_bytes() == "ü\n".encode()
    assert {path.name for path in tmp_path.iterdir()} == {"new", "b"}


def test_the_rename_follows_once_the_bytes_are_on_disk(tmp_path, monkeypatch):
    """After a power cut following the rename, they are there. Before it, a glob finds nothing new; the rename stays on one file system."""
    seen = []

    def fsync(descriptor):
        seen.append(("on the disk", os.fstat(descriptor).st_size))

    def replace(source, target):
        seen.append(("renamed", os.path.dirname(source), os.path.basename(source).startswith(".")))
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    write_atomic(tmp_path / "a", bytes(500))
    assert seen == [("on the disk", 500), ("renamed", str(tmp_path), True)]


def test_the_mode_follows_the_users_umask(tmp_path, monkeypatch):
    for umask, stated, mode in ((0o022, {}, 0o644), (0o077, {}, 0o600), (0o022, {"mode": 0o600}, 0o600)):
        before = os.umask(umask)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(
                    os, "umask", lambda mask: pytest.fail("another thread's new files would have the wrong mode")
                )
                write_atomic(tmp_path / "a", b"", **stated)
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
        finally:
            os.umask(before)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        write_atomic(path, b"new")
    if isinstance(error, OSError):
        assert str(raised.value).startswith(f"cannot write {path}: No space left on device. ")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_file_size_limit(tmp_path):
    """A write that really fails, in a process limited to files of 1,000 bytes."""
    code = (
        "import signal, sys; from pathlib import Path; from edgecnn.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_atomic(Path(sys.argv[1]), bytes(5000))"
    )
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    result = subprocess.run([sys.executable, "-B", "-c", code, path], capture_output=True, text=True, preexec_fn=limit)
    assert "OutputError: " in result.stderr and str(path) in result.stderr and "File too large" in result.stderr
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_folder_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "a"):
        with pytest.raises(OutputError, match=re.escape(str(path))):
            write_atomic(path, b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_output_errors_pass_on_existing_messages(tmp_path):
    with pytest.raises(OutputExistsError), output_errors(tmp_path):
        raise OutputExistsError("mine")


def test_refuse_existing(tmp_path):
    path = tmp_path / "a"
    refuse_existing(path, force=False)
    path.symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match=r"exists\. Add --force to replace it\.$"):
        refuse_existing(path, force=False)
    refuse_existing(path, force=True)


def test_hashes(tmp_path):
    data = os.urandom(3000)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(data) == files.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_canonical_json():
    assert canonical_json({"b": 1, "a": [1.5, "ü"]}) == '{\n "a": [\n  1.5,\n  "ü"\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_json_is_utf_8_whatever_the_file_name():
    """Python uses surrogates for bytes that are not UTF-8. Half of a pair is not text, and other programs refuse it."""
    text = canonical_json({"caf\udce9.jpg": "ü\ud83d"})
    assert json.loads(text.encode()) == {r"caf\udce9.jpg": r"ü\ud83d"}


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/pi")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_home() == tmp_path / "edgecnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert str(files.cache_home()) == "/home/pi/.cache/edgecnn"


def test_the_state_is_where_systemd_or_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/pi")
    for service, state, expected in (
        ("", "", "/home/pi/.local/state/edgecnn"),
        ("", str(tmp_path), f"{tmp_path}/edgecnn"),
        ("/var/lib/door:/var/lib/gate", str(tmp_path), "/var/lib/door"),
    ):
        monkeypatch.setenv("STATE_DIRECTORY", service)
        monkeypatch.setenv("XDG_STATE_HOME", state)
        assert str(files.state_home()) == expected


def test_a_locked_folder_is_waited_for_as_long_as_requested_and_left_unlocked(monkeypatch, tmp_path):
    now, pauses = [100.0], []

    def pause(seconds):
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files.time, "sleep", pause)
    with files.folder_lock(tmp_path, KeyError()):
        for wait_s in (0, 1.0):
            began = now[0]
            with pytest.raises(LookupError), files.folder_lock(tmp_path, LookupError(), wait_s):
                pass
            assert now[0] - began == pytest.approx(wait_s, abs=0.06) and bool(pauses) == bool(wait_s)
    with pytest.raises(ZeroDivisionError), files.folder_lock(tmp_path, KeyError()):
        _ = 1 / 0
    with files.folder_lock(tmp_path, KeyError()):
        assert os.listdir(tmp_path) == []


def test_a_host_programs_log_is_left_alone(capfd, monkeypatch):
    monkeypatch.setattr(files, "stderr_is_ours", False)  # as if no command line had run
    with quiet_stderr() as printed:
        os.write(2, b"the host's own line\n")
        assert printed() == ""
    assert capfd.readouterr().err == "the host's own line\n"


def test_quiet_stderr(capfd, monkeypatch):
    monkeypatch.setattr(files, "stderr_is_ours", True)
    before = os.listdir("/proc/self/fd")
    with quiet_stderr() as printed:
        os.write(2, b"native noise\n")
        assert printed() == "native noise\n"
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError), quiet_stderr():
        os.write(2, b"the reason\n")
        raise RuntimeError
    assert capfd.readouterr().err == "the reason\n"
    assert os.listdir("/proc/self/fd") == before


def test_quiet_stderr_in_several_threads_gives_standard_error_back(capfd, monkeypatch):
    monkeypatch.setattr(files, "stderr_is_ours", True)

    def quiet(number):
        with quiet_stderr():
            os.write(2, b"native noise\n")
            time.sleep(0.001 * (number % 3))  # blocks of different lengths, which end in another order than they begin

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(quiet, range(40)))
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


def test_data_folder(root, tmp_path, monkeypatch):
    assert data_folder("targets") == root / "targets"
    package = tmp_path / "site" / "edgecnn"
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    with pytest.raises(FileNotFoundError, match="install it again"):
        data_folder("targets")
    (tmp_path / "site" / "targets").mkdir(parents=True)
    assert data_folder("targets") == tmp_path / "site" / "targets"
    (package / "_data" / "targets").mkdir(parents=True)
    assert data_folder("targets") == package / "_data" / "targets", "a wheel's own data come first"


SEEN = ("dög", "Katze 2", "猫", "قط", "חתול", "T-shirt/top", "👩\u200d🚀", "it's", "e\u0301", "a\u00a0b")


def test_ordinary_text_is_shown_unmodified():
    for text in SEEN:
        assert printable(text) == text and why_not_a_label(text) == "", text


def test_control_characters_are_shown_as_escapes():
    for text, shown in (
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb", r"a\nb"),
        ("a\0", r"a\x00"),
        ("\x1f", r"\x1f"),
        ("\x9b2J", r"\x9b2J"),
        ("\x9f", r"\x9f"),
        ("\x7f", r"\x7f"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2028", r"\u2028"),
        ("caf\udce9", r"caf\udce9"),
        ("👩\u200d🚀\n", "👩\u200d🚀\\n"),
    ):
        assert printable(text) == shown and why_not_a_label(text), text
        shown.encode()
    assert printable_lines("one\ntwo\x1b[1A\r") == "one\ntwo\\x1b[1A\\r", "lines stay lines"


def test_a_class_has_a_name_of_at_most_255_bytes_that_is_no_decision():
    for label in ("", "abstain", "x" * 256, "é" * 128):
        assert why_not_a_label(label), label
    for label in ("abstained", "x" * 255, "é" * 127 + "x"):
        assert why_not_a_label(label) == "", label


def test_one_of_a_thing_is_singular_and_thousands_have_a_comma():
    counts = [plural(count, "picture") for count in (0, 1, 2, 1234)]
    assert counts == ["0 pictures", "1 picture", "2 pictures", "1,234 pictures"]


def test_a_librarys_error_is_shown_as_its_first_line_or_its_type():
    assert first_line(ValueError("\nno such layer\nat line 3")) == "no such layer"
    assert first_line(KeyError()) == "KeyError"


X86 = """processor\t: 0
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse2 avx2

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd atomics\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_the_first_processor_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    for text, expected in ((X86, ("AMD EPYC 7B13", {"fpu", "sse2", "avx2"})), (ARM, ("", {"fp", "asimd", "atomics"}))):
        (tmp_path / "proc" / "cpuinfo").write_text(text)
        assert read_cpu(tmp_path) == expected


def test_a_system_without_the_file(tmp_path):
    assert read_cpu(tmp_path) == ("", frozenset())


def test_no_other_module_reads_the_file(root):
    readers = [str(path) for path in (root / "edgecnn").rglob("*.py") if "/cpuinfo" in path.read_text(encoding="utf-8")]
    assert readers == [str(root / "edgecnn" / "versions.py")]
