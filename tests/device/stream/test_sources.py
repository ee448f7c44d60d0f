"""Files as sources, read ahead and in order."""

import functools
import os
import threading
import time
from pathlib import Path
from threading import Thread, current_thread

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.stream.sources import AHEAD, expand, for_each_image, in_order
from edgecnn.errors import ImageError, PartialFailure


def listed(*sources, stdin=()):
    """Return (path, error or None) for each item of the sources."""
    return [(path, str(error) if error else None) for path, error in expand(sources, stdin)]


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)


@pytest.mark.usefixtures("here")
def test_a_file_is_accepted_whatever_its_name():
    assert listed("photos/notes.txt", "photos/.hidden.jpg") == [
        ("photos/notes.txt", None),
        ("photos/.hidden.jpg", None),
    ]


@pytest.mark.usefixtures("here")
def test_a_folder_is_sorted_and_recursive_without_hidden_files(folder):
    for name in ("zebra", "mouse", "ape"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").touch()
    names = ["A.PNG", "b.jpg", "ape/1.jpg", "mouse/1.jpg", "sub/c.bmp", "zebra/1.jpg"]
    assert listed("photos") == [(f"photos/{name}", None) for name in names]


@pytest.mark.usefixtures("here")
def test_files_of_a_folder_that_are_not_read_are_counted(folder):
    for name in ("c.heic", "sub/d.HEIC", "e.tif", "f.gif", "g.jfif"):
        (folder / name).write_bytes(b"x")
    notes = []
    found = [path for path, _ in expand(["photos"], (), notes.append)]
    assert [path.rpartition("/")[2] for path in found] == ["A.PNG", "b.jpg", "e.tif", "f.gif", "g.jfif", "c.bmp"]
    (note,) = notes
    assert note.startswith("photos: 3 files left out (2 .heic, 1 .txt)")


@pytest.mark.usefixtures("here")
def test_linked_folders_are_read_like_in_training_and_cycles_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jpg").write_bytes(b"x")
    (folder / "sub" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "sub")
    (folder / "sub" / "self").symlink_to(folder)
    expected = [("A.PNG", None), ("b.jpg", None), ("sub/c.bmp", None), ("sub/cat/d.jpg", None)]
    for source in ("photos", "photos/", str(folder)):
        assert listed(source) == [(os.path.join(source, name), error) for name, error in expected]


@pytest.mark.usefixtures("here")
def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    ((path, error),) = listed("empty")
    assert path == "empty" and "no images in this folder; expected files that end in .jpg" in error


@pytest.mark.usefixtures("here")
def test_folder_that_cannot_be_read(monkeypatch):
    def walk(top, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", f"{top}/secret"))
        yield top, [], names

    monkeypatch.setattr(os, "walk", walk)
    names, secret = ["b.jpg"], ("photos/secret", "cannot be read: Permission denied")
    assert listed("photos") == [("photos/b.jpg", None), secret]
    names = []
    assert listed("photos") == [secret], "it may hold images"


@pytest.mark.usefixtures("here")
def test_glob():
    assert listed("photos/*.jpg") == [("photos/b.jpg", None)]
    assert listed("photos/**/*.bmp") == [("photos/sub/c.bmp", None)]
    assert listed("photos/s*") == [("photos/sub/c.bmp", None)]
    assert listed("photos/*.gif") == [("photos/*.gif", "the pattern matches nothing")]


@pytest.mark.usefixtures("here")
def test_file_with_the_name_of_a_glob(folder):
    (folder / "b[1].jpg").write_bytes(b"x")
    assert listed("photos/b[1].jpg") == [("photos/b[1].jpg", None)]


@pytest.mark.usefixtures("here")
def test_a_missing_file_is_an_item_and_the_rest_follows():
    assert listed("none.jpg", "photos/b.jpg") == [("none.jpg", "no such file or folder"), ("photos/b.jpg", None)]
    ((_, why),) = listed("a\0b")
    assert why.startswith("no such file or folder. ") and "--camera" in why


@pytest.mark.usefixtures("here")
def test_broken_link_is_left_to_the_reader(tmp_path):
    (tmp_path / "link.jpg").symlink_to("nowhere")
    assert listed("link.jpg") == [("link.jpg", None)]


@pytest.mark.usefixtures("here")
def test_standard_input():
    lines = [b"photos/b.jpg\n", b"\n", b"none.jpg\r\n", b"photos/sub", b"\xff.jpg\n", b" b.jpg \n"]
    assert listed("-", stdin=lines) == [
        ("photos/b.jpg", None),
        ("none.jpg", "no such file or folder"),
        ("photos/sub/c.bmp", None),
        ("\udcff.jpg", "no such file or folder"),
        (" b.jpg ", "no such file or folder"),
    ]
    assert listed("-") == []


@pytest.mark.usefixtures("here")
def test_standard_input_is_read_line_by_line():
    def lines():
        yield b"photos/b.jpg\n"
        raise AssertionError("the first image must be given out before the second line is read")

    assert next(expand(["-"], lines())) == ("photos/b.jpg", None)


LONG = 20.0


def running():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_items_are_processed_at_the_same_time_and_yielded_in_order():
    """The first ends last: each of four waits for the one behind it."""
    ended = [threading.Event() for _ in range(4)]

    def work(number):
        assert number == 3 or ended[number + 1].wait(LONG)
        ended[number].set()
        return -number

    assert list(in_order(work, range(4), 4)) == [0, -1, -2, -3]
    assert not running()


def test_an_exception_comes_in_its_turn_and_ends_the_threads():
    def work(number):
        if number >= 5:
            raise ValueError(f"number {number}")
        time.sleep(0.02 * (5 - number))
        return number

    seen = []
    with pytest.raises(ValueError, match="number 5"):
        seen.extend(in_order(work, range(100), 3))
    results = in_order(work, range(100), 3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert not running()


def test_no_more_than_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(str, items(), 2)
    for count in range(1, 100):
        assert next(results) == str(count - 1)
        assert len(taken) == count + 2 * AHEAD - 1
    assert list(results)[-1] == "999"


def test_items_that_wait_when_it_is_closed_are_left_out():
    begun, go_on = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            assert go_on.wait(LONG)
        return number

    results = in_order(work, range(100), 2)
    assert next(results) == 0
    while len(begun) < 3:
        time.sleep(0.001)
    threading.Timer(0.05, go_on.set).start()
    results.close()
    assert begun == [0, 1, 2] and not running(), "those that had begun have ended"


start = Thread.start


def test_a_broken_image_is_an_outcome_and_the_loop_continues(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.jpg").write_bytes(b"x")
    work = functools.partial(fake_classifier.classify, top_k=2, threshold=0.5)
    outcomes = list(for_each_image(work, ["b.jpg", "broken.jpg", "none.jpg", "A.PNG"], []))
    assert [outcome.source for outcome in outcomes] == ["b.jpg", "broken.jpg", "none.jpg", "A.PNG"]
    assert [outcome.result and outcome.result.decision for outcome in outcomes] == ["cat", None, None, "cat"]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ImageError, ImageError, type(None)]
    assert fake_classifier.calls == [(name, 2, 0.5, 0.0) for name in ("b.jpg", "broken.jpg", "A.PNG")]


def test_decisions(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for options, decision in (
        ({"threshold": 0.75}, ("cat", None)),
        ({"threshold": 0.76}, ("abstain", "below_threshold")),
        ({"threshold": 0.0, "margin": 0.5}, ("cat", None)),
        ({"threshold": 0.0, "margin": 0.51}, ("abstain", "below_margin")),
        ({}, ("abstain", "below_threshold")),
    ):
        fake_classifier.threshold = 0.8  # the bundle's threshold
        (outcome,) = for_each_image(functools.partial(fake_classifier.classify, **options), ["b.jpg"], [])
        assert (outcome.result.decision, outcome.result.reason) == decision
        assert [item.label for item in outcome.result.top] == ["cat", "dog"]


def test_outcomes_come_one_by_one(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    outcomes = for_each_image(fake_classifier.classify, ["b.jpg", "A.PNG"], [])
    assert next(outcomes).source == "b.jpg"
    assert len(fake_classifier.calls) == 1


def test_several_threads_give_the_same_outcomes_and_notes_in_the_same_order(tmp_path, monkeypatch):
    monkeypatch.setattr("edgecnn.device.stream.sources.WORTH_S", 0.0)
    for folder, count in (("a", 30), ("b", 1), ("c", 0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").touch()
        for number in range(count):
            (tmp_path / folder / f"{number:02}.png").touch()
    sources = [str(tmp_path / name) for name in ("a", "none.png", "b", "c", "*.gif")]

    def work(source):
        time.sleep(0.001 * (len(source) % 3))
        if source.endswith("7.png"):
            raise ImageError("it is broken")
        return source.upper()

    def seen(threads):
        shown = []
        for source, result, error in for_each_image(work, sources, [], shown.append, threads):
            shown.append((source, result, str(error)))
        return shown

    one = seen(1)
    assert len(one) == 30 + 1 + 1 + 1 + 1 + 3 and seen(3) == one


def test_a_folder_is_classified_on_all_processors_with_the_same_output(edgecnn, root, tmp_path, monkeypatch):
    model, rng = root / "models" / "digits" / "digits.edgecnn", np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (20 + number, 40, 3), np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr("edgecnn.device.stream.sources.WORTH_S", 0.0)
    threads, results = [], []
    for processors in (1, 3):
        monkeypatch.setattr("edgecnn.cli.classify_files.processors", lambda count=processors: count)
        monkeypatch.setattr(Thread, "start", lambda thread: (threads.append(thread.name), start(thread)))
        results.append(edgecnn("classify", tmp_path, tmp_path / "none.png", "--model", model))
    one, several = results
    assert (several.code, several.out, several.err) == (one.code, one.out, one.err)
    assert one.code == PartialFailure.exit_code and len(one.out.splitlines()) == 19
    assert threads.count("ahead") == 3
    edgecnn("classify", tmp_path / "00.png", "--model", model)
    assert threads.count("ahead") == 3, "one image needs no threads, and starts faster without"


@pytest.mark.parametrize("slow", [0.0, 0.02])
def test_threads_begin_only_if_the_first_images_take_long(tmp_path, slow):
    for number in range(24):
        (tmp_path / f"{number:02}.png").touch()
    names = set()

    def work(source):
        names.add(current_thread().name)
        time.sleep(slow)
        return source

    found = [outcome.result for outcome in for_each_image(work, [str(tmp_path)], [], threads=3)]
    assert [Path(path).stem for path in found] == [f"{number:02}" for number in range(24)]
    assert ("ahead" in names) == (slow > 0)
