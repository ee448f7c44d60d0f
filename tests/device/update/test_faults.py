"""An update survives power cuts, slow servers and mutated metadata.

Three boards run in separate processes. One gets changes made without a key. One gets changes signed by a thief with the targets and online
keys, which must not crash it. The third checks no signatures, to prove that this test notices.
"""

import copy
import dataclasses
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="releases are signed with the release extra")
pytest.importorskip("tuf", reason="updates need the update extra")

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.device.slots.record import Disk
from edgecnn.device.slots.store import approve, choose_for_start
from edgecnn.device.update import client
from edgecnn.errors import EdgeCNNError, UpdateError
from edgecnn.release import operations
from edgecnn.release.keys import Keys
from edgecnn.release.repository import Repository
from edgecnn.runtime.default import shipped_bundle
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")

spec = importlib.util.spec_from_file_location("lossy", Path(__file__).parents[1] / "slots/lossy.py")
lossy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lossy)


class Walk:
    """A board before an update, the old and the new repository, and the steps of the update on its disk."""

    def __init__(self, repository, make_board, bundles, tmp_path, first):
        self.top, self.repository = tmp_path / "top", repository
        self.board = make_board("top/board")
        (self.board.board.prefix / "var/lib").mkdir(parents=True)
        self.old_model = None
        if not first:
            self.old_model = repository.add(bundles[1], 1)
            self.board.update(repository.folder)
            choose_for_start(self.board.store)
            approve(self.board.store, self.old_model)
        self.old = repository.copied(tmp_path / "old")
        self.new_model = repository.add(bundles[2], 2)
        self.before = lossy.load(self.top)
        disk = lossy.Recorder(self.top)
        self.at(self.top, disk=lambda folder: disk).update(repository.folder)
        self.steps = disk.done
        assert self.board.current == self.new_model

    def at(self, top, **settings):
        """Return the board from another folder."""
        return self.board._replace(board=replace(self.board.board, prefix=top / "board", **settings))

    def flaw(self, top):
        """Start after a power cut and return the fault; "" if the old or the new model answers and no older repository is accepted."""
        board = self.at(top)
        choice = choose_for_start(board.store)
        if choice.problems:
            return choice.problems[0]
        model = choice.release
        if model not in (self.old_model, self.new_model):
            return f"{model} is in use"
        try:
            taken = board.update(self.old)
        except UpdateError as error:
            if "the metadata is older" not in str(error):
                return str(error)
        else:
            if model == self.new_model:
                return "an older repository is taken while the new model is in use"
            if taken.installed and self.old_model:
                return "an older model was installed"
        if board.current != model and self.old_model:
            return "an older repository has changed the model"
        if not (model == self.new_model or board.update(self.repository.folder).installed):
            return "the update does not end well"
        return "" if board.current == self.new_model and board.store.whole(self.new_model) else "the new model is lost"


@pytest.fixture
def walk(repository, make_board, bundles, tmp_path):
    return lambda first=False: Walk(repository, make_board, bundles, tmp_path, first)


@pytest.mark.parametrize(
    ("first", "every"),
    [(False, 4), pytest.param(False, 1, marks=pytest.mark.guard), pytest.param(True, 1, marks=pytest.mark.guard)],
)
def test_every_power_cut_leaves_old_or_new_and_no_older_repository_after_it(walk, tmp_path, first, every):
    walk, seen, cuts = walk(first), set(), 0
    for _, left in lossy.cuts(walk.before, walk.steps):
        cuts += 1
        key = json.dumps(left, default=bytes.hex, sort_keys=True)
        if key in seen or (len(seen) % every and seen.add(key) is None):
            continue
        seen.add(key)
        top = tmp_path / f"cut{cuts}"
        lossy.restore(left, top)
        assert walk.flaw(top) == "", walk.steps[: cuts + 1]
        shutil.rmtree(top)
    print(f"{len(walk.steps)} steps, {cuts} cuts, {len(seen)} that differ")
    assert cuts > len(walk.steps) > 15


