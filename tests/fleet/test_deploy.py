"""A deployment: its plan, its steps, and its result."""

import contextlib
import functools
import io
import json
import os
import shlex
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("tuf", reason="releases need the release extra")

from edgecnn.boards import UPDATE_SCHEMA
from edgecnn.errors import ReleaseError
from edgecnn.files import sha256
from edgecnn.fleet import ssh
from edgecnn.fleet.deploy import PUT_FILES, SERVICE, File, Plan, deploy, tar
from edgecnn.fleet.ssh import MAX_ANSWER_BYTES, BoardError, Sessions, last_line, on_each, unreachable
from edgecnn.fleet.status import REPOSITORY, ask_status, look
from edgecnn.runtime.child import Finished

MOST_BYTES = 10_000
"""Most bytes that a command may exchange with a board that has everything."""

HANDSHAKE_BYTES = 10_000
"""Bytes that ssh itself needs for a connection; 7,500 were seen."""


@pytest.fixture
def deployed(edgecnn):
    """Deploy to some boards, and return the exit code and the outcome on each."""

    def deploy(*arguments):
        done = edgecnn("deploy", *arguments, "--json")
        return done.code, {line["host"]: line for line in map(json.loads, done.out.splitlines())}

    return deploy


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
@pytest.mark.slow
def test_five_boards_three_of_which_fail(boards, release, deployed, edgecnn, tmp_path):
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

    code, first = deployed(*names)
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
    code, again = deployed("door", "gate")
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
    code, last = deployed(*names)
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


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
def test_a_user_without_root_and_an_unknown_host_key(boards, release, deployed):
    release("photos", 1)
    boards.make("door", user="guest")
    boards.make("gate")
    (boards.folder / "known").write_text("")
    boards.trust("door")
    code, done = deployed("door", "gate", "elsewhere.invalid")
    assert code == 22
    assert {name: outcome["problem"] for name, outcome in done.items()} == {
        "door": "sudo needs a password there. Allow it without one (NOPASSWD), or connect as root",
        "gate": "this machine does not know its host key. Connect once by hand, and compare it: ssh gate",
        "elsewhere.invalid": "no machine has this name",
    }


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
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


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
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


def test_a_board_that_trusts_another_repository_is_left_alone(edgecnn, release, tmp_path):
    from edgecnn.fleet.deploy import ROOT, UPDATE, Offer, Plan, Wheels
    from edgecnn.fleet.ssh import BoardError
    from edgecnn.fleet.status import Look

    release("photos", 1)
    first = tmp_path / "releases/metadata/1.root.json"
    assert edgecnn("release", "rotate", "root-1").code == 0
    plan = Plan(software=Wheels(), offer=Offer(tmp_path / "releases"))
    newest = plan.configuration(Look())[ROOT]
    assert newest != first.read_bytes() and newest == (tmp_path / "releases/metadata/2.root.json").read_bytes()
    old = Look(hashes={ROOT: sha256(first.read_bytes())}, source='"https://models.example.org/"')
    assert plan.configuration(old) == {UPDATE: b'from = "https://models.example.org/"\nchannel = "door"\n'}
    other = Look(hashes={ROOT: sha256(b"another")})
    with pytest.raises(BoardError, match=r"root\.json there belongs to another repository\. .*--replace-root"):
        plan.configuration(other)
    assert Plan(**{**vars(plan), "replace_root": True}).configuration(other)[ROOT] == newest

    next((tmp_path / "releases/targets/door").iterdir()).write_bytes(b"half")
    with pytest.raises(ReleaseError, match=r"photos-1\.edgecnn is missing or damaged"):
        Offer(tmp_path / "releases")

    # a server's folder that was replaced by another repository
    (tmp_path / "releases").rename(tmp_path / "ours")
    assert edgecnn("release", "init", "theirs").code == 0
    (tmp_path / "theirs").rename(tmp_path / "releases")
    with pytest.raises(ReleaseError, match="--repo"):
        Offer(tmp_path / "releases")


