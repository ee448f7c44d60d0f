"""Updating a board from a folder and from a server: what arrives, what stays, and the result of the last check."""

import base64
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from edgecnn import __version__
from edgecnn.bundle.channel import in_wave
from edgecnn.device.slots.record import rolled_back
from edgecnn.device.slots.store import Use, approve, choose_for_start, condemn
from edgecnn.device.update import last_check, run
from edgecnn.device.update.board import CONFIG, read_status
from edgecnn.errors import EdgeCNNError, OutputError, SlotError, UpdateError
from edgecnn.runtime.engines import is_installed

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")


def prove(board):
    """Let the release in use prove itself, as the service does."""
    choose_for_start(board.store)
    approve(board.store, board.current)


def fail(board):
    """Let the release in use go bad, as the service does."""
    condemn(board.store, board.current, "the self-test failed")


def test_a_release_arrives_and_a_quiet_poll_is_two_requests(repository, board, bundles, serve, request):
    server = serve(repository.folder)
    first = repository.add(bundles[1], 1)
    outcome = board.update(server.address)
    assert outcome.installed and board.current == first and board.store.read().pending
    found = read_status(board.board)
    assert found["reason"] is None and found["age_s"] is not None and found["in_use"]["serial"] == 1
    assert found["release"] == {"name": "photos1", "serial": 1, "number": 1, "sha256": first}
    server.requests.clear()
    request.getfixturevalue("in_this_process")
    assert board.update(server.address).note == "up to date"
    assert [path for path, _ in server.requests] == ["/metadata/2.root.json", "/metadata/timestamp.json"]
    assert not list(board.spool.glob("repository/targets/*/*")), "what is in use is not kept a second time"
    second = repository.add(bundles[2], 2)
    board.update(server.address)
    assert board.current == second
    assert not list(board.board.trust.glob("scratch*")) and not list(board.spool.glob("parts/*"))
    (spooled,) = board.spool.glob("repository/targets/*/*")
    assert spooled.name == repository.stored(second).name and not (board.spool / "scratch").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_download_resumes_where_it_was_cut(repository, board, make_bundle, serve):
    server = serve(repository.folder)
    digest = repository.add(make_bundle("photos", 1), 1)

    def tried(left):
        server.requests.clear()
        server.left = left
        with pytest.raises(UpdateError) as refused:
            board.update(server.address)
        server.left = None
        return str(refused.value)

    metadata = sum(path.stat().st_size for path in repository.folder.glob("metadata/*") if "1.root" not in path.name)
    metadata -= sum(
        (repository.folder / "metadata" / name).stat().st_size for name in ("1.targets.json", "1.snapshot.json")
    )
    assert "the connection ended after 700 bytes" in tried(metadata + 700)
    assert "the connection ended after 1,000 bytes" in tried(metadata + 300)
    assert server.requests[-1] == (
        f"/targets/{repository.stored(digest).relative_to(repository.folder / 'targets')}",
        "bytes=700-",
    )
    board.update(server.address)
    assert board.current == digest and server.requests[-1][1] == "bytes=1000-"


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_download_with_a_wrong_byte_is_discarded(repository, board, bundles, serve, ranges):
    server = serve(repository.folder)
    server.ranges = ranges
    digest = repository.add(bundles[1], 1)
    part = board.spool / "parts" / repository.stored(digest).name
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong" * 100)
    withdrawn = part.with_name(f"{'f' * 64}.photos9-9.edgecnn")
    withdrawn.touch()
    if ranges:
        with pytest.raises(UpdateError, match="not the one that was signed"):
            board.update(server.address)
        assert board.current is None and not part.exists()
    board.update(server.address)
    assert board.current == digest and not withdrawn.exists()
    second = repository.add(bundles[2], 2)  # arrived, but nobody has looked at it yet
    (part.parent / repository.stored(second).name).write_bytes(bundles[2].read_bytes())
    server.requests.clear()
    board.update(server.address)
    assert board.current == second and not [path for path, _ in server.requests if path.startswith("/targets")]


