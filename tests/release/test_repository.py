"""TUF's own client accepts the workstation's repository after every single write, and nothing forbidden is signed."""

import os
import stat
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Targets

from edgecnn.bundle.channel import entries_of
from edgecnn.bundle.file import read_bundle
from edgecnn.errors import OutputError, ReleaseError
from edgecnn.files import sha256_file
from edgecnn.release import keys as keys_module
from edgecnn.release import operations
from edgecnn.release import repository as repository_module
from edgecnn.release.keys import Keys
from edgecnn.release.repository import Repository, repository_status, utc_now


def terms(repository):
    """Return the channel's releases as a board reads them: (number, serial, share, stopped)."""
    entries = entries_of(repository.read().targets.signed.targets, "door")
    return [(entry.terms.number, entry.terms.serial, entry.terms.share, entry.terms.stopped) for entry in entries]


def test_a_new_repository_has_keys_that_only_their_owner_reads_and_two_of_three_root_keys_must_sign(
    repository, tmp_path
):
    keys = tmp_path / "releases-keys"
    assert {path.name for path in keys.glob("*.pem")} == {
        f"{name}.pem" for name in ("root-1", "root-2", "root-3", "targets", "online")
    }
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.glob("*.pem")} == {0o600}
    protected = {path.name for path in keys.glob("*.pem") if b"ENCRYPTED" in path.read_bytes()}
    assert protected == {"root-1.pem", "root-2.pem", "root-3.pem", "targets.pem"}
    state = repository.read()
    assert state.root.roles["root"].threshold == 2 and len(state.root.roles["root"].keyids) == 3
    signed = {"root": state.root, "targets": state.targets.signed, "online": state.timestamp.signed}
    signed["online too"] = state.snapshot.signed
    valid = {role: round((part.expires - utc_now()) / timedelta(days=1)) for role, part in signed.items()}
    assert valid == {"root": 3 * 365, "targets": 365, "online": 30, "online too": 30}, "days"
    assert not any(b"PRIVATE" in path.read_bytes() for path in repository.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "file"),
    [("root-1", "root-1"), ("../root", "0" * 12), ("schl\u00fcssel", "0" * 12), ("", "0" * 12), ("a b", "0" * 12)],
)
def test_the_name_of_somebody_elses_key_is_no_path(name, file):
    key = SimpleNamespace(unrecognized_fields={keys_module.NAME: name}, keyid="0" * 64)
    assert keys_module.name_of(key) == file


def test_keys_that_are_printed_do_not_show_a_passphrase(repository, held):
    keys = held()
    keys.signer(next(iter(repository.read().root.keys.values())))
    keys.create("targets", fresh=True)
    assert held().ask("targets", False) not in repr(keys) and "releases-keys" in repr(keys)


def test_a_board_gets_what_was_released_byte_for_byte(repository, add, board, held):
    entry = add(1, 5, pilots=["c" * 32])
    door = board()
    assert door.check(repository.folder) == ["door/photos-1.edgecnn"]
    assert sha256_file(door.folder / "door%2Fphotos-1.edgecnn") == entry.sha256
    widened = operations.change(repository, held(), "door", share=100, pilots=["a" * 32, "c" * 32])
    assert widened.terms.pilots == ("c" * 32, "a" * 32), "a board that gets it keeps it"
    add(2)
    operations.change(repository, held(), "door", stop=True)
    assert terms(repository) == [(1, 1, 100, False), (2, 2, 100, True)]
    door.check(repository.folder)
    quiet = board()
    quiet.check(repository.folder)
    quiet.check(repository.folder)
    assert [url.rpartition("/")[2] for url in quiet.fetcher.asked[:2]] == ["2.root.json", "timestamp.json"]
    assert not any("metadata" in url for url in quiet.fetcher.asked[2:])
    assert (repository.metadata / "timestamp.json").stat().st_size < 450