def test_a_board_gets_the_newest_release_for_all_those_after_it_and_no_file_that_it_has(edgecnn, release, tmp_path):
    """Of five releases, the second and the third are for all boards, the fourth for a pilot, and the fifth is stopped."""
    from edgecnn.fleet.deploy import REPOSITORY, ROOT, UPDATE, File, Offer, Plan, Wheels, bring
    from edgecnn.fleet.status import Look

    pilot, other = "a" * 32, "b" * 32
    for serial in (1, 2, 3):
        release("photos", serial)
    for serial in (4, 5):
        release("photos", serial)
        assert edgecnn("release", "share", "door", 0, *(("--pilot", pilot) if serial == 4 else ())).code == 0
    assert edgecnn("release", "stop", "door").code == 0
    plan = Plan(software=Wheels(), offer=Offer(tmp_path / "releases"))

    def serials(board):
        names = [path for path in plan.offer.files(board) if "/targets/door/" in path]
        return sorted(name.removesuffix(".edgecnn").rpartition("-")[2] for name in names)

    assert (serials(pilot), serials(other), serials("")) == (["3", "4"], ["3"], ["3", "4"])

    class Scripted:
        def must(self, what, script, stdin=b""):
            self.script, self.sent = script, stdin

    kept = plan.offer.files(other)
    old = f"{REPOSITORY}/targets/door/0123.photos-2.edgecnn"
    has = {path: source.sha256 for path, source in kept.items()} | {ROOT: "1" * 64, UPDATE: "2" * 64, old: "3" * 64}
    stale = f"{REPOSITORY}/metadata/timestamp.json"
    board = Scripted()
    assert not bring(board, Look(board=other, hashes=has), plan, {}) and board.script == f"rm -f {old}\n", (
        "no option of its own"
    )
    brought = bring(board, Look(board=other, hashes=has | {stale: "4" * 64}), plan, {UPDATE: b"from = 1"})
    assert set(brought) == {stale, UPDATE}
    with tarfile.open(fileobj=io.BytesIO(board.sent)) as archive:
        modes = {entry.name: oct(entry.mode) for entry in archive}
        assert modes == {stale.lstrip("/"): "0o644", UPDATE.lstrip("/"): "0o600"}
    assert isinstance(kept[stale], File) and board.script.endswith(f"rm -f {old}\n")


SEEN = f"""machine aarch64
bits 64
libc glibc 2.36
python 3.11
architecture arm64
package installed 1.2-3
packed {"1" * 64}
link /opt/edgecnn-versions/0123456789ab
wheels wheels-a wheels-b
board {"f" * 32}
source "https://models.example.org/"
hashes 
{"2" * 64}  {SERVICE}
{"3" * 64}  {REPOSITORY}/targets/door/4.a b.edgecnn
"""  # noqa: W291

STATUS = {"schema": UPDATE_SCHEMA, "channel": "door", "in_use": {"name": "cats", "serial": 7, "state": "good"}}


class Scripted:
    """A board that answers a look with `seen`, and an update or a question for its status with an exit code and a text."""

    def __init__(self, seen=SEEN, code=0, out=json.dumps(STATUS), err=""):
        self.answer, self.seen, self.done = Finished(code, out, err), seen, []
        self.sent, self.received = 1200, 34

    def run(self, script, stdin=b"", *, limit_s=900):
        return Finished(0, self.seen, "") if "uname -m" in script else self.answer

    def must(self, what, script, stdin=b""):
        self.done.append(what)
        return ""

    @contextlib.contextmanager
    def connect(self, host):
        yield self


def test_a_look_at_a_board_gives_each_line_its_field_and_each_file_its_hash(here, monkeypatch):
    seen = look(Scripted())
    assert (seen.machine, seen.bits, seen.libc, seen.python) == ("aarch64", "64", "glibc 2.36", "3.11")
    assert (seen.architecture, seen.package, seen.packed) == ("arm64", "installed 1.2-3", "1" * 64)
    assert (seen.link, seen.wheels) == ("/opt/edgecnn-versions/0123456789ab", "wheels-a wheels-b")
    assert (seen.board, seen.source) == ("f" * 32, '"https://models.example.org/"')
    assert (seen.foreign, seen.systemd) == ("", "")
    assert seen.hashes == {SERVICE: "2" * 64, f"{REPOSITORY}/targets/door/4.a b.edgecnn": "3" * 64}
    bare = look(Scripted("machine x86_64\nlibc \nsystemd yes\nhashes \n"))
    assert (bare.machine, bare.libc, bare.systemd, bare.hashes) == ("x86_64", "", "yes", {})
    for text in ("", "machine aarch64\n", "login shell of a router\nhashes \n"):
        with pytest.raises(BoardError):
            look(Scripted(text))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    real = look(here())
    assert real.machine == os.uname().machine and real.bits in ("32", "64")


def plan(installs="", options=None, **files):
    """A plan whose offer has these files, and whose software installs something or nothing."""
    offered = {f"{REPOSITORY}/{name}": File(Path(os.devnull), digest) for name, digest in files.items()}
    offer = SimpleNamespace(channel="door", roots=[b"root"], files=lambda board: offered)
    software = SimpleNamespace(install=lambda board, seen: installs)
    return Plan(software=software, offer=offer, options=options)


