"""The releases of a channel: which one is for a board."""

import uuid
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecnn.bundle.channel import (
    choose_release,
    entries_of,
    in_wave,
    is_board_id,
    is_for,
    plain_name,
    target_file,
    target_path,
)
from edgecnn.errors import UpdateError
from edgecnn.files import sha256

BOARD = sha256(b"board")[:32]
HEX32 = st.integers(0, 2**128 - 1).map("{:032x}".format)
HEX64 = st.integers(0, 2**256 - 1).map("{:064x}".format)


def target(number=1, serial=None, *, length=2000, digest=None, changed=None, **terms):
    """Return a release's path and its TUF target."""
    serial = number if serial is None else serial
    digest = digest or sha256(f"{serial}".encode())
    custom = {"edgecnn": {"number": number, "serial": serial, "share": 100, **terms, **(changed or {})}}
    return f"door/photos-{serial}.edgecnn", SimpleNamespace(length=length, hashes={"sha256": digest}, custom=custom)


def read(*targets):
    return entries_of(dict(targets), "door")


def chosen(entries, board=BOARD, held=(), current=None):
    entry = choose_release(entries, board, held, current)
    return entry and entry.terms.number


@settings(deadline=None)
@given(HEX32, HEX64, st.integers(0, 100), st.integers(0, 100))
def test_a_board_in_a_wave_is_in_every_larger_one(board, digest, one, other):
    small, large = sorted((one, other))
    assert in_wave(board, digest, small) <= in_wave(board, digest, large)
    assert in_wave(board, digest, 100) and not in_wave(board, digest, 0)


def test_a_wave_follows_its_formula():
    """The places of 100 are those of SHA-256 of "ID:TARGET", computed here by a separate implementation."""
    import hashlib

    for number in range(500):
        board, digest = f"{number:032x}", sha256(b"%d" % (number % 3))
        place = int.from_bytes(hashlib.sha256(f"{board}:{digest}".encode()).digest(), "big") % 100
        assert [in_wave(board, digest, share) for share in range(101)] == [share > place for share in range(101)]


def test_shares_are_of_boards_and_each_bundle_has_its_own_waves():
    boards = [f"{number:032x}" for number in range(8_000)]
    places = {}
    for digest in (sha256(b"one"), sha256(b"two")):
        for share in (1, 5, 25, 60):
            count = sum(in_wave(board, digest, share) for board in boards)
            expected, deviation = 80 * share, (8_000 * share / 100 * (1 - share / 100)) ** 0.5
            assert abs(count - expected) < 4 * deviation, (share, count)
        places[digest] = {board for board in boards if in_wave(board, digest, 5)}
    first, second = places.values()
    assert abs(len(first & second) - 20) < 4 * 20**0.5  # 5 % of 5 %: independent


@settings(max_examples=120, deadline=None)
@given(
    HEX32,
    st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans(), st.booleans()), max_size=6),
    st.integers(-1, 5),
)
def test_a_board_gets_the_newest_release_that_is_for_it_and_never_another(board, releases, in_use):
    other = f"{int(board, 16) ^ 1:032x}"
    entries = read(
        *(
            target(number, share=share, stopped=stopped, pilots=[board if pilot else other])
            for number, (share, stopped, pilot, _) in enumerate(releases, 1)
        )
    )
    bad = {entry.sha256 for entry, release in zip(entries, releases, strict=True) if release[3]}
    current = entries[in_use].sha256 if 0 <= in_use < len(entries) else None
    mine = [
        number
        for number, (share, stopped, pilot, failed) in enumerate(releases, 1)
        if not stopped and not failed and (pilot or in_wave(board, entries[number - 1].sha256, share))
    ]
    if current:
        mine.append(in_use + 1)
    assert chosen(entries, board, bad, current) == max(mine, default=None)
    assert chosen(reversed(entries), board, bad, current) == max(mine, default=None)


def test_a_board_outside_the_wave_keeps_the_newest_fully_shared_release():
    two = sha256(b"2")
    outside = next(board for board in map("{:032x}".format, range(99)) if not in_wave(board, two, 25))
    entries = read(target(1), target(2, share=25))
    assert chosen(entries, outside) == chosen(entries, outside, current=entries[0].sha256) == 1
    assert chosen(read(target(1), target(2, share=25, pilots=[outside])), outside) == 2
    assert chosen(read(target(1), target(2, stopped=True, pilots=[outside])), outside) == 1
    assert chosen(read(target(2, share=25)), outside) is None


def test_a_failed_release_is_not_tried_again_and_a_smaller_share_takes_nothing_back():
    entries = read(target(1), target(2), target(3, share=0))
    assert chosen(entries, held={entries[1].sha256}, current=entries[0].sha256) == 1
    assert chosen(entries, current=entries[2].sha256) == 3


def test_a_rollback_is_a_newer_release_that_names_the_previous_bundle():
    old, new = sha256(b"1"), sha256(b"2")
    allowed = {"to": old, "instead_of": [new]}
    entries = read(target(3, 1, allow_older=allowed), target(2))
    assert [entry.terms.number for entry in entries] == [2, 3]
    assert chosen(entries, current=new) == 3
    back = entries[1]
    assert back.may_follow(2, new) and back.may_follow(1, old) and back.may_follow(0, "")
    assert not back.may_follow(2, sha256(b"another")) and not back.may_follow(1, sha256(b"another"))
    assert not read(target(3, 1))[0].may_follow(2, new)


