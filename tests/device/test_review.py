"""A review: its questions, what an answer writes, and what survives a kill at any moment."""

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from edgecnn.boards import LABELS_FILE
from edgecnn.device.keep.folder import Facts, KeptModel, KeptPicture, KeptScore, documents, name_of, write_files
from edgecnn.device.review import REVIEWED, Journal, Photos, Reviewing, are_alike, file_name
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import sha256, sha256_file
from edgecnn.labels import SOURCES_CSV


def review(tmp_path, kept="kept", photos="photos"):
    (tmp_path / photos).mkdir(exist_ok=True)
    store = Photos(tmp_path / photos, tmp_path / kept, "door")
    reviewing = Reviewing(tmp_path / kept, store, into="photos")
    store.finish(reviewing.pictures.values())
    store.take(Journal(tmp_path / kept / LABELS_FILE).decided, reviewing.pictures.values())
    return reviewing


def labelled(folder):
    """Return (class, SHA-256) of each photo, sorted. Checks that each has a file and a line, and that there are no others."""
    files = sorted((path.parent.name, sha256_file(path)) for path in folder.glob("*/*"))
    lines = (
        list(csv.DictReader((folder / SOURCES_CSV).read_text().splitlines())) if (folder / SOURCES_CSV).exists() else []
    )
    assert sorted((line["path"].partition("/")[0], line["sha256"]) for line in lines) == files
    assert {path.name for path in folder.iterdir() if path.is_file()} <= {SOURCES_CSV}
    return files


@pytest.mark.parametrize("left", ["", "sha256,pa"])
def test_a_list_that_a_kill_left_before_its_first_line_gets_it(tmp_path, keep_pictures, left):
    kept = keep_pictures(tmp_path / "kept", scenes=2, group=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / SOURCES_CSV).write_text(left)
    for one in kept:
        assert review(tmp_path).answer([one.picture.sha256], "label", "dog")
    assert {label for label, _ in labelled(tmp_path / "photos")} == {"dog"}
    assert review(tmp_path).document()["left"] == 0


def test_similar_pictures_are_one_question_and_the_random_sample_comes_first_and_blind(tmp_path, keep_pictures):
    kept = keep_pictures(tmp_path / "kept", scenes=4, group=3, sample=2)
    kept[11].path.write_bytes(b"\xff\xd8\xff broken")
    kept[10].path.with_suffix(".json").write_text("{")
    reviewing = review(tmp_path)
    shown = reviewing.document()
    assert [len(question["pictures"]) for question in shown["next"]] == [3, 3, 3, 1]
    assert [question["why"] for question in shown["next"]] == ["random", "random", "unsure", "unsure"]
    assert [question["guess"] for question in shown["next"]] == [None, None, "fox", "cat"]
    assert {question["score"] for question in shown["next"][:2]} == {None} and shown["unreadable"] == 1
    assert shown["classes"] == ["cat", "dog", "fox"] and shown["left"] == 10

    first, second, _ = shown["next"][0]["pictures"]
    assert reviewing.answer([first, second], "label", "dog")
    assert [len(question["pictures"]) for question in reviewing.document()["next"]] == [1, 3, 3, 1]
    assert reviewing.answer(reviewing.document()["next"][0]["pictures"], "skip")
    assert reviewing.document()["field"] is None, "it would reveal the model's answers on open pictures"
    assert reviewing.answer(reviewing.document()["next"][0]["pictures"], "label", "dog")
    assert (
        reviewing.document()["field"].startswith("in the field 60.0 % right: 5 random pictures from 1 hour, ")
        and "1 skipped, between 50.0" in reviewing.field().text
    )


def test_a_picture_of_the_random_sample_is_not_asked_together_with_an_unsure_one(tmp_path, keep_pictures):
    keep_pictures(tmp_path / "kept", scenes=1, group=2)
    keep_pictures(tmp_path / "kept", scenes=1, sample=1)  # the first of the two again, now in the sample
    shown = review(tmp_path).document()["next"]
    assert [(question["why"], len(question["pictures"])) for question in shown] == [("random", 1), ("unsure", 1)]


def test_a_repeated_answer_counts_only_the_pictures_that_it_adds(tmp_path, keep_pictures):
    first, second = (kept.picture.sha256 for kept in keep_pictures(tmp_path / "kept", scenes=2))
    reviewing = review(tmp_path)
    assert reviewing.answer([first], "skip") and reviewing.answer([first, second], "skip")
    assert reviewing.counts["skip"] == 2 and reviewing.undo() and reviewing.counts["skip"] == 1