def test_a_rollback_is_a_newer_release_that_names_both_hashes(repository, add, held):
    old, new = add(1), add(2)
    with pytest.raises(ReleaseError, match="To go back to an older bundle, name the releases"):
        add(1)
    with pytest.raises(ReleaseError, match="no release of the channel begins with ffff"):
        add(1, instead_of=["ffff"])
    back = add(1, 40, instead_of=[new.sha256[:8]])
    assert terms(repository) == [(2, 2, 100, False), (3, 1, 40, False)]
    assert back.sha256 == old.sha256 and back.may_follow(2, new.sha256)
    with pytest.raises(ReleaseError, match="a board moves from it to the bundle without"):
        add(3, instead_of=[new.sha256])
    with pytest.raises(ReleaseError):
        add(2, instead_of=[new.sha256])  # nobody goes back to the serial number that they have
    thief = add(1, instead_of=["f" * 64, new.sha256[:6]]).terms.allow_older
    assert thief.instead_of == ("f" * 64, new.sha256)  # a thief's release is not in the channel
    with pytest.raises(ReleaseError, match="has had 2"):
        add(2)
    assert add(3).terms.number == 5


def test_boards_go_back_to_the_file_that_was_released_and_to_no_other(repository, add, held, make_bundle):
    bundles = [
        read_bundle(make_bundle("photos", 1, labels=("cat", other), passed=True)) for other in ("dog", "fox", "hen")
    ]
    low, old, high = sorted(bundles, key=lambda bundle: bundle.sha256)
    operations.add(repository, held(), old, operations.Offer(channel="door", share=100))
    back = operations.Offer(channel="door", share=100, instead_of=[add(2, accepted="a test").sha256])
    for bundle in (low, high):
        with pytest.raises(ReleaseError, match=r"door/photos-1\.edgecnn was released with other content"):
            operations.add(repository, held(), bundle, back)
    assert terms(repository) == [(1, 1, 100, False), (2, 2, 100, False)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"serial": 0}, "has no serial number.*edgecnn bundle --serial 1"),
        ({"serial": 1, "passed": False}, "its gate failed.*--accept REASON"),
        ({"serial": 1, "verdict": "not shown"}, "is not shown: against o.*--accept REASON"),
        ({"serial": 1, "passed": None}, "no parity report with a passed gate"),
        ({"serial": 1, "passed": "yes"}, "its gate failed"),
        ({"serial": 1, "passed": False, "accepted": "a\x1b[2J"}, "must not contain control characters"),
        ({"serial": 1, "pilots": ["board-7"]}, "'board-7' is not the id of a board"),
        ({"serial": 1, "pilots": [f"{number:032x}" for number in range(1001)]}, "at most 1,000 board ids"),
        ({"serial": 1, "share": 101}, "--share"),
    ],
)
def test_a_bundle_that_may_not_be_released_changes_nothing(repository, add, arguments, message):
    before = {path: path.read_bytes() for path in repository.folder.rglob("*") if path.is_file()}
    with pytest.raises(ReleaseError, match=message):
        add(**arguments)
    assert {path: path.read_bytes() for path in repository.folder.rglob("*") if path.is_file()} == before


def test_a_bundle_needs_a_verdict_against_what_the_channel_offers(repository, add, held):
    """The line that makes it is printed with the file to compare with."""
    first = add(1, verdict="")
    with pytest.raises(
        ReleaseError, match=rf"compared it with {first.sha256[:12]}.*--against .*/targets/door/{first.sha256}\.photos-1"
    ):
        add(2, verdict="")
    with pytest.raises(ReleaseError, match=r"bundle RUN --serial 2 .*--accept REASON"):
        add(2, verdict="passed", old="f" * 64)
    assert add(1, verdict="", channel="gate").terms.accepted == "", "another channel has its own first release"
    by_chain = add(2, 5)
    with pytest.raises(ReleaseError, match=f"compared it with {by_chain.sha256[:12]}"):
        add(3, verdict="passed", old=first.sha256)
    trial = add(3, 5, verdict="refused", old=first.sha256, accepted="a new lens")
    with pytest.raises(ReleaseError, match=f"compared it with {by_chain.sha256[:12]}"):
        add(4, verdict="passed", old=trial.sha256)  # the boards outside the trial would get it too
    operations.change(repository, held(), "door", share=0)
    with pytest.raises(ReleaseError, match=f"compared it with {trial.sha256[:12]}"):
        add(4, verdict="passed", old=by_chain.sha256)  # boards may still have it
    operations.change(repository, held(), "door", share=100)
    assert add(4, verdict="passed", old=trial.sha256).terms.number == 4, "the trial is for all boards now"