def test_the_service_is_started_again_only_after_a_change_that_it_reads():
    """Each board needs root.json and update.toml, which are of no concern to a running service."""
    started, running = "starting the service", SEEN.replace("hashes", "systemd yes\nservice active\nhashes")
    stopped = running.replace("service active", "service failed")

    def steps(seen, given, warning=""):
        board, shown = Scripted(seen), []
        outcome = deploy("pi", given, board, lambda *step: shown.append(step))
        assert (
            not outcome.problem
            and warning in outcome.warning
            and bool(warning) == bool(outcome.warning)
            and outcome.status == STATUS
            and (outcome.sent_bytes, outcome.received_bytes) == (1200, 34)
        )
        assert shown == [
            ("pi", "connected"),
            *([("pi", f"installed {outcome.installed}")] if outcome.installed else []),
        ]
        return board.done, outcome.installed, outcome.files

    assert steps(running, plan()) == (["writing files"], "", 2)
    assert steps(running, plan(options=b"max-fps = 5\n", one="1" * 64, two="2" * 64)) == (
        ["writing files", started],
        "",
        5,
    )
    assert steps(running, plan("1.2 for x")) == (["writing files", started], "1.2 for x", 2)
    assert steps(stopped, plan()) == (["writing files", started], "", 2), "an earlier deploy failed before it ran"
    bare = steps(SEEN, plan("1.2 for x", options=b""), "no systemd, so nothing runs the model there")
    assert bare == (["writing files"], "1.2 for x", 3)


def test_a_failed_update_is_the_boards_problem_and_names_its_last_line():
    """What was done before is still reported."""
    board = Scripted(code=1, err="checking\nno release is for this board\n\n")
    outcome = deploy("pi", plan("1.2 for x"), board, lambda *step: None)
    assert outcome.problem.endswith("failed: no release is for this board") and outcome.status is None
    assert (outcome.installed, outcome.files, outcome.sent_bytes) == ("1.2 for x", 2, 1200)
    killed = deploy("pi", plan(), Scripted(code=3), lambda *step: None)
    assert killed.problem.endswith("failed: exit code 3")
    never = deploy("pi", plan(), Scripted(out="null"), lambda *step: None)
    assert never.problem and never.files == 2
    for one, problem in ((Scripted(), ""), (board, "no release is for this board"), (Scripted(code=3), "exit code 3")):
        found = ask_status("pi", one)
        assert found.host == "pi" and found.problem.endswith(problem) and bool(found.status) != bool(problem)