def test_an_answer_is_written_once_undone_and_never_asked_again(tmp_path, keep_pictures):
    kept = keep_pictures(tmp_path / "kept", scenes=3, group=2)
    names = [one.picture.sha256 for one in kept]
    reviewing = review(tmp_path)
    assert reviewing.answer(names[:2], "label", "a new one") and reviewing.answer(names[:2], "label", "a new one")
    assert not reviewing.answer(names[1:3], "label", "cat"), "the first of them has a different answer"
    assert labelled(tmp_path / "photos") == sorted(("a new one", name) for name in names[:2])
    line = next(csv.DictReader((tmp_path / "photos" / SOURCES_CSV).read_text().splitlines()))
    assert line["path"] == f"a new one/{kept[0].path.name.partition('-')[0]}-{names[0][:12]}.jpg"
    assert (line["board"], line["why"], line["guess"], line["model"]) == ("door", "unsure", "", "ab" * 32)
    assert reviewing.answer(names[2:4], "none") and reviewing.answer(names[4:], "label", "fox")
    assert reviewing.undo() and labelled(tmp_path / "photos") == sorted(("a new one", name) for name in names[:2])
    for label in ("../up", ".hidden", "a/b", "", "test", "A New One", "\u202ecat", "x" * 101):
        with pytest.raises(ValueError, match="class"):
            reviewing.answer(names[4:], "label", label)
    with pytest.raises(ValueError, match="no picture"):
        reviewing.answer(["0" * 64], "skip")
    half = tmp_path / "photos" / "a new one" / f".{line['path'].partition('/')[2]}.0a1b.tmp"
    half.write_bytes(b"half")
    again = review(tmp_path)
    assert [question["pictures"] for question in again.document()["next"]] == [names[4:]] and not again.undo()
    assert not half.exists(), "left by a review that was killed"
    (tmp_path / "photos" / "test").mkdir()
    with pytest.raises(OutputError, match="folders of splits"):
        review(tmp_path)


@pytest.mark.parametrize("head", ["a,path", "sha256,path", "z,path"])
def test_a_list_of_sources_with_other_columns_is_left_alone(tmp_path, keep_pictures, head):
    keep_pictures(tmp_path / "kept", scenes=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / SOURCES_CSV).write_text(f"{head}\n")
    with pytest.raises(OutputError, match=r"expected sha256,path,.* as its first line"):
        review(tmp_path)
    assert (tmp_path / "photos" / SOURCES_CSV).read_text() == f"{head}\n"


def test_the_field_is_the_newest_models_and_counts_go_back_with_an_answer(tmp_path, keep_pictures):
    """The guesses are cat, dog, fox, cat, dog, cat; the first two come from an older model."""
    kept = keep_pictures(tmp_path / "kept", scenes=6, labels=("cat", "dog", "fox"), sample=5)
    for one in kept[:2]:
        description = one.path.with_suffix(".json")
        description.write_text(description.read_text().replace("ab" * 32, "cd" * 32))
    names = [one.picture.sha256 for one in kept]
    reviewing = Reviewing(tmp_path / "kept", Journal(tmp_path / "kept" / LABELS_FILE))
    for name, label in zip(names, ("dog", "fox", "fox", "dog", "dog", "fox"), strict=True):
        assert reviewing.answer([name], "label", label)
    field = reviewing.field()
    assert (field.n, field.accuracy, field.skipped) == (3, pytest.approx(2 / 3), 0), (
        "fox, dog and dog for fox, cat, dog"
    )
    for decision, counts in (("skip", (5, 0, 1)), ("none", (5, 1, 0))):
        assert reviewing.undo() and reviewing.answer(names[5:], decision)
        document = reviewing.document()
        assert (document["labelled"], document["none"], document["skipped"], document["left"]) == (*counts, 0)
    assert reviewing.document()["undo"] == 1 and reviewing.undo() and reviewing.document()["left"] == 1


def test_an_object_that_fills_one_block_separates_two_pictures():
    empty = np.full((32, 32, 3), 250, np.uint8)
    for difference, alike in ((11, True), (12, False)):
        changed = empty.copy()
        changed[4:8, 20:24] -= np.uint8(difference)
        assert are_alike(empty, changed) == are_alike(changed, empty) == alike
    spread = empty.copy()
    spread[2:6, 2:6] = 210  # a quarter of each of four blocks
    assert are_alike(empty, spread) and not are_alike(empty, None)