def test_a_channel_whose_releases_are_all_stopped_is_not_empty(repository, add, held):
    newest = [add(1), add(2)][-1]
    operations.change(repository, held(), "door", stop=True)
    with pytest.raises(ReleaseError, match="compared it with"):
        add(3, verdict="passed", old=newest.sha256)  # boards go on with the first
    operations.change(repository, held(), "door", stop=True)
    with pytest.raises(ReleaseError, match=f"compared it with {newest.sha256[:12]}"):
        add(3, verdict="")
    assert add(3, verdict="passed", old=newest.sha256).terms.number == 3


def test_only_a_bundle_that_the_channel_has_had_goes_back_without_a_verdict(repository, add):
    add(1, verdict="")
    lens = add(2, verdict="refused", old="", accepted="a new lens")
    newest = add(3, verdict="", accepted="a test")
    back = add(2, verdict="refused", old="", instead_of=[newest.sha256])
    assert (back.sha256, back.terms.accepted) == (lens.sha256, "a new lens"), "with its own reason"
    with pytest.raises(ReleaseError, match="compared it with"):
        add(1, name="never", verdict="", instead_of=[newest.sha256])


def test_a_release_despite_a_failed_gate_is_recorded(repository, add):
    assert add(1, passed=False, accepted="two classes moved").terms.accepted == "two classes moved"
    assert add(2, accepted="not needed").terms.accepted == ""
    assert repository_status(repository)["channels"]["door"][0]["accepted"] == "two classes moved"


def test_a_name_that_is_not_a_valid_path_is_encoded(add):
    assert add(1, name="Türen & Tore").path == "door/T-ren---Tore-1.edgecnn"


def test_old_releases_are_removed_but_those_a_board_may_still_fetch_stay(repository, add, board, monkeypatch):
    monkeypatch.setattr(operations, "KEPT", 2)
    first = add(1)
    add(2, 50)
    add(3, 5)
    assert [number for number, *_ in terms(repository)] == [1, 2, 3]
    add(4)
    assert [number for number, *_ in terms(repository)] == [3, 4]
    assert not repository.target_file(first.path, first.sha256).exists()
    board().check(repository.folder)


def test_a_missing_or_damaged_bundle_of_any_release_is_a_problem(repository, add):
    old, new = add(1), add(2)
    files = [repository.target_file(entry.path, entry.sha256) for entry in (old, new)]
    files[0].unlink()
    files[1].write_bytes(b"damaged")
    expected = [f"{file} is missing or damaged: put the bundle there again" for file in files]
    assert repository_status(repository)["problems"] == expected


def test_a_file_is_removed_only_after_nothing_offers_it_any_more(repository, add, monkeypatch):
    """In a full channel, an add that fails while signing, and a way back to the oldest release."""
    monkeypatch.setattr(operations, "KEPT", 2)
    first, second = add(1), add(2)
    oldest = repository.target_file(first.path, first.sha256)
    with monkeypatch.context() as patch, pytest.raises(ReleaseError, match="cut"):
        patch.setattr(Repository, "write", lambda *_, **__: (_ for _ in ()).throw(ReleaseError("cut")))
        add(3)
    assert oldest.is_file() and repository_status(repository)["problems"] == []
    back = add(1, instead_of=[second.sha256])
    assert back.sha256 == first.sha256 and oldest.is_file() and repository_status(repository)["problems"] == []
    add(3)
    assert oldest.is_file() and not repository.target_file(second.path, second.sha256).is_file()


def test_an_interrupted_rotation_is_repeated_with_no_more_root_keys_than_must_sign(
    quick, repository, held, tmp_path, monkeypatch
):
    def cut(source, target, real=os.replace):
        if str(source).endswith("root-2.pem"):
            raise Cut
        real(source, target)

    (tmp_path / "releases-keys" / "root-3.pem").unlink()
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(keys_module.os, "replace", cut)
        operations.rotate(repository, held(), ["root-2"])
    operations.rotate(repository, held(), ["root-2"])
    operations.refresh(repository, held(), "root")
    assert repository.read().root.version == 4


