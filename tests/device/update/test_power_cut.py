"""A power cut at every write of an update, kill -9 at every write and request, and connections cut after any byte."""

import copy
import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgecnn.device.slots.choose import approve, choose
from edgecnn.device.slots.disk import Disk
from edgecnn.errors import EdgeCNNError, UpdateError
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
            choose(self.board.store)
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
        choice = choose(board.store)
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
        assert choose(board.store).release in (walk.old_model, walk.new_model)
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