@pytest.mark.usefixtures("in_this_process")
def test_a_download_starts_over_if_a_proxy_answers_with_another_range(repository, board, bundles, serve):
    server = serve(repository.folder)
    digest = repository.add(bundles[1], 1)
    part = board.spool / "parts" / repository.stored(digest).name
    part.parent.mkdir(parents=True)
    part.write_bytes(bundles[1].read_bytes()[:100])

    def from_the_start(handler):
        if handler.headers["Range"]:
            handler.headers.replace_header("Range", "bytes=0-")

    server.before = from_the_start
    with pytest.raises(UpdateError, match="206"):
        board.update(server.address)
    assert server.requests[-1][1] == "bytes=100-"
    assert board.update(server.address).installed and board.current == digest, "the proxy is still there"


def test_a_channels_old_release_does_not_replace_a_newer_one_of_a_hand(repository, board, bundles):
    board.store.root.parent.mkdir(parents=True)
    by_hand, _ = board.store.add(bundles[3])
    board.store.activate(by_hand)
    repository.add(bundles[1], 1)
    with pytest.raises(SlotError):
        board.update(repository.folder)
    assert board.current == by_hand


def test_a_board_that_returns_to_a_channel_remembers_what_it_had_there(repository, board, bundles):
    repository.add(bundles[1], 1)
    board.update(repository.folder)
    other = repository.add(bundles[3], 3, channel="gate")
    board.update(repository.folder, "gate")
    assert not board.update(repository.folder).installed and board.current == other


def test_a_board_whose_slots_were_lost_gets_its_release_again_and_not_the_bad_one(repository, board, bundles):
    repository.add(bundles[1], 1)
    board.update(repository.folder)
    fail(board)
    good = repository.add(bundles[2], 2)
    board.update(repository.folder)
    shutil.rmtree(board.store.root)
    assert board.update(repository.folder).installed and board.current == good


def test_a_bundle_that_is_not_the_one_its_metadata_name_is_refused(repository, board, bundles):
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    repository.add(bundles[2], 3)
    with pytest.raises(
        UpdateError, match=r"photos2-3\.edgecnn contains photos2 with serial number 2, which does not match"
    ):
        board.update(repository.folder)
    assert board.current == old
    repository.add(bundles[3], 3)
    assert board.update(repository.folder).installed


def test_bad_and_withdrawn_releases_are_not_tried_again(repository, board, bundles):
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    prove(board)
    failed = repository.add(bundles[2], 2)
    board.update(repository.folder)
    fail(board)
    assert board.current == old
    assert board.update(repository.folder).why == "the self-test failed"
    found = read_status(board.board)
    assert found["held_back"] == {
        "name": "photos2", "serial": 2, "number": 2, "sha256": failed, "reason": "the self-test failed",
    }  # fmt: skip
    assert found["bad"] == {failed: "the self-test failed"}
    assert found["in_use"] == {"sha256": old, "name": "photos1", "serial": 1, "state": "good"}
    board.store.prune(2)  # the slots forget it; the board does not
    repository.add(bundles[2], 2)  # again, with its own number
    board.update(repository.folder)
    assert board.current == old
    newest = repository.add(bundles[3], 3)
    board.update(repository.folder)
    assert board.current == newest
    prove(board)
    board.store.change(rolled_back)  # someone at the board
    assert board.update(repository.folder).why == "rolled back by hand"
    assert board.current == old


def test_an_error_gives_what_happened_what_was_expected_what_to_do_and_what_stays(edgecnn, repository, board, bundles):
    """A bundle that lost a byte on its way to the server, then a timestamp of half its length, then none."""
    repository.now = datetime.now(UTC).replace(microsecond=0)
    prefix = ("--from", repository.folder, "--channel", "door", "--prefix", board.board.prefix)
    stored = repository.stored(repository.add(bundles[1], 1))
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    first = edgecnn("update", *prefix).err
    assert f"{len(whole) - 1}, expected {len(whole)}" in first and "Copy the whole repository" in first
    assert "still in use" not in first and "stays in use" in first
    stored.write_bytes(whole)
    edgecnn("update", *prefix)
    timestamp = repository.folder / "metadata/timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes()[:200])
    for do in ("Copy the whole repository", "Check the address or folder"):
        failed = edgecnn("update", *prefix)
        assert failed.code == 34 and do in failed.err and "timestamp" in failed.err
        assert f"still in use: {board.current[:12]} photos1 serial 1\n" in failed.err
        timestamp.unlink(missing_ok=True)


