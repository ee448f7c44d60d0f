"""The loop over images: each has one outcome, whatever happens to one of them."""

import functools
import time
from pathlib import Path
from threading import Thread, current_thread

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.stream.sources import for_each_image
from edgecnn.errors import ImageError, PartialFailure

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