class Cut(Exception):
    """A simulated power cut."""


CHANGES = {
    "add": lambda repository, keys, add: add(2, keys=keys),
    "share": lambda repository, keys, add: operations.change(repository, keys, "door", share=50),
    "refresh": lambda repository, keys, add: operations.refresh(repository, keys),
    "refresh root": lambda repository, keys, add: operations.refresh(repository, keys, "root"),
    "rotate online": lambda repository, keys, add: operations.rotate(repository, keys, ["online"]),
    "rotate targets": lambda repository, keys, add: operations.rotate(repository, keys, ["targets"]),
    "rotate root": lambda repository, keys, add: operations.rotate(repository, keys, ["root-2"]),
    "rotate all": lambda repository, keys, add: operations.rotate(repository, keys, ["root-1", "targets", "online"]),
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("add", "rotate online") else pytest.param(name, marks=pytest.mark.guard) for name in CHANGES],
)
def test_after_a_power_cut_at_any_write_boards_accept_the_repository_and_the_command_can_be_repeated(
    name, quick, repository, add, board, held, monkeypatch
):
    """Each write is atomic, so only the states between two writes matter."""
    add(1)
    known, change = board(), CHANGES[name]
    known.check(repository.folder)
    writes = {module: module.write_atomic for module in (repository_module, keys_module)}
    for nth in range(100):
        left = nth

        def cut(real, *arguments, **more):
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            return real(*arguments, **more)

        with monkeypatch.context() as patch:
            for module, real in writes.items():
                patch.setattr(module, "write_atomic", lambda *a, real=real, **more: cut(real, *a, **more))
            patch.setattr(keys_module.os, "replace", lambda *a, real=os.replace: cut(real, *a))
            try:
                change(repository, held(), add)
                break
            except Cut:
                pass
        assert "door/photos-1.edgecnn" in known.check(repository.folder), nth
        assert "door/photos-1.edgecnn" in board().check(repository.folder), nth
        operations.refresh(repository, held())  # the previous or the new online key, whichever is trusted
        known.check(repository.folder)
    assert nth >= 2, "nothing was cut"
    known.check(repository.folder)
    board().check(repository.folder)
    operations.refresh(repository, held(), "targets")
    operations.refresh(repository, held(), "root")
    board().check(repository.folder)


def test_one_writer_at_a_time(repository, held):
    with repository.locked(), pytest.raises(ReleaseError, match="another edgecnn release is changing"):
        operations.refresh(Repository(repository.folder), held())
    operations.refresh(repository, held())


def test_files_planted_in_the_repository_are_not_signed(repository, add, held, copy):
    """The folder may come back from a server: the online key must not make its content valid."""
    add(1)
    targets = repository.metadata / "2.targets.json"
    forged = Metadata[Targets].from_bytes(targets.read_bytes())
    forged.signed.targets["door/photos-1.edgecnn"].hashes["sha256"] = "0" * 64
    saved = targets.read_bytes()
    targets.write_bytes(forged.to_bytes())
    with pytest.raises(ReleaseError, match=r"2\.targets\.json was not signed by the repository's keys"):
        operations.refresh(repository, held())
    targets.write_bytes(saved)
    stamp = repository.metadata / "timestamp.json"
    saved = stamp.read_bytes()
    stamp.write_bytes(saved.replace(b'"version":2}', b'"version":1}', 1))
    with pytest.raises(ReleaseError, match=r"timestamp\.json"):
        operations.refresh(repository, held())
    stamp.write_bytes(saved)
    operations.refresh(repository, held())
    older = copy(repository.folder)
    operations.refresh(repository, held(), "root")
    with pytest.raises(ReleaseError, match=r"it is an older copy, or another repository\. Nothing was changed"):
        operations.refresh(Repository(older), held())
    other = older.with_name("other")
    operations.init(other, held(older.with_name("other-keys")))
    with pytest.raises(ReleaseError, match="another repository"):
        operations.refresh(Repository(other), held())