@pytest.mark.parametrize("forgotten", [False, True])
def test_what_came_by_hand_and_was_rolled_back_by_hand_does_not_come_back_by_itself(
    repository, board, bundles, forgotten
):
    """The hourly check must not undo a hand, even if the slots were pruned in between; the next release and a hand still can."""
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    prove(board)
    by_hand, _ = board.store.add(bundles[2], Use(accept="a test"))
    prove(board)
    board.store.change(rolled_back)
    if forgotten:
        board.store.prune(1)
    assert repository.add(bundles[2], 2) == by_hand
    for _ in range(2):
        outcome = board.update(repository.folder)
        assert (outcome.installed, outcome.note, board.current) == (False, "up to date", old)
        assert read_status(board.board)["held_back"]["reason"] == "rolled back by hand"
    (board.store.root / "current").unlink()  # a damaged record, removed
    board.store.add(bundles[1], Use())
    outcome = board.update(repository.folder)
    assert (outcome.held.sha256, outcome.why) == (by_hand, "this board has had it, and left it")
    assert board.current == old
    board.store.add(bundles[2], Use(accept="it was the lamp"))
    assert board.update(repository.folder).held is None and read_status(board.board)["held_back"] is None
    board.store.change(rolled_back)
    newest = repository.add(bundles[3], 3)
    outcome = board.update(repository.folder)
    assert (outcome.installed, outcome.held, board.current) == (True, None, newest)


def test_a_board_takes_what_the_channel_accepted_and_keeps_the_reason(repository, board, make_bundle):
    repository.add(make_bundle("photos1", 1), 1)
    board.update(repository.folder)
    prove(board)
    worse = repository.add(make_bundle("photos2", 2, verdict="refused"), 2, accepted="a new lens")
    assert board.update(repository.folder).installed
    assert board.store.read().releases[worse].accepted == "a new lens"


def test_only_a_signed_rollback_from_this_release_is_followed(repository, board, bundles):
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    new = repository.add(bundles[2], 2)
    board.update(repository.folder)
    repository.add(bundles[1], 1)
    with pytest.raises(UpdateError, match=r"1.* 2"):
        board.update(repository.folder)
    repository.add(bundles[1], 1, allow_older={"to": old, "instead_of": ["f" * 64]})
    with pytest.raises(UpdateError, match=r"1.* 2"):
        board.update(repository.folder)
    assert board.current == new and last_check(board.board.trust)["reason"]
    repository.add(bundles[1], 1, allow_older={"to": old, "instead_of": [new]})
    assert board.update(repository.folder).installed
    assert board.current == old
    repository.add(bundles[2], 2)
    assert board.update(repository.folder).installed, "the mark was lowered"


def test_a_rollback_from_a_key_thiefs_release(repository, board, bundles):
    repository.number = 2**53 - 1
    thief = repository.add(bundles[3], 3)
    board.update(repository.folder)
    assert board.current == thief
    repository.signed["targets"].targets.clear()
    repository.number = 0
    good = repository.add(bundles[1], 1, allow_older={"to": "f" * 64, "instead_of": [thief]})
    with pytest.raises(UpdateError, match="must be its own SHA-256"):
        board.update(repository.folder)
    repository.add(bundles[1], 1, allow_older={"to": good, "instead_of": [thief]})
    board.update(repository.folder)
    assert board.current == good
    newer = repository.add(bundles[2], 2)
    board.update(repository.folder)
    assert board.current == newer


def test_the_slots_keep_the_release_in_use_and_the_two_before_it(repository, board, make_bundle):
    digests = []
    for serial in range(1, 5):
        digests.append(repository.add(make_bundle(f"photos{serial}", serial), serial))
        assert board.update(repository.folder).installed
        assert board.store.read().chain == tuple(digests[-3:][::-1])
        prove(board)
    assert {path.name for path in (board.store.root / "releases").iterdir()} == set(digests[-3:])


