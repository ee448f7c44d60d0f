"""Files as sources, worked on in order, by several processes."""

import functools
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.stream import sources as module
from edgecnn.device.stream.sources import expand, for_each_image, in_processes
from edgecnn.errors import EngineError, ImageError, PartialFailure
from edgecnn.images import MEMORY_LIMIT, require_memory


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
    assert listed("photos/**/*.bmp") == listed("**/c.bmp") == [("photos/sub/c.bmp", None)]
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


@pytest.fixture
def forked(monkeypatch):
    """Forks begin after the first image, and are given three images at a time."""
    monkeypatch.setattr(module, "WORTH_S", 0.0)
    monkeypatch.setattr(module, "CHUNK", 3)


def test_several_processes_give_the_same_outcomes_and_notes_in_the_same_order(tmp_path, forked):
    for folder, count in (("a", 30), ("b", 1), ("c", 0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").touch()
        for number in range(count):
            (tmp_path / folder / f"{number:02}.png").touch()
    sources = [str(tmp_path / name) for name in ("a", "none.png", "b", "c", "*.gif")]

    def work(source):
        time.sleep(0.001 * (len(source) % 3))
        pids.add(os.getpid())
        if source.endswith("7.png"):
            raise ImageError("it is broken")
        return source.upper(), os.getpid()

    def seen(processes):
        shown = []
        for source, result, error in for_each_image(work, sources, [], shown.append, processes):
            pids.update(result[1:] if result else ())
            shown.append((source, result and result[0], str(error)))
        return shown

    pids = set()
    one = seen(1)
    assert len(one) == 30 + 1 + 1 + 1 + 1 + 3 and pids == {os.getpid()}
    assert seen(3) == one and len(pids) > 1


def test_an_image_too_large_for_a_part_of_the_memory_is_decoded_alone(tmp_path, monkeypatch, forked):
    """Two processes may take 50 MiB each. One image takes 80: its turn comes when both are idle. Another takes more than there is."""
    monkeypatch.setenv(MEMORY_LIMIT, "100")
    needed = {f"{number:02}.png": 30 for number in range(20)} | {"05.png": 80, "11.png": 101}
    for name in needed:
        (tmp_path / name).touch()
    busy = tmp_path / "busy"

    def work(source):
        require_memory(needed[Path(source).name] << 20)
        if os.getpid() == parent:
            return [path.name for path in busy.parent.glob("busy*")]
        mark = busy.with_name(f"busy{os.getpid()}")
        mark.touch()
        time.sleep(0.02)
        mark.unlink()
        return "fork"

    parent = os.getpid()
    found = list(for_each_image(work, [str(tmp_path)], [], processes=2))
    results = {Path(one.source).name: one.result for one in found}
    assert list(results) == sorted(needed)
    assert results.pop("00.png") == results.pop("05.png") == []
    assert results.pop("11.png") is None and "about 101 MiB; the limit is 100 MiB" in str(found[11].error)
    assert set(results.values()) == {"fork"}


@pytest.mark.parametrize("end", [signal.SIGKILL, "exception"])
def test_a_process_that_ends_is_an_error_and_leaves_none_behind(tmp_path, forked, end):
    for number in range(30):
        (tmp_path / f"{number:02}.png").touch()

    def work(source):
        if source.endswith("09.png"):
            if end == "exception":
                raise ValueError("the ninth")
            os.kill(os.getpid(), end)
        return source

    error, words = (
        (ValueError, "the ninth") if end == "exception" else (EngineError, r"0[1-9]\.png or an image after it")
    )
    with pytest.raises(error, match=words):
        list(for_each_image(work, [str(tmp_path)], [], processes=2))
    assert not multiprocessing.active_children()


def test_no_more_than_a_few_images_are_begun_ahead_and_closing_ends_the_processes(tmp_path, forked):
    for number in range(100):
        (tmp_path / f"{number:02}.png").touch()
    (tmp_path / "begun").mkdir()

    def work(source):
        (tmp_path / "begun" / Path(source).stem).touch()
        return source

    outcomes = for_each_image(work, [str(tmp_path)], [], processes=2)
    for number in range(10):
        assert next(outcomes).source.endswith(f"{number:02}.png")
    outcomes.close()
    assert not multiprocessing.active_children()
    begun = len(list((tmp_path / "begun").iterdir()))
    assert 10 <= begun <= 10 + 2 * module.AHEAD * module.CHUNK


def test_a_folder_is_classified_on_all_processors_with_the_same_output(edgecnn, root, tmp_path, monkeypatch, forked):
    model, rng = root / "models" / "digits" / "digits.edgecnn", np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (20 + number, 40, 3), np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").touch()
    given = []
    monkeypatch.setattr(module, "in_processes", lambda *args: (given.append(args[3]), in_processes(*args))[1])
    for options in ((), ("--json",)):
        results = []
        for processors in (1, 3):
            monkeypatch.setattr("edgecnn.cli.classify.processors", lambda count=processors: count)
            result = edgecnn("classify", tmp_path, tmp_path / "none.png", "--model", model, *options)
            results.append((result.code, re.sub(r'"latency_ms": ?{[^}]*}', "", result.out), result.err))
        assert results[0] == results[1] and results[0][0] == PartialFailure.exit_code
        assert len(results[0][1].splitlines()) == 19 + 2 * len(options)
    assert given == [3, 3]
    edgecnn("classify", tmp_path / "00.png", "--model", model)
    edgecnn("classify", tmp_path, "--model", model, "--threads", "2")
    assert given == [3, 3], "one image, or an engine with threads, has no forks"


@pytest.mark.parametrize("slow", [0.0, 0.02])
def test_forks_begin_only_if_the_first_images_take_long(tmp_path, slow):
    for number in range(24):
        (tmp_path / f"{number:02}.png").touch()

    def work(source):
        time.sleep(slow)
        return source, os.getpid()

    found = [outcome.result for outcome in for_each_image(work, [str(tmp_path)], [], processes=3)]
    assert [Path(path).stem for path, _ in found] == [f"{number:02}" for number in range(24)]
    assert ({pid for _, pid in found} == {os.getpid()}) == (slow == 0)