@pytest.mark.guard
def test_each_sync_of_what_is_trusted_is_needed(walk, tmp_path):
    """Without any one of them, the same walk finds a cut that causes a fault."""
    walk = walk()
    named = [number for number, step in enumerate(walk.steps) if step[0] == "sync" and "edgecnn-trust" in str(step[1])]
    first = next(number for number, step in enumerate(walk.steps) if "releases" in str(step[1]))
    needed = [number for number in named if number < first]  # before the model changes
    assert len(needed) == 2
    numbers = itertools.count()
    for left_out in needed:
        fewer = walk.steps[:left_out] + walk.steps[left_out + 1 :]
        for number, left in lossy.cuts(copy.deepcopy(walk.before), fewer):
            if number >= left_out:
                top = tmp_path / f"fewer{next(numbers)}"
                lossy.restore(left, top)
                if walk.flaw(top):
                    break
        else:
            pytest.fail(f"nothing is lost without {walk.steps[left_out]}")


class Killer(Disk):
    """A disk whose process is killed before its nth change; `left` counts down."""

    left = 0

    def counted(name):
        def method(self, *arguments):
            Killer.left -= 1
            if Killer.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return getattr(Disk, name)(self, *arguments)

        return method

    make_folder, write, sync, rename, remove = map(counted, ("make_folder", "write", "sync", "rename", "remove"))


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.guard)])
def test_kill_9_before_every_write(walk, tmp_path, every):
    walk = walk()
    for number in range(0, len(walk.steps), every):
        top = tmp_path / f"kill{number}"
        lossy.restore(lossy.now(walk.before), top)
        child = os.fork()
        if child == 0:
            Killer.left = number
            walk.at(top, disk=Killer).update(walk.repository.folder)
            os._exit(0)
        _, ended = os.waitpid(child, 0)
        assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
        board = walk.at(top)
        assert choose_for_start(board.store).release in (walk.old_model, walk.new_model)
        board.update(walk.repository.folder)
        assert board.current == walk.new_model
        shutil.rmtree(top)


@pytest.mark.guard
@pytest.mark.parametrize("number", range(5))
def test_kill_9_at_every_request(repository, board, bundles, serve, spawn, number):
    """The whole process is killed, including the one that fetches; the second attempt succeeds."""
    server = serve(repository.folder)
    board.update(repository.folder)
    repository.publish("root")
    new = repository.add(bundles[1], 1)
    command = [sys.executable, "-m", "edgecnn", "update", "--prefix", board.board.prefix, "--channel", "door", "--from"]
    process = spawn([*map(str, command), server.address])
    server.before = lambda handler: len(server.requests) > number and os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    server.before = None
    board.update(server.address)
    assert board.current == new


@pytest.mark.parametrize("step", [1000, pytest.param(37, marks=pytest.mark.guard)])
@pytest.mark.usefixtures("in_this_process")
def test_a_connection_cut_after_every_byte(repository, board, bundles, serve, step):
    server = serve(repository.folder)
    old = repository.add(bundles[1], 1)
    board.update(server.address)
    new = repository.add(bundles[2], 2)
    tries = 0
    for left in itertools.count(0, step):
        tries += 1
        server.left = left
        try:
            board.update(server.address)
        except EdgeCNNError:
            assert board.current == old
        else:
            break
    assert board.current == new and tries > 2, "parts add up: the bundle need not arrive in one piece"


LONGEST_S = 10
"""Far more than the deadline below, and far less than what the server would like."""


@pytest.fixture
def hurried(monkeypatch):
    """A board that waits for a second, not for 30."""
    monkeypatch.setattr(client, "TIMEOUT_S", 1.0)