def test_a_clock_that_is_more_than_a_minute_slow_is_behind_and_an_expired_repository_names_it(
    repository, board, bundles
):
    """It is the board's clock that is named, and the time of the check is the repository's if that is later."""
    repository.add(bundles[1], 1)
    for slow_s, clock in ((60, "ok"), (61, "behind"), (0, "ok"), (-3600, "ok")):
        board.clocks.now = repository.now - timedelta(seconds=slow_s)
        board.update(repository.folder)
        found = last_check(board.board.trust)
        checked = max(board.clocks.now, repository.now)
        assert (found["clock"], found["last_good"]) == (clock, f"{checked:%FT%TZ}")
    board.clocks.now += timedelta(days=30)
    with pytest.raises(UpdateError, match=r"has expired; this board's clock shows 2026-12-28 13:00 UTC"):
        board.update(repository.folder)
    assert last_check(board.board.trust)["last_good"] == "2026-11-28T13:00:00Z"


@pytest.mark.usefixtures("in_this_process")
def test_a_user_and_a_password_in_the_address_are_sent_and_not_written(repository, board, bundles, serve):
    repository.add(bundles[1], 1)
    server, seen = serve(repository.folder), set()
    server.before = lambda handler: seen.add((handler.headers["Authorization"], handler.headers["User-Agent"]))
    address = server.address.replace("://", "://ann:p%40ss@")
    assert board.update(f"{address}/").installed
    assert seen == {(f"Basic {base64.b64encode(b'ann:p@ss').decode()}", f"edgecnn/{__version__}")}
    with pytest.raises(UpdateError, match=r"^the server answered 404 for timestamp\.json\. Check"):
        board.update(f"{address}/nowhere")
    written = [path.read_text(errors="replace") for path in board.board.prefix.rglob("*.json")]
    assert not any("p%40ss" in text or "p@ss" in text for text in written)