def test_files_arrive_with_the_timestamp_last_and_a_broken_transfer_changes_nothing(here, root_folder, monkeypatch):
    repository, log, program = root_folder / "repository", root_folder / "log", root_folder / "bin" / "mv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "${{2##*/}}" >> {log}\nexec /bin/mv "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    names = ("metadata/timestamp.json", "metadata/9.root.json", "metadata/12.snapshot.json", "targets/door/b.edgecnn")
    archive = tar({f"{repository}/{name}".lstrip("/"): name.encode() for name in names})
    script = PUT_FILES.format(repository=repository)
    board = here()
    board.must("writing", script, archive)
    assert log.read_text().split() == ["b.edgecnn", "12.snapshot.json", "9.root.json", "timestamp.json"]
    written = {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    assert written == {name: name.encode() for name in names}
    with pytest.raises(BoardError):
        board.must("writing", script, archive[:700])
    assert len(log.read_text().split()) == 4 and sorted(path.name for path in repository.iterdir()) == [
        "metadata",
        "targets",
    ]


def test_a_step_gives_its_answer_its_bytes_add_up_and_its_failure_has_a_reason(here, tmp_path):
    board = here()
    (tmp_path / "file").write_bytes(b"x" * 5000)
    done = board.run("cat; echo no >&2; exit 3", tmp_path / "file")
    assert (done.code, len(done.out), done.err, board.received) == (3, 5000, "no\n", 5003)
    assert 5000 < board.sent < 5300
    before = board.sent
    assert board.run("cat", b"abc").out == "abc" and board.received == 5006 and 3 < board.sent - before < 300
    assert board.must("a step", "echo fine; echo No space left on device >&2").strip() == "fine", "it did not fail"
    for script, ending in (
        ("echo first; echo second >&2; exit 1", "a step failed: second"),
        ("echo first; echo last; exit 1", "a step failed: last"),
        ("exit 4", "a step failed: exit code 4"),
        ("echo No space left on device >&2; exit 1", "disk is full. Free some space there"),
        ("exit 255", "the connection broke"),
        (f"head -c {MAX_ANSWER_BYTES} /dev/zero >&2", "more than 1,048,576 bytes"),
        (f"sleep 30 >&2 & head -c {2 * MAX_ANSWER_BYTES} /dev/zero; sleep 30", "more than 1,048,576 bytes"),
    ):
        began = time.monotonic()
        with pytest.raises(BoardError) as caught:
            board.must("a step", script)
        assert str(caught.value).endswith(ending) and time.monotonic() - began < 15, script
    assert len(board.run(f"head -c {MAX_ANSWER_BYTES - 1} /dev/zero").out) == MAX_ANSWER_BYTES - 1
    for script in ("exec sleep 30", "sleep 30 & sleep 30", "exec >&- 2>&-; exec sleep 30"):
        began = time.monotonic()
        with pytest.raises(BoardError, match=r"longer than 0\.05 s"):
            board.run(script, limit_s=0.05)
        assert time.monotonic() - began < 15, script


def test_the_pipes_of_a_board_that_is_cut_off_are_not_waited_for(here):
    """As with ssh's master, another process has them too when the one that was started is killed."""
    flood = f"(head -c {2 * MAX_ANSWER_BYTES} /dev/zero; exec sleep 30)"
    for script in (f"{flood} & {flood} >&2", "sleep 30 & echo whole"):
        began, whole = time.monotonic(), ""
        with contextlib.suppress(BoardError), here().reading(script) as stream:
            whole = stream.read(6).decode()
            if whole != "whole\n":
                raise BoardError("it sends too much")
        assert time.monotonic() - began < 15, script
    assert whole == "whole\n"


ODD = (
    {"bad": "x"},
    {"bad": {"ab": 5}},
    {"reason": 5},
    {"age_s": 10**400},
    {"age_s": float("nan")},
    {"age_s": 1 << 63},
    {"channel": None},
    {"in_use": "cats"},
    {"more": functools.reduce(lambda inner, _: {"in": inner}, range(900))},
)
"""Parts of a status that edgecnn on a board never prints."""


@pytest.mark.parametrize("work", [lambda host, board: deploy(host, plan(), board, lambda *step: None), ask_status])
def test_a_board_with_an_odd_status_fails_and_the_others_go_on(work):
    boards = {f"odd{number}": Scripted(out=json.dumps({**STATUS, **odd})) for number, odd in enumerate(ODD)}
    boards["good"] = Scripted()
    found = {outcome.host: outcome for outcome in on_each(boards, 3, lambda host: work(host, boards[host]), bool)}
    assert found.keys() == boards.keys()
    for host, outcome in found.items():
        assert (outcome.status == STATUS) == (host == "good") == (not outcome.problem), host
        assert "an unexpected answer there" in outcome.problem or host == "good"


def test_after_the_end_of_all_sessions_no_further_step_runs(here, tmp_path):
    board = here()
    board.run("true")
    board._sessions.stop()
    with pytest.raises(BoardError, match="stopped"):
        board.run(f"touch {tmp_path}/step")
    assert not (tmp_path / "step").exists()


def test_a_host_whose_name_is_too_long_for_a_command_line_is_a_problem_of_that_board():
    with Sessions() as sessions:
        sessions.program = "/bin/true"
        assert "cannot be started" in ask_status("a" * 200_000, sessions).problem


def test_a_connection_that_opens_late_is_used_and_one_that_never_opens_is_given_up(program, monkeypatch):
    with Sessions() as sessions:
        sessions.program = program("late", 'until [ "$1" = -S ]; do shift; done; sleep 0.2; touch "$2"; exec sleep 60')
        with sessions.connect("late") as board:
            assert board.host == "late"
        monkeypatch.setattr(ssh, "OPEN_S", 0.2)
        sessions.program = program("never", "exec sleep 60")
        with pytest.raises(BoardError, match=r"no connection within 0\.2 s"), sessions.connect("never"):
            raise AssertionError


def test_each_reason_for_no_connection_has_its_own_words():
    said = {
        "changed": "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ECDSA key in /home/me/known:12\n",
        "key": "No ED25519 host key is known for door.\nHost key verification failed.",
        "denied": "pi@door: Permission denied (publickey).",
        "name": "ssh: Could not resolve hostname door: Name or service not known",
        "refused": "ssh: connect to host door port 22: Connection refused",
        "silent": "ssh: connect to host door port 22: No route to host",
        "closed": "kex_exchange_identification: Connection closed by remote host",
        "other": "first\nsomething else",
    }
    meant = {kind: unreachable("door", text) for kind, text in said.items()}
    assert len(set(meant.values())) == len(said)
    assert "in /home/me/known, line 12." in meant["changed"] and meant["other"] == "ssh says: something else"
    assert [kind for kind in said if meant[kind].endswith(": ssh door")] == ["key", "denied"]
    assert unreachable("door", "ssh: connect to host door: Connection timed out") == meant["silent"]
    assert last_line("a\n b \n\n") == " b" and last_line("") == "" and len(last_line("x" * 301)) == 300


def test_no_more_boards_than_requested_are_worked_on_at_a_time():
    threads, both = set(), threading.Barrier(2, timeout=30)

    def work(host):
        threads.add(threading.get_ident())
        both.wait()  # each needs another one next to it
        return host

    assert sorted(on_each("abcdef", 2, work, bool)) == list("abcdef") and len(threads) == 2