def test_a_picture_is_shown_and_compared_as_the_model_saw_it(tmp_path):
    """Two pictures of 160 x 120 pixels: the right halves of their upper 30 rows are alike, and nothing else is."""
    chance = np.random.default_rng(2)
    shared = chance.integers(10, 245, (3, 4, 3)).repeat(10, 0).repeat(20, 1)
    for number in range(2):
        pixels = chance.integers(10, 245, (12, 16, 3)).repeat(10, 0).repeat(10, 1)
        pixels[:30, 80:] = shared
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "jpeg", quality=95)
        facts = Facts(
            ts=1795860902.5 + number, why="unsure", source="camera", seq=number, model=KeptModel(name="door", sha256="ab" * 32),
            scores=(KeptScore(label="cat", score=0.5),), label=None, reason="below_margin", region=(0.5, 0.0, 0.5, 0.25),
            picture=KeptPicture(sha256=sha256(buffer.getvalue()), width=160, height=120),
        )  # fmt: skip
        write_files(tmp_path / "kept", name_of(facts.ts, facts.seq), documents(facts, buffer.getvalue()))
    reviewing = review(tmp_path)
    (question,) = reviewing.document()["next"]
    assert len(question["pictures"]) == 2 and question["ts"] == 1795860902.5, "one question, of the first one's time"
    assert (question["guess"], question["score"], question["reason"]) == ("cat", 0.5, "below_margin")
    for name in question["pictures"]:
        seen = Image.open(io.BytesIO(reviewing.preview(name)))
        assert seen.size == (80, 30)
        assert np.abs(np.asarray(seen).astype(int) - shared).mean() < 20
    assert reviewing.preview("0" * 64) is None


def test_a_page_gets_four_questions_and_classes_in_the_order_of_the_alphabet(tmp_path, keep_pictures):
    kept = keep_pictures(tmp_path / "kept", scenes=7, group=2, labels=("owl", "Cat", "ant"))
    (tmp_path / "photos" / "bee").mkdir(parents=True)
    (tmp_path / "photos" / "Zebra").mkdir()
    reviewing = review(tmp_path)
    document = reviewing.document()
    assert [len(question["pictures"]) for question in document["next"]] == [2] * 4 and document["left"] == 14
    assert document["classes"] == ["ant", "bee", "Cat", "owl", "Zebra"]
    names = [one.picture.sha256 for one in kept]
    assert reviewing.answer(names[:2], "label", "a new one") and reviewing.answer(names[2:3], "none")
    document = reviewing.document()
    assert document["classes"] == ["ant", "bee", "Cat", "owl", "Zebra", "a new one"], "the keys of the others stay"
    assert (document["undo"], document["labelled"], document["none"], document["left"]) == (1, 2, 1, 11)
    assert reviewing.undo() and reviewing.document()["undo"] == 2
    assert reviewing.undo() and reviewing.document()["undo"] == 0 and not reviewing.undo()
    with pytest.raises(ValueError, match="no decision 'open'"):
        reviewing.answer(names[:1], "open")


def test_each_line_has_the_models_decision_and_the_times_of_the_picture_and_of_the_label(tmp_path, keep_pictures):
    kept = keep_pictures(tmp_path / "kept", scenes=3, sample=1)
    reviewing = review(tmp_path)
    names = [one.picture.sha256 for one in kept]
    before = time.time()
    assert reviewing.answer(names[:2], "label", "cat")
    assert labelled(tmp_path / "photos") == sorted(("cat", name) for name in names[:2])
    lines = list(csv.DictReader((tmp_path / "photos" / SOURCES_CSV).read_text().splitlines()))
    assert [(line["why"], line["guess"], line["ts"]) for line in lines] == [
        ("random", "cat", "1795860902.500000"), ("unsure", "", "1795860962.500000"),
    ]  # fmt: skip
    assert all(before - 0.01 <= float(line["labelled"]) <= time.time() + 0.01 for line in lines)
    (tmp_path / "as others").touch()
    assert (tmp_path / "photos" / SOURCES_CSV).stat().st_mode == (tmp_path / "as others").stat().st_mode
    assert reviewing.undo() and labelled(tmp_path / "photos") == [] and all(one.path.exists() for one in kept)
    assert reviewing.answer(names, "skip") and reviewing.document()["next"] == []
    newest = keep_pictures(tmp_path / "kept", scenes=4, sample=1)[3].picture.sha256
    assert [question["pictures"] for question in reviewing.document()["next"]] == [[newest]], "it arrived meanwhile"