def test_the_root_of_trust_has_at_most_128_kib(repository, board, bundles):
    digest = repository.add(bundles[1], 1)
    path = board.board.prefix / "etc/edgecnn/root.json"
    whole = path.read_bytes()
    for size, accepted in ((131_073, False), (131_072, True)):
        path.write_bytes(whole.ljust(size))
        if not accepted:
            with pytest.raises(UpdateError, match="more than 131,072 bytes"):
                board.update(repository.folder)
        else:
            board.update(repository.folder)
        assert (board.current == digest) == accepted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_each_user_fetches_to_a_folder_of_its_own_and_root_follows_no_link(board, monkeypatch, tmp_path):
    """In turn: without the user; with it, in a folder that an earlier version of root has made; and without it again."""
    entry, spool = pwd.getpwnam("nobody"), board.board.spool
    monkeypatch.setattr(run, "USER", "no such user")
    own = board.board.trust / "spool"
    for _ in range(2):
        assert run.prepare_spool(board.board) == (own, {}, "root") and own.stat().st_uid == 0 and not spool.exists()
    spool.mkdir(parents=True)
    (spool / "part").write_text("of root")
    monkeypatch.setattr(run, "USER", "nobody")
    rights = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    assert run.prepare_spool(board.board) == (spool, rights, "nobody") and not (spool / "part").exists()
    found = spool.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (entry.pw_uid, entry.pw_gid, 0o755)
    (spool / "part").write_text("of the user")
    assert run.prepare_spool(board.board) == (spool, rights, "nobody") and (spool / "part").exists()
    monkeypatch.setattr(run, "USER", "no such user")
    assert run.prepare_spool(board.board)[0] == own

    def refused(user):
        with pytest.raises(UpdateError, match=f"must be a folder of {user}"):
            run.prepare_spool(board.board)

    os.chown(own, entry.pw_uid, -1)
    refused("root")
    own.rmdir()
    own.symlink_to(tmp_path)
    refused("root")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused("user 1000")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_root_writes_and_removes_nothing_through_links_that_the_missing_user_left(
    repository, board, bundles, serve, monkeypatch, tmp_path
):
    """Links in its folder, to folders whose files root would have removed or replaced."""
    precious = tmp_path / "precious"
    for name in ("parts", "targets/door", "metadata"):
        (precious / name).mkdir(parents=True)
        (precious / name / "file").write_text("stays")
    spool = board.board.spool
    (spool / "repository").mkdir(parents=True)
    for link, target in (("parts", "parts"), ("repository/targets", "targets"), ("repository/metadata", "metadata")):
        (spool / link).symlink_to(precious / target)
    for path in (spool, *spool.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    monkeypatch.setattr(run, "USER", "no such user")
    new = repository.add(bundles[1], 1)
    assert board.update(serve(repository.folder).address).user == "root" and board.current == new
    left = {str(path.relative_to(precious)): path.read_text() for path in precious.rglob("*") if path.is_file()}
    assert left == dict.fromkeys(("parts/file", "targets/door/file", "metadata/file"), "stays")


def test_waves_and_pilots(repository, make_board, bundles):
    old = repository.add(bundles[1], 1)
    boards = [make_board(f"board{number}") for number in range(6)]
    for board in boards:
        board.update(repository.folder)
    ids = [board.board.identity() for board in boards]
    new = repository.add(bundles[2], 2, share=40, pilots=[ids[0]])
    for board, name in zip(boards, ids, strict=True):
        board.update(repository.folder)
        assert (board.current == new) == (in_wave(name, new, 40) or name == ids[0])
    assert {board.current for board in boards} <= {old, new}
    assert boards[0].current == new


def test_a_copied_card_gets_its_own_id(board):
    with board.board.locked():
        first = board.board.identity()
        assert board.board.identity() == first and len(first) == 32
        (board.board.prefix / "etc/machine-id").write_text("another\n")
        second = board.board.identity()
        assert second != first
        (board.board.prefix / "etc/machine-id").unlink()
        assert board.board.identity() == second
        assert "another" not in (board.board.trust / "board.json").read_text()


@pytest.mark.usefixtures("in_this_process")
def test_whatever_fails_the_model_stays_and_the_reason_is_recorded(repository, board, bundles, serve, tmp_path):
    digest = repository.add(bundles[1], 1)
    board.update(repository.folder)
    good = last_check(board.board.trust)["last_good"]
    server = serve(repository.folder)
    server.shutdown()
    server.server_close()
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, reason in (
        (server.address, "root.json: .*refused"),
        (empty, "timestamp.json does not exist"),
    ):
        with pytest.raises(UpdateError, match=reason):
            board.update(source)
        found = last_check(board.board.trust)
        assert found["reason"] and found["last_good"] == good and found["release"]["sha256"] == digest
        assert board.current == digest
    shutil.copy(repository.folder / "metadata/timestamp.json", board.board.prefix / "etc/edgecnn/root.json")
    with pytest.raises(UpdateError, match="not valid"):
        board.update(repository.folder)
    (board.board.prefix / "etc/edgecnn/root.json").unlink()
    with pytest.raises(UpdateError, match="the root of trust"):
        board.update(repository.folder)
    assert board.current == digest


def test_a_full_disk(repository, board, make_bundle, file_limit):
    old = repository.add(make_bundle("small", 1), 1)
    board.update(repository.folder)
    repository.add(make_bundle("large" * 20, 2), 2)
    size = (board.board.trust / "trusted.json").stat().st_size
    failed = 0
    for limit in range(0, 2 * size, 500):
        with file_limit(limit):
            try:
                board.update(repository.folder)
                break
            except (OutputError, UpdateError):
                failed += 1
        assert board.current == old and board.store.whole(old)
    assert failed > 3 and board.current != old
    board.update(repository.folder)


def planted(path, kind):
    """Put something at a path that is not one of our files."""
    if path.exists():
        path.unlink()
    if kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket or device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # endless zeros
        except PermissionError:
            pytest.skip("only root makes devices")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "socket or device", "huge file"])
@pytest.mark.parametrize("name", ["timestamp.json", "3.targets.json", "2.root.json", "bundle"])
def test_nothing_planted_in_the_folder_is_used(repository, board, bundles, kind, name):
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    new = repository.add(bundles[2], 2)
    planted(repository.stored(new) if name == "bundle" else repository.folder / "metadata" / name, kind)
    with pytest.raises(EdgeCNNError) as refused:
        board.update(repository.folder)
    assert board.current == old and str(refused.value)
    assert sum(path.stat().st_blocks for path in board.board.prefix.rglob("*")) < 1000


def test_a_folder_that_becomes_a_link(repository, board, bundles, tmp_path):
    repository.add(bundles[1], 1)
    (repository.folder / "metadata").rename(tmp_path / "elsewhere")
    (repository.folder / "metadata").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UpdateError, match="is a link"):
        board.update(repository.folder)


