"""`edgecnn deploy` to five ssh servers: the first time, again, and with a failure on one while the others continue."""

import json
import shlex

import pytest

pytestmark = pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")

MOST_BYTES = 10_000
"""Most bytes that a command may exchange with a board that has everything."""

HANDSHAKE_BYTES = 10_000
"""Bytes that ssh itself needs for a connection; 7,500 were seen."""


@pytest.fixture
def deploy(edgecnn):
    """Deploy to some boards, and return the exit code and the outcome on each."""

    def deploy(*arguments):
        done = edgecnn("deploy", *arguments, "--json")
        return done.code, {line["host"]: line for line in map(json.loads, done.out.splitlines())}

    return deploy


@pytest.mark.slow
def test_five_boards_three_of_which_fail(boards, release, deploy, edgecnn, tmp_path):
    release("photos", 1)
    boards.make("door")
    boards.make("gate", user="pi")
    boards.make("barn", size="60m")
    boards.make("shed")
    boards.make("yard")
    boards.off("shed")
    known = boards.new_key("shed")
    boards.on("shed")
    boards.off("yard")
    names = ("door", "gate", "barn", "shed", "yard")

    code, first = deploy(*names)
    assert code == 22
    assert {name: first[name]["problem"] for name in names} == {
        "door": "",
        "gate": "",
        "barn": "its disk is full. Free some space there",
        "shed": f"its host key is not the one in {boards.folder}/known, line 4. If the board was reinstalled, remove that line; if not, "
        "another machine is answering under its name",
        "yard": "it is on the network, but no ssh server answers there",
    }  # fmt: skip
    assert all(serial_in_use(first[name]) == 1 and first[name]["installed"] for name in ("door", "gate"))
    assert boards.run("barn", "ls -A /opt/edgecnn-versions /var/tmp") == "/opt/edgecnn-versions:\n\n/var/tmp:\n"

    assert (
        boards.run("gate", "stat -c '%a %U' /etc/edgecnn/update.toml /etc/edgecnn/root.json") == "600 root\n644 root\n"
    )
    for name in names:
        boards.counted(name)
    code, again = deploy("door", "gate")
    assert code == 0
    for name in ("door", "gate"):
        payload = again[name]["sent_bytes"] + again[name]["received_bytes"]
        assert (again[name]["installed"], again[name]["files"]) == ("", 0)
        assert payload < MOST_BYTES and boards.counted(name) < payload + HANDSHAKE_BYTES

    release("photos", 2)
    known()
    boards.on("yard")
    boards.run("barn", "mount -o remount,size=300m /")
    boards.run("door", "sed -i 's#^from = .*#from = \"https://models.example.org/\"#' /etc/edgecnn/update.toml")
    code, last = deploy(*names)
    assert boards.run("door", "cat /etc/edgecnn/update.toml").startswith('from = "https://models.example.org/"\n')
    assert code == 0 and [serial_in_use(last[name]) for name in names] == [2] * 5
    assert [last[name]["installed"] != "" for name in names] == [False, False, True, True, True]
    copy = boards.run("door", "cd /var/lib/edgecnn-deploy; find . -type f").split()
    assert len(copy) == 5 and [name[-17:] for name in copy if "targets/" in name] == [".photos-2.edgecnn"], (
        "old files stay"
    )

    (tmp_path / "boards.txt").write_text("\n".join(names))
    boards.off("yard")
    asked = edgecnn("release", "status", "--hosts", "boards.txt")
    assert asked.code == 22 and asked.out.count("photos serial 2 pending") == 4
    assert asked.out.splitlines()[6].endswith("it is on the network, but no ssh server answers there")
    gathered = json.loads(edgecnn("release", "status", "--hosts", "boards.txt", "--json").out)
    assert [board["host"] for board in gathered] == list(names) and serial_in_use(gathered[0]) == 2


def serial_in_use(outcome):
    return outcome["status"]["in_use"]["serial"]


def test_a_user_without_root_and_an_unknown_host_key(boards, release, deploy):
    release("photos", 1)
    boards.make("door", user="guest")
    boards.make("gate")
    (boards.folder / "known").write_text("")
    boards.trust("door")
    code, done = deploy("door", "gate", "elsewhere.invalid")
    assert code == 22
    assert {name: outcome["problem"] for name, outcome in done.items()} == {
        "door": "sudo needs a password there. Allow it without one (NOPASSWD), or connect as root",
        "gate": "this machine does not know its host key. Connect once by hand, and compare it: ssh gate",
        "elsewhere.invalid": "no machine has this name",
    }


def test_a_boards_output_is_hostile(boards, edgecnn, tmp_path):
    boards.make("door")
    (tmp_path / "boards.txt").write_text("door\n")
    slot = {"name": "\x1b[2J", "serial": 1, "state": "good"}
    status = json.dumps({"schema": "edgecnn.update/1", "channel": "door", "in_use": slot, "age_s": 7200})
    answers = (
        ("yes", 22, "it answers with more than 1,048,576 bytes"),
        ("echo null", 22, "it has not looked for a release yet"),
        ("echo '[[[['", 22, "edgecnn update status gave an unexpected answer there"),
        ('echo \'{"schema": "edgecnn.update/9"}\'', 22, "unexpected answer there: schema 'edgecnn.update/9'"),
        ("echo broken >&2; exit 3", 22, "edgecnn update status failed: broken"),
        (f"echo {shlex.quote(status)}", 0, "\\x1b[2J serial 1 good"),
    )
    programs = "\n".join(f"{number}) {program};;" for number, (program, *_) in enumerate(answers))
    count = "n=$(cat /tmp/n || echo 0); echo $((n + 1)) > /tmp/n"
    script = shlex.quote(f"#!/bin/sh\n{count}\ncase $n in\n{programs}\nesac\n")
    boards.run("door", f"mkdir -p /usr/local/bin; cd /usr/local/bin; printf %s {script} > edgecnn; chmod 755 edgecnn")
    for _, code, said in answers:
        asked = edgecnn("release", "status", "--hosts", "boards.txt")
        assert asked.code == code and said in asked.out and "\x1b" not in asked.out, asked.out


def test_an_invalid_repository_and_wrong_options_reach_no_board(edgecnn, release, tmp_path):
    release("photos", 1)
    (tmp_path / "service.toml").write_text("tresh = 1\n")
    for arguments, said in (
        (("--repo", tmp_path), "is not a repository of releases"),
        (("--from", "releases"), "expected an address: https://"),
        (("--channel", "gate"), "releases has no channel gate. Known: door."),
        (("--options", "service.toml"), "service.toml: unknown key tresh"),
        (("--deb", "service.toml"), "service.toml is not a Debian package"),
        (("-oProxyCommand=reboot",), "No such option"),
        (("--", "-oProxyCommand=reboot"), "is not a host"),
    ):
        done = edgecnn("deploy", "door", *arguments)
        assert done.code != 0 and said in " ".join(done.err.split()), done.err