def test_answers_from_the_board_are_adopted_once(tmp_path, keep_pictures):
    names = [one.picture.sha256 for one in keep_pictures(tmp_path / "kept", scenes=4)]
    board = Reviewing(tmp_path / "kept", Journal(tmp_path / "kept" / LABELS_FILE), ["cat"])
    assert (
        board.answer(names[:1], "label", "cat")
        and board.answer(names[1:2], "skip")
        and board.answer(names[2:3], "none")
    )
    assert board.undo() and board.answer(names[2:3], "label", "dog")
    with (tmp_path / "kept" / LABELS_FILE).open("a") as file:
        file.write(json.dumps({"sha256": names[3], "decision": "label", "label": "../up"}) + "\nnull\n[[\n")
        file.write('{"sha256": "cut')
    decided, pictures = Journal(tmp_path / "kept" / LABELS_FILE).decided, board.pictures.values()
    (tmp_path / "others").mkdir()
    others = Photos(tmp_path / "others", tmp_path / "kept", "door")
    assert (others.take(decided, pictures), others.take(decided, pictures)) == (3, 0), "two labels and one skipped"
    (tmp_path / "kept" / REVIEWED).unlink()
    reviewing = review(tmp_path)
    assert labelled(tmp_path / "photos") == [("cat", names[0]), ("dog", names[2])]
    assert [question["pictures"] for question in reviewing.document()["next"]] == [[names[3]]]
    reviewing.answer(names[3:], "skip")
    assert board.undo() and board.answer(names[2:3], "label", "cat"), "adopted answers stay unchanged"
    assert review(tmp_path).document()["left"] == 0 and len(labelled(tmp_path / "photos")) == 2


@pytest.mark.parametrize("by", ["hand", "board"])
@pytest.mark.parametrize(("decision", "label"), [("label", "cat"), ("none", ""), ("skip", "")])
def test_an_undone_answer_is_none_so_the_boards_later_one_is_adopted(tmp_path, keep_pictures, decision, label, by):
    (kept,) = keep_pictures(tmp_path / "kept", scenes=1)
    name = kept.picture.sha256
    here = review(tmp_path)
    assert here.answer([name], decision, label) and here.undo()
    if by == "board":
        board = Reviewing(tmp_path / "kept", Journal(tmp_path / "kept" / LABELS_FILE), ["dog"])
        assert board.answer([name], "label", "dog")
    assert review(tmp_path).document()["left"] == (by == "hand")
    assert labelled(tmp_path / "photos") == ([("dog", name)] if by == "board" else [])


def test_a_picture_that_changed_after_it_was_shown_is_not_filed_under_its_old_hash(tmp_path, keep_pictures):
    kept = keep_pictures(tmp_path / "kept", scenes=4)
    names = [one.picture.sha256 for one in kept]
    reviewing = review(tmp_path)
    assert len(reviewing.document()["next"]) == 4
    kept[1].path.write_bytes(kept[0].path.read_bytes())
    other = tmp_path / "elsewhere.jpg"
    kept[2].path.replace(other)
    kept[2].path.symlink_to(other)
    other.write_bytes(kept[0].path.read_bytes())
    for changed in (1, 2):
        with pytest.raises(ImageError, match="changed"):
            reviewing.answer(names[:1] + names[changed : changed + 1], "label", "owl")
    assert labelled(tmp_path / "photos") == [] and not any((tmp_path / "photos").iterdir())
    assert reviewing.answer(names[3:], "label", "owl")
    (photo,) = (tmp_path / "photos" / "owl").iterdir()
    kept[3].path.write_bytes(b"overwritten")
    assert labelled(tmp_path / "photos") == [("owl", names[3])] and photo.is_file()
    assert [question["pictures"] for question in reviewing.document()["next"]] == [names[:1]]


def test_an_undo_removes_the_class_folder_that_the_review_made_and_no_other(tmp_path, keep_pictures):
    names = [one.picture.sha256 for one in keep_pictures(tmp_path / "kept", scenes=3)]
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    reviewing = review(tmp_path)
    for name, label in zip(names, ("cat", "owl", "owl"), strict=True):
        assert reviewing.answer([name], "label", label)
    folders = []
    while reviewing.undo():
        folders.append(sorted(path.name for path in (tmp_path / "photos").iterdir() if path.is_dir()))
    assert folders == [["cat", "owl"], ["cat"], ["cat"]]
    assert reviewing.answer(names[:1], "label", "owl") and labelled(tmp_path / "photos") == [("owl", names[0])]