@pytest.mark.parametrize(
    ("does", "request_bytes", "seconds", "reason"),
    [
        ("exit 1", 5_000_000, 60, "without an answer: its last line was nothing"),
        ("exec yes", 10, 60, "without an answer: its last line was y"),
        ("exec sleep 60", 5_000_000, 0.05, "may have been killed after 0 minutes"),
        ('head -n 1 > /dev/null; printf \'{"reason": "\\\\u001b[2Jgone"}\'', 5_000_000, 60, r"^\\x1b\[2Jgone$"),
    ],
)
def test_whatever_the_unprivileged_process_does(tmp_path, monkeypatch, does, request_bytes, seconds, reason):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(run, "FETCH_S", seconds)
    started = time.monotonic()
    with pytest.raises(UpdateError, match=reason):
        run.fetch_in_sandbox("x" * request_bytes, {})
    assert time.monotonic() - started < 40, "it was not killed"


def test_a_link_instead_of_the_fetched_file(repository, board, bundles, monkeypatch):
    repository.add(bundles[1], 1)
    monkeypatch.setattr(run, "fetch_in_sandbox", lambda *_: (board.spool / "repository").symlink_to(repository.folder))
    with pytest.raises(UpdateError, match="repository is a link"):
        board.update("http://localhost")
    assert board.current is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_the_fetching_process_has_no_rights(repository, make_bundle, serve, monkeypatch, make_board):
    monkeypatch.setattr(run, "USER", "nobody")
    # a Python that this user can run, with this one's modules
    monkeypatch.setattr(sys, "executable", f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    if not Path(sys.executable).exists():
        pytest.skip("Debian has no such Python here")
    modules = [path for path in sys.path if path.startswith(str(ROOT))]
    folders = {folder for path in modules for folder in (Path(path), *Path(path).parents)}
    if hidden := sorted(folder for folder in folders if folder.stat().st_mode & 0o005 != 0o005):
        pytest.skip(f"other users cannot read {hidden[0]}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(modules))
    server = serve(repository.folder)
    digest = repository.add(make_bundle("photos", 1), 1)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        board = make_board(Path(folder) / "board")
        assert board.update(server.address).user == "nobody" and board.current == digest
        owners = {path.lstat().st_uid for path in (board.spool, *board.spool.rglob("*"))}
        assert owners == {65534} and {path.stat().st_uid for path in board.board.trust.rglob("*")} == {0}


def test_a_damaged_record_of_trust_is_not_treated_as_missing(repository, board, bundles):
    repository.add(bundles[1], 1)
    board.update(repository.folder)
    path = board.board.trust / "trusted.json"
    whole = path.read_text()
    mark = {"number": 1, "serial": 1, "sha256": "a" * 64}
    marks = (
        {"number": 0},
        mark | {"number": 0},
        mark | {"serial": 0},
        mark | {"serial": 2**53 + 1},
        mark | {"sha256": "a"},
    )
    damaged = (json.dumps(json.loads(whole) | {"marks": {"door": one}}) for one in marks)
    for content in ("", whole[:100], "[" * 100_000, *damaged):
        path.write_text(content)
        with pytest.raises(UpdateError, match="is damaged"):
            board.update(repository.folder)
    path.write_text(whole)
    board.update(repository.folder)


def test_a_new_root_of_trust_keeps_the_marks(repository, board, bundles):
    """The channel is empty by then, so that no release can set its mark again."""
    repository.add(bundles[1], 1)
    repository.add(bundles[2], 2)
    board.update(repository.folder)
    from edgecnn.device.update.board import read_trust

    repository.signed["targets"].targets.clear()
    repository.publish("root", "targets", "snapshot", "timestamp")
    shutil.copy(repository.folder / "metadata/2.root.json", board.board.prefix / "etc/edgecnn/root.json")
    board.update(repository.folder)
    root = (board.board.prefix / "etc/edgecnn/root.json").read_bytes()
    from edgecnn.files import sha256

    trust = read_trust(board.board, sha256(root), root)
    assert trust.root.encode() == root and trust.marks["door"].serial == 2


def test_two_concurrent_updates(repository, board):
    left = board.board.trust / "scratch" / "metadata"
    left.mkdir(parents=True)  # by an update that was killed
    with pytest.raises(KeyError), board.board.locked() as scratch:
        assert [*scratch.iterdir()] == [] and scratch.stat().st_mode & 0o777 == 0o700
        with pytest.raises(UpdateError, match="another update of this board is running"):
            board.update(repository.folder)
        (scratch / "half").write_text("written")
        raise KeyError
    assert not scratch.exists() and board.update(repository.folder).note == "the channel has no release for this board"


def test_the_command(edgecnn, repository, board, bundles):
    board.board.path(CONFIG).write_text(f'from = "{repository.folder}"\nchannel = "door"\n')
    repository.now = datetime.now(UTC).replace(microsecond=0)
    digest = repository.add(bundles[1], 1)
    prefix = ("--prefix", board.board.prefix)
    assert "has not checked" in edgecnn("update", "status", *prefix).out
    assert edgecnn("update", *prefix).out == f"in use: {digest[:12]} photos1 serial 1, release 1\n"
    assert edgecnn("update", *prefix).out == f"up to date: {digest[:12]} photos1 serial 1, release 1\n"
    slots = board.board.prefix / "var/lib/edgecnn"
    assert f"in use  {digest[:12]} photos1" in edgecnn("slot", "list", "--slots", slots).out
    lines = edgecnn("update", "status", *prefix).out.splitlines()
    assert [line.split()[0] for line in lines] == ["from", "checked", "good", "release", "in"]
    assert lines[1].endswith(": good") and lines[4].endswith("photos1 serial 1 pending")
    board.board.path(CONFIG).write_text("from = 3\n")
    refused = edgecnn("update", *prefix)
    assert refused.code == 34 and "update.toml: from must be a string; received 3" in refused.err
    assert "from must be a string" in json.loads(edgecnn("update", "status", "--json", *prefix).out)["reason"]
    assert f"still in use: {digest[:12]} photos1 serial 1\n" in refused.err
    for more, why in (
        (("--from", "/nowhere", "--channel", "door"), "from must be an address"),
        (("--from", repository.folder, "--channel", "Door"), "a channel's name is"),
    ):
        board.board.path(CONFIG).write_text("")
        assert why in edgecnn("update", *more, *prefix).err


WITHOUT = """
import contextlib, sys
import edgecnn.device.update.board, edgecnn.device.mqtt.publisher, edgecnn.device.service.run
from edgecnn.cli import main
assert not {"tuf", "securesystemslib", "urllib3"} & set(sys.modules)
sys.modules["tuf"] = None  # as if the extra were not installed
for words in ["update"], ["update", "status", "--json"]:
    sys.argv = ["edgecnn", *words, "--prefix", "board"]
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
"""


def test_without_the_extra_updates_name_what_to_install_and_everything_else_works(tmp_path, root):
    (tmp_path / "board/etc/edgecnn").mkdir(parents=True)
    (tmp_path / "board/etc/edgecnn/update.toml").write_text(f'from = "{tmp_path}"\nchannel = "door"\n')
    here = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env={**os.environ, "PYTHONPATH": str(root)}, **here)
    assert "[update]" in done.stderr and "apt install python3-tuf" in done.stderr
    refused, *found, status_code = done.stdout.splitlines()
    assert (refused, status_code) == ("28", "0") and "needs tuf" in json.loads("".join(found))["reason"]


def test_a_package_that_needs_lacking_certificates_is_not_called_missing(edgecnn, tmp_path, monkeypatch):
    (tmp_path / "tuf").mkdir()
    # like requests, which 5.1 imports
    (tmp_path / "tuf/__init__.py").write_text("open('/nowhere/ca-certificates.crt')")
    users = {"edgecnn.device.update.run", "edgecnn.device.update.client"}
    for name in [name for name in sys.modules if name.split(".")[0] == "tuf" or name in users]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    refused = edgecnn("update", "--from", "https://models.example.org", "--channel", "door", "--prefix", tmp_path)
    assert refused.code == 34 and "apt install --reinstall ca-certificates" in refused.err


def test_an_updates_packages_take_at_most_5_mb():
    pytest.importorskip("tuf", reason="updates need the update extra")
    files = [file for name in ("tuf", "securesystemslib", "urllib3") for file in metadata.files(name)]
    assert 1e6 < sum(file.size or 0 for file in files if file.suffix != ".pyc") < 5e6
    own = Path(run.__file__).parent
    assert sum(path.stat().st_size for path in own.glob("*.py")) < 100_000
