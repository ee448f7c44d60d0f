"""Hosts are hostile text: anything that ssh or a shell would not read as a name is refused."""

import pytest

from edgecnn.fleet.hosts import check_host, on_each, read_hosts


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