class Delay:
    """The ways in which a server can delay an answer. `over` ends them."""

    def __init__(self):
        self.over = threading.Event()

    def later(self, value, status=503, location=""):
        """Say that the board may try again later, or elsewhere later."""

        def answer(handler):
            handler.send_response(status)
            handler.send_header("Retry-After", value)
            if location:
                handler.send_header("Location", handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            raise ConnectionResetError  # nothing else is sent

        return answer

    def dripping(self, what):
        """Send the headers, or a chunked body, so slowly that no timeout of a socket ever ends it."""

        def answer(handler):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            handler.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n1;" if what == "body" else b"X-A: ")
            while not self.over.wait(0.1):
                handler.wfile.write(b"a")
            raise ConnectionResetError

        return answer


@pytest.fixture
def delay():
    made = Delay()
    yield made
    made.over.set()


@pytest.mark.usefixtures("in_this_process", "hurried")
@pytest.mark.parametrize(
    "how",
    [
        lambda delay: delay.later("3600"),
        lambda delay: delay.later("Fri, 31 Dec 2099 23:59:59 GMT"),
        lambda delay: delay.later("9" * 5000),
        lambda delay: delay.later("3600", 302, "again"),
        lambda delay: delay.dripping("headers"),
        lambda delay: delay.dripping("body"),
    ],
    ids=["an hour", "2099", "5000 digits", "a redirect in an hour", "headers", "body"],
)
def test_no_server_holds_a_board_longer_than_a_files_deadline(
    repository, board, bundles, serve, delay, how, monkeypatch, request
):
    if request.node.callspec.id in ("headers", "body"):  # the others must end by their number of attempts
        monkeypatch.setattr(client, "SLOWEST_BYTES_PER_S", 1e9)
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    server = serve(repository.folder)
    server.handle_error = lambda *arguments: None
    server.before = how(delay)
    started = time.monotonic()
    with pytest.raises(UpdateError, match=r"2\.root\.json"):
        board.update(server.address)
    assert time.monotonic() - started < LONGEST_S and board.current == old
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "the deadline is still set"


@pytest.mark.usefixtures("in_this_process")
def test_a_board_comes_back_when_the_server_says(repository, board, bundles, serve, delay):
    """A server that is busy for a second gets a second request, and no error."""
    digest = repository.add(bundles[1], 1)
    server = serve(repository.folder)
    server.handle_error = lambda *arguments: None
    server.before = lambda handler: delay.later("1")(handler) if len(server.requests) == 1 else None
    started = time.monotonic()
    board.update(server.address)
    assert board.current == digest and 1 <= time.monotonic() - started < LONGEST_S
    assert [path for path, _ in server.requests[:2]] == ["/metadata/2.root.json"] * 2


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_an_update_that_is_killed_while_it_waits_leaves_no_process_and_no_lock(
    repository, board, bundles, serve, spawn, delay, by
):
    repository.now = board.clocks.now = datetime.now(UTC).replace(microsecond=0)
    new = repository.add(bundles[1], 1)
    server = serve(repository.folder)
    begun = threading.Event()

    def wait(handler):
        begun.set()
        delay.over.wait()

    server.before = wait
    command = [sys.executable, "-m", "edgecnn", "update", "--prefix", board.board.prefix, "--channel", "door", "--from"]
    process = spawn([*map(str, command), server.address])
    assert begun.wait(60), "it never asked the server"
    os.kill(process.pid, by)  # only this one, and not the process that fetches for it
    process.wait()
    server.before = None
    board.update(repository.folder)
    deadline = time.monotonic() + LONGEST_S
    while True:
        try:
            board.update(server.address)
            break
        except UpdateError as error:
            assert "earlier fetch" in str(error) and time.monotonic() < deadline, error
            time.sleep(0.1)
    assert board.current == new


BOARD = Path(__file__).with_name("mutated_board.py")
PASSPHRASE = "five words of a test"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder with a repository's state before and after a release and a new root, and its keys."""
    folder = tmp_path_factory.mktemp("repositories")
    repository, keys = Repository(folder / "after"), Keys([folder / "keys"], lambda name, new: PASSPHRASE)
    operations.init(repository.folder, keys)
    shipped = read_bundle(shipped_bundle())
    for number in (1, 2):
        numbered = folder / f"{number}.edgecnn"
        write_bundle(numbered, dataclasses.replace(shipped.manifest, serial=number), dict(shipped.files))
        operations.add(
            repository, keys, read_bundle(numbered), operations.Offer(channel="door", share=100, accepted="a test")
        )
        if number == 1:
            shutil.copytree(repository.folder, folder / "before")
            operations.refresh(repository, keys, "root")
    return folder


@pytest.mark.parametrize("n", [40, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options", [(), ("--signed",), ("--trusting",)], ids=["without a key", "by a thief", "unchecked"]
)
def test_changed_files_are_refused_and_a_board_that_checks_nothing_is_deceived(repositories, options, n):
    n = n if options == () else max(50, n // 4)
    command = [sys.executable, BOARD, repositories, "--n", str(n), "--seed", "7", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["crashed"] == 0 and result["peak_mib"] < 100, result
    if "--trusting" in options:
        assert result["accepted"] > 0
    else:
        assert result["accepted"] == 0 and result["refused"] > n / 2, result