def test_a_full_disk_leaves_nothing_of_an_answer(tmp_path, keep_pictures, monkeypatch):
    names = [one.picture.sha256 for one in keep_pictures(tmp_path / "kept", scenes=4)]
    reviewing = review(tmp_path)
    reviewing.answer(names[:1], "label", "cat")
    steps = (("label", "cat"), ("label", "dog"), ("skip", ""))
    for step, undo, fails in itertools.product(steps, (False, True), range(6)):
        if undo:
            assert reviewing.answer(names[1:3], *step)
        with monkeypatch.context() as patch:
            syncs = iter([*[None] * fails, OSError(errno.ENOSPC, "No space left on device")])
            patch.setattr(os, "fsync", lambda file, syncs=syncs: raise_if(next(syncs, None)))
            with contextlib.suppress(OutputError):
                reviewing.undo() if undo else reviewing.answer(names[1:3], *step)
        left = reviewing.document()["left"]
        assert all(any(path.iterdir()) for path in (tmp_path / "photos").iterdir() if path.is_dir())
        assert left == review(tmp_path).document()["left"] and left in (1, 3)
        assert len(labelled(tmp_path / "photos")) == (3 if left == 1 and step[0] == "label" else 1)
        if left == 1:
            assert fails > 0 or undo
            assert reviewing.undo()
        assert reviewing.counts == {"label": 1, "none": 0, "skip": 0}


def test_an_answer_after_a_power_cut_does_not_continue_the_torn_line(tmp_path, keep_pictures):
    names = [one.picture.sha256 for one in keep_pictures(tmp_path / "kept", scenes=3)]
    assert review(tmp_path).answer(names[:1], "none")
    with (tmp_path / "kept" / REVIEWED).open("a") as file:
        file.write('{"sha256": "' + names[1])
    assert review(tmp_path).answer(names[2:], "skip")
    assert [question["pictures"] for question in review(tmp_path).document()["next"]] == [names[1:2]]


def test_a_photo_that_a_killed_review_had_placed_survives_an_answer_that_fails(tmp_path, keep_pictures, monkeypatch):
    (kept,) = keep_pictures(tmp_path / "kept", scenes=1)
    reviewing = review(tmp_path)
    placed = tmp_path / "photos" / "cat" / file_name(kept)
    placed.parent.mkdir()
    shutil.copy(kept.path, placed)
    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr(Photos, "_add", lambda *_: raise_if(OutputError("no space left")))
        reviewing.answer([kept.picture.sha256], "label", "cat")
    assert placed.is_file()
    assert review(tmp_path).document()["left"] == 0 and labelled(tmp_path / "photos") == [("cat", kept.picture.sha256)]


def raise_if(error):
    if error:
        raise error


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.guard)])
def test_a_kill_at_any_moment_neither_loses_nor_doubles_a_label(tmp_path, keep_pictures, kills):
    """A reviewer answers, and undoes every third answer, in a process that is killed again and again."""
    of = {one.picture.sha256: one.guess for one in keep_pictures(tmp_path / "kept", scenes=8, group=2)}
    photos, chance, known, labels = tmp_path / "photos", random.Random(1), set(), 0
    for _ in range(kills):
        heard, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer_all(tmp_path, of, says)
            finally:
                os._exit(0)
        os.close(says)
        with open(heard, encoding="utf-8") as file:
            assert file.read(2) == "?\n"  # it has started
            lines = [file.readline().strip() for _ in range(chance.randrange(8))]
            time.sleep(chance.uniform(0, 0.01))  # in the middle of the next answer
            os.kill(child, signal.SIGKILL)
            lines = [*filter(None, lines), *file.read().split("\n")[:-1]]
        os.waitpid(child, 0)
        for done, *names in map(str.split, lines):
            labels += len(names) if done == "label" else 0
            known = {name for name in known if name not in names} | (set(names) if done == "label" else set())
        # an unconfirmed answer may or may not be on disk; a confirmed one is there, once and in its place
        on_disk = [(sha256_file(path), path.parent.name) for path in photos.glob("*/[!.]*")]
        assert len(dict(on_disk)) == len(on_disk) and known <= dict(on_disk).keys()
        assert all(of[name] == label for name, label in on_disk)
        left = review(tmp_path).document()["left"]
        assert len(labelled(photos)) == len(of) - left and not list(photos.glob("*/.*"))
        if left < len(of) // 2:
            shutil.rmtree(photos)
            known = set()
    assert labels > kills // 4, "it was killed while working"


def answer_all(tmp_path, of, says):
    reviewing = review(tmp_path)
    reviewing.document()
    os.write(says, b"?\n")
    for count, question in enumerate(iter(lambda: reviewing.document()["next"], [])):
        names = question[0]["pictures"]
        reviewing.answer(names, "label", of[names[0]])
        os.write(says, f"label {' '.join(names)}\n".encode())
        if count % 3 == 2:
            os.write(says, f"undo {' '.join(names)}\n".encode())
            reviewing.undo()