def test_terms_that_edgecnn_does_not_write_are_refused():
    for change, message in (
        ({"number": 0}, "number"),
        ({"number": True}, "number.*True"),
        ({"number": 1.0}, r"number.*1\.0"),
        ({"share": 101}, "share.*101"),
        ({"share": -1}, "share.*-1"),
        ({"share": "5"}, "share.*'5'"),
        ({"serial": 0}, "serial"),
        ({"stopped": 1}, "stopped"),
        ({"pilots": "all"}, "pilots.*'all'"),
        ({"pilots": ["../../etc"]}, "pilots must be at most 1,000 board ids"),
        ({"pilots": [BOARD, BOARD]}, "pilots must be"),
        ({"pilots": [f"{number:032x}" for number in range(1001)]}, "pilots must be"),
        ({"accepted": "fine\x1b[2J"}, "accepted must not contain control characters"),
        ({"accepted": "a" * 1001}, "at most 1,000 characters"),
        ({"allow_older": {"to": "0" * 64, "instead_of": ["1" * 64]}}, "allow_older.to must be its own SHA-256"),
        ({"allow_older": {"to": sha256(b"1"), "instead_of": []}}, "instead_of must be 1 to"),
        ({"allow_older": {"to": sha256(b"1"), "instead_of": ["x"]}}, "instead_of must be 1 to"),
        ({"allow_older": {"to": sha256(b"1")}}, "allow_older.instead_of"),
        ({"shares": 5}, "shares"),
        ({"a" * 999: 5}, "aaa"),
        ({"length": 0}, "length must be from 1"),
        ({"length": 2**40}, "length must be from 1"),
        ({"length": "20"}, "length must be from 1"),
        ({"digest": "0" * 63}, "hashes must contain a SHA-256"),
    ):
        with pytest.raises(UpdateError, match=message) as caught:
            read(target(1, **change) if change.keys() <= {"length", "digest"} else target(1, changed=change))
        assert "the release 'door/photos-1.edgecnn'" in str(caught.value) and len(str(caught.value)) < 400


def test_values_at_their_limits_are_accepted():
    """1,000 pilots, bundles to go back from and characters, and a channel and a name of 64 and 120 characters."""
    digest = sha256(b"1")
    limits = {
        "pilots": [f"{number:032x}" for number in range(1000)],
        "accepted": "a" * 1000,
        "allow_older": {"to": digest, "instead_of": [f"{number:064x}" for number in range(1000)]},
    }
    (entry,) = read(target(2**53, 1, digest=digest, share=0, **limits))
    assert (entry.terms.number, entry.terms.share, len(entry.terms.pilots)) == (2**53, 0, 1000)
    for beyond in (
        {"number": 2**53 + 1},
        {"allow_older": {"to": digest, "instead_of": [f"{n:064x}" for n in range(1001)]}},
    ):
        with pytest.raises(UpdateError):
            read(target(1, digest=digest, changed=beyond))
    assert target_path("d" * 64, "n" * 120, 7) == f"{'d' * 64}/{'n' * 120}-7.edgecnn"
    with pytest.raises(UpdateError):
        target_path("door", "n" * 121, 7)


def test_a_bundles_name_in_a_path():
    names = {"My photos (2)": "My-photos--2", "-.a.b_c.-": "a.b_c", "ü": "bundle", "a" * 121: "a" * 120}
    assert {name: plain_name(name) for name in names} == names
    path, one = target(3)
    (entry,) = entries_of({"door/two-parts-3.edgecnn": one}, "door")
    assert (entry.name, entry.terms.serial, path) == ("two-parts", 3, "door/photos-3.edgecnn")
    assert target_file("door/two-parts-3.edgecnn", "f" * 64) == f"door/{'f' * 64}.two-parts-3.edgecnn"


def test_a_target_without_terms_is_refused():
    for custom in (None, {}, [], "edgecnn", {"edgecnn": None}, {"edgecnn": [1]}, {"other": {}}):
        path, bare = target()
        bare.custom = custom
        with pytest.raises(UpdateError, match=r"door/photos-1\.edgecnn"):
            read((path, bare))


def test_a_path_that_is_not_a_release_is_refused():
    for path in (
        "door/../photos-1.edgecnn", "door/photos-2.edgecnn", "door/photos-1.edgecnn\n", "door/.photos-1.edgecnn", "door/-1.edgecnn",
        "door/photos-1", "door//photos-1.edgecnn", "door/a/photos-1.edgecnn", "door/ph\u00f6tos-1.edgecnn", f"door/{'a' * 121}-1.edgecnn",
    ):  # fmt: skip
        with pytest.raises(UpdateError, match="its path must be CHANNEL/NAME-1"):
            read((path, target()[1]))


def test_other_channels_are_ignored_and_two_releases_with_one_number_are_refused():
    path, one = target(1)
    assert [entry.path for entry in read((path, one), ("gate/x", None), ("doors/x", None))] == [path]
    assert read((path, one))[0].name == "photos"
    with pytest.raises(UpdateError, match="have the same number, 1"):
        read((path, one), target(1, 2))


def test_a_channel_has_a_plain_name():
    for channel in ("", "Door", "a/b", "../x", "-a", "a" * 65, "door\n"):
        with pytest.raises(UpdateError, match="a channel's name is"):
            entries_of({}, channel)
        with pytest.raises(UpdateError):
            target_path(channel, "photos", 1)


def test_a_board_id_is_a_uuid_in_hex_digits():
    assert is_board_id(uuid.uuid4().hex)
    assert not any(map(is_board_id, ("", "0" * 31, "G" * 32, "0" * 32 + "\n")))
    assert is_for(read(target(share=0, pilots=[BOARD]))[0], BOARD)