def test_keys_and_repository_stay_in_separate_folders(tmp_path, held):
    folder = tmp_path / "public"
    for repository, keys in ((folder, folder / "keys"), (folder, folder), (folder / "releases", folder)):
        with pytest.raises(ReleaseError, match="must not contain each other"):
            operations.init(repository, held(keys))
    assert not folder.exists()
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ReleaseError, match="must not contain each other"):
        operations.init(folder, held(tmp_path / "link" / "keys"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ReleaseError, match="is not empty"):
        operations.init(folder, held(tmp_path / "used"))
    for taken in (tmp_path / "used", tmp_path / "used" / "file"):
        with pytest.raises(ReleaseError, match="is not empty"):
            operations.init(taken, held(tmp_path / "fresh"))
    with pytest.raises(OutputError, match="cannot write"):
        operations.init(folder, held(tmp_path / "used" / "file" / "keys"))


def test_missing_files_are_named(repository, add, held, tmp_path):
    keys = tmp_path / "releases-keys"
    with pytest.raises(ReleaseError, match=r"cannot read the key .*targets\.pem: the passphrase is wrong"):
        add(1, keys=held(ask=lambda name, new: "wrong passphrase"))
    (keys / "targets.pem").chmod(0o644)
    with pytest.raises(ReleaseError, match=r"other users can use the key .*chmod 600"):
        add(1)
    (keys / "targets.pem").rename(tmp_path / "targets.pem")
    with pytest.raises(ReleaseError, match=r"no targets\.pem .*if it is lost: edgecnn release rotate targets"):
        add(1)
    (keys / "root-2.pem").unlink()
    (keys / "root-3.pem").unlink()
    with pytest.raises(
        ReleaseError, match=r"2 of the keys root-1\.pem, root-2\.pem, root-3\.pem must sign, but only 1 of them are in"
    ):
        operations.refresh(repository, held(), "root")
    (keys / "online.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ReleaseError, match=r"online\.pem: the file is damaged"):
        operations.refresh(repository, held())
    with pytest.raises(ReleaseError, match=r"no root\.json in"):
        operations.refresh(repository, held(tmp_path / "empty"))
    (keys / "root.json").write_text("{")
    with pytest.raises(ReleaseError, match=r"root\.json of the keys is damaged"):
        operations.refresh(repository, held())
    for folder in (tmp_path / "nowhere", keys):
        with pytest.raises(ReleaseError, match="is not a repository of releases, or is damaged"):
            repository_status(Repository(folder))
    short = "123456789012345"
    with pytest.raises(ReleaseError, match="at least 16 characters, such as five random words; received 15"):
        operations.init(tmp_path / "short", held(tmp_path / "short-keys", ask=lambda name, new: short))
    operations.init(
        tmp_path / "in a folder" / "enough", held(tmp_path / "enough-keys", ask=lambda name, new: f"{short}6")
    )


def test_the_clock_is_checked(repository, add, held, monkeypatch):
    add(1)
    now = utc_now()
    assert repository_status(repository)["problems"] == []

    def at(days):
        monkeypatch.setattr(repository_module, "utc_now", lambda: now + timedelta(days=days))
        monkeypatch.setattr("edgecnn.release.repository.utc_now", lambda: now + timedelta(days=days))

    at(-1)
    with pytest.raises(ReleaseError, match=r"this machine's clock says .* Set the clock"):
        operations.refresh(repository, held())
    at(25)
    assert {text.split()[0] for text in repository_status(repository)["problems"]} == {"timestamp", "snapshot"}
    at(31)
    assert any(text.startswith("timestamp expired on") for text in repository_status(repository)["problems"])
    operations.refresh(repository, held())
    assert repository_status(repository)["problems"] == []
    at(3 * 365 + 1)
    assert any(text.startswith("root expired on") for text in repository_status(repository)["problems"])
    with pytest.raises(ReleaseError, match=r"the root metadata expired on .*: edgecnn release refresh root"):
        operations.refresh(repository, held())
    operations.refresh(repository, held(), "root")
    operations.refresh(repository, held(), "targets")
    assert repository_status(repository)["problems"] == []


def test_the_days_before_an_expiry_are_counted(repository, monkeypatch):
    def problem(before):
        monkeypatch.setattr("edgecnn.release.repository.utc_now", lambda: expires - before)
        return [
            text.removeprefix(f"{role} ") for text in repository_status(repository)["problems"] if text.startswith(role)
        ]

    for role, days, more in (
        ("root", 90, " root"),
        ("targets", 30, " targets"),
        ("snapshot", 7, ""),
        ("timestamp", 7, ""),
    ):
        expires = datetime.fromisoformat(repository_status(repository)["roles"][role]["expires"])
        command, date = f"edgecnn release refresh{more}", f"{expires:%Y-%m-%d}"
        assert problem(timedelta(days=days + 1)) == []
        assert problem(timedelta(days=days + 1, seconds=-1)) == [f"expires in {days} days, on {date}: {command}"]
        assert problem(timedelta(days=1)) == [f"expires in 1 day, on {date}: {command}"]
        (expired,) = problem(timedelta(0))
        assert expired.startswith(f"expired on {date}: ") and expired.endswith(f" Now: {command}")


def test_a_board_deceived_with_a_stolen_online_key_accepts_the_repository_after_a_rotation(
    repository, add, board, held, copy, tmp_path
):
    """A fast-forward attack: the thief signs a version number that no honest one will ever exceed."""
    add(1)
    deceived, stolen = board(), copy(tmp_path / "releases-keys")
    deceived.check(repository.folder)
    hostile = Repository(copy(repository.folder))
    state, thief = hostile.read(), held(stolen)
    state.timestamp.signed.version = state.snapshot.signed.version = 2**40
    hostile.write(state, thief, targets=False)
    deceived.check(hostile.folder)
    operations.refresh(repository, held())
    with pytest.raises(exceptions.BadVersionNumberError):
        deceived.check(repository.folder)
    operations.rotate(repository, held(), ["online"])
    assert deceived.check(repository.folder) == ["door/photos-1.edgecnn"]
    with pytest.raises(exceptions.UnsignedMetadataError):
        deceived.check(hostile.folder)
    with pytest.raises(exceptions.RepositoryError):
        board().check(hostile_with_roots_of(repository, hostile))


def test_releases_signed_with_a_stolen_targets_key_reach_no_board_and_are_not_signed_again(
    repository, add, board, held, copy, tmp_path
):
    """The thief writes to the server a different file, correctly signed, with the version that the snapshot names."""
    add(1)
    hostile = Repository(copy(repository.folder))
    state = hostile.read()
    state.targets.signed.targets["door/photos-1.edgecnn"].unrecognized_fields["custom"]["edgecnn"]["share"] = 99
    state.targets.sign(
        held(copy(tmp_path / "releases-keys")).signer(state.root.keys[state.root.roles["targets"].keyids[0]])
    )
    (hostile.metadata / "2.targets.json").write_bytes(state.targets.to_bytes())
    with pytest.raises(exceptions.RepositoryError):
        board().check(hostile.folder)
    with pytest.raises(ReleaseError, match=r"2\.targets\.json"):
        operations.refresh(hostile, held())


def hostile_with_roots_of(repository, hostile):
    """Return the thief's folder with the newest roots, which a mirror can add but cannot leave out forever."""
    for path in repository.metadata.glob("*.root.json"):
        (hostile.metadata / path.name).write_bytes(path.read_bytes())
    return hostile.folder


@pytest.mark.parametrize("lost", ["root-1", "root-2", "targets", "online"])
def test_a_lost_key_is_replaced_using_the_others(repository, add, board, held, tmp_path, lost):
    add(1)
    early = board()
    early.check(repository.folder)
    (tmp_path / "releases-keys" / f"{lost}.pem").unlink()
    operations.rotate(repository, held(), [lost])
    assert (tmp_path / "releases-keys" / f"{lost}.pem").exists()
    add(2)
    operations.refresh(repository, held(), "root")
    assert (
        early.check(repository.folder)
        == board().check(repository.folder)
        == ["door/photos-1.edgecnn", "door/photos-2.edgecnn"]
    )
    assert repository_status(repository)["roles"]["root"]["threshold"] == 2


@pytest.mark.parametrize("names", [["root-1", "root-2"], ["root-3", "root-2"]])
def test_two_stolen_root_keys_that_are_not_lost_are_replaced_together(repository, add, board, held, names):
    """The new root needs the signatures of two old keys and two new ones."""
    add(1)
    early = board()
    early.check(repository.folder)
    former = set(repository.read().root.roles["root"].keyids)
    operations.rotate(repository, held(), names)
    assert len(former & set(repository.read().root.roles["root"].keyids)) == 1
    early.check(repository.folder)
    operations.refresh(repository, held(), "root")
    assert early.check(repository.folder) == board().check(repository.folder)


def test_a_forgotten_passphrase_is_a_lost_key(repository, add, board, held, tmp_path):
    keys = tmp_path / "releases-keys"
    other = Keys([tmp_path / "other"], lambda name, new: "nobody knows this one")
    (tmp_path / "other").mkdir()
    other.create("targets")
    (tmp_path / "other" / "targets.pem").replace(keys / "targets.pem")
    operations.rotate(repository, held(), ["targets"])
    add(1)
    board().check(repository.folder)


def test_either_of_two_root_keys_is_enough_if_init_says_so(tmp_path, held):
    folder, keys = tmp_path / "two", tmp_path / "two-keys"
    operations.init(folder, held(keys), root_keys=2, threshold=1)
    (keys / "root-1.pem").unlink()
    operations.rotate(Repository(folder), held(keys), ["root-1"])
    (keys / "root-2.pem").unlink()
    operations.refresh(Repository(folder), held(keys), "root")
    assert repository_status(Repository(folder))["roles"]["root"]["version"] == 3
    with pytest.raises(ReleaseError, match="3 of 2 root keys cannot sign"):
        operations.init(tmp_path / "other", held(tmp_path / "other-keys"), root_keys=2, threshold=3)
    for root_keys, threshold in ((1, 0), (10, 2)):
        with pytest.raises(ReleaseError):
            operations.init(tmp_path / "other", held(tmp_path / "other-keys"), root_keys=root_keys, threshold=threshold)
    assert not (tmp_path / "other").exists() and not (tmp_path / "other-keys").exists()
    operations.init(tmp_path / "other", held(tmp_path / "other-keys"), root_keys=1, threshold=1)
    assert repository_status(Repository(tmp_path / "other"))["roles"]["root"]["keys"] == ["root-1"]


def test_the_nightly_refresh_needs_only_the_online_key_and_the_root(repository, add, board, held, tmp_path):
    add(1)
    online = tmp_path / "online"
    online.mkdir()
    for name in ("online.pem", "root.json"):
        (tmp_path / "releases-keys" / name).rename(online / name)
    version = repository.read().timestamp.signed.version

    def ask(name, new):
        raise AssertionError("nobody is there at night")

    operations.refresh(repository, held(online, ask=ask))
    assert repository.read().timestamp.signed.version == version + 1
    board().check(repository.folder)
    with pytest.raises(ReleaseError, match=r"no targets\.pem"):
        operations.change(repository, held(online, ask=ask), "door", share=5)


def test_root_keys_can_come_from_several_folders(repository, held, tmp_path):
    keys = tmp_path / "releases-keys"
    sticks = [tmp_path / "stick1", tmp_path / "stick2"]
    for stick, name in zip(sticks, ("root-1.pem", "root-3.pem"), strict=True):
        stick.mkdir()
        (keys / name).rename(stick / name)
    (keys / "root-2.pem").unlink()
    with pytest.raises(ReleaseError, match="must sign, but only 0 of them are in"):
        operations.rotate(repository, held(), ["root-2"])
    operations.rotate(repository, held(keys, *sticks), ["root-2"])
    with pytest.raises(ReleaseError, match=r"there is no key root-4\. .*Known: online, root-1"):
        operations.rotate(repository, held(keys, *sticks), ["root-4"])
