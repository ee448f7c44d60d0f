"""Unsure frames in a folder of limited size, and a disk that is full."""

import errno
import functools
import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.stream.keep import INDEX, UncertainFrames
from edgecnn.device.stream.pictures import encode, folder_name, turn, why_no_folder
from edgecnn.device.stream.results import FrameResult
from edgecnn.device.stream.settings import Reaction
from edgecnn.errors import ImageError, OutputError
from edgecnn.runtime.classifier import Result
from edgecnn.runtime.decision import ABSTAIN, BELOW_THRESHOLD, NO_SCORE, Score, decide


def jpeg(size):
    """Bytes that begin as a JPEG does."""
    return b"\xff\xd8\xff" + bytes(size - 3)


def frame(result, image, seq=0):
    """A frame with what a classifier made of it."""
    return FrameResult(
        seq=seq, ts=0.0, age_ms=0.0, source="fake", image=image, top=result.top, decision=result.decision, reason=result.reason,
        lead=result.lead, state=None, state_since=None, latency_ms={}, dropped=0,
    )  # fmt: skip


def result(label="cat", score=0.4, reason=None):
    """What a classifier of two classes made of a frame whose other class has no score."""
    top = (Score(label, 0, score), Score("other", 1, 0.0))
    return Result(top, ABSTAIN if reason else label, reason, score, {})


def unsure(label="cat"):
    return result(label, reason=BELOW_THRESHOLD)


NO_NUMBERS = Result((), ABSTAIN, NO_SCORE, 0.0, {})


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != INDEX)


@pytest.fixture
def keeper(tmp_path):
    """Make a keeper of 1,000 bytes whose clock goes a second each time it is asked."""

    def make(cap_bytes=1000, **options):
        now = iter(range(10**6))
        options = {
            "wall": lambda: 1764043200.25,
            "clock": lambda: next(now),
            **options,
        }
        return UncertainFrames(tmp_path / "unsure", Reaction(save_cap=cap_bytes / 2**20), **options)

    return make


def test_what_is_unsure(keeper, tmp_path):
    one = keeper()
    one.offer(frame(result(score=0.4), jpeg(10), 0))
    one.offer(frame(result(score=0.5), jpeg(10), 1))
    one.offer(frame(result("dog", 0.9, BELOW_THRESHOLD), jpeg(10), 2))
    one.offer(frame(NO_NUMBERS, b"\x89PNG\r\n\x1a\n", 3))
    assert files(tmp_path / "unsure") == [
        "cat/20251125T040000.250000Z-0.jpg",
        "dog/20251125T040000.250000Z-2.jpg",
        "unknown/20251125T040000.250000Z-3.png",
    ]
    assert (tmp_path / "unsure/cat/20251125T040000.250000Z-0.jpg").read_bytes() == jpeg(10)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.75, 0.25), False),  # two classes: a lead of exactly the margin is sure
        ((0.74, 0.26), True),
        ((0.5, 0.5), True),
        ((0.6, 0.05), False),
        ((0.45, 0.3), True),  # many classes
        ((1.0,), False),
        ((0.4,), True),
    ],
)
def test_unsure_means_the_same_for_any_number_of_classes(keeper, tmp_path, scores, kept):
    labels = [f"class {index}" for index in range(len(scores))]
    keeper().offer(frame(Result(*decide(np.array(scores), labels), {}), jpeg(10)))
    assert bool(files(tmp_path / "unsure")) == kept


def test_one_a_second(keeper, tmp_path):
    times = iter([0, 0.3, 0.6, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4])
    one = keeper(clock=lambda: next(times))
    for seq in range(9):
        one.offer(frame(unsure(), jpeg(10), seq))
    assert [name[-5] for name in files(tmp_path / "unsure")] == ["0", "4"]


def test_the_oldest_go_when_there_are_too_many(keeper, tmp_path):
    one = keeper()
    for seq in range(9):
        one.offer(frame(unsure("ab"[seq % 2]), jpeg(300), seq))
    assert [name[-5] for name in files(tmp_path / "unsure")] == ["6", "8", "7"]
    again = keeper()
    again.offer(frame(unsure("a"), jpeg(700), 9))
    assert [name[-5] for name in files(tmp_path / "unsure")] == ["8", "9"], "files of an earlier run count and go too"


def test_the_index_stays_small(keeper, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(os, "fsync", written.append)  # the slow part
    one = keeper()
    for seq in range(500):
        one.offer(frame(unsure(), jpeg(300), seq))
    assert len((tmp_path / "unsure" / INDEX).read_text().splitlines()) < 100
    assert len(written) < 520, "an SD card wears: the index is not written anew at each frame"
    keeper().offer(frame(unsure(), jpeg(990), 500))
    assert len(files(tmp_path / "unsure")) == 1


def test_files_of_others_stay(keeper, tmp_path):
    folder = tmp_path / "unsure"
    one = keeper()
    for seq in range(3):
        one.offer(frame(unsure(), jpeg(300), seq))
    (folder / "dog").mkdir()
    (folder / "dog/mine.jpg").write_bytes(jpeg(5000))
    (folder / "cat/20251125T040000.250000Z-0.jpg").rename(folder / "dog/sorted.jpg")
    (folder / "cat/20251125T040000.250000Z-1.jpg").write_bytes(b"edited")
    for seq in range(3, 9):
        one.offer(frame(unsure(), jpeg(300), seq))
    names = files(folder)
    assert "dog/sorted.jpg" in names and "dog/mine.jpg" in names and "cat/20251125T040000.250000Z-1.jpg" in names
    assert len(names) == 6


def test_an_index_that_leads_elsewhere_removes_nothing(keeper, tmp_path):
    victim = tmp_path / "victim.jpg"
    victim.write_bytes(jpeg(300))
    (tmp_path / "unsure").mkdir()
    (tmp_path / "unsure" / INDEX).write_text("300 ../victim.jpg\n300 cat/../../victim.jpg\n30")
    one = keeper(cap_bytes=310)
    for seq in range(3):
        one.offer(frame(unsure(), jpeg(300), seq))
    assert victim.exists()


def test_an_index_that_was_damaged_or_edited_removes_nothing(keeper, tmp_path):
    folder = tmp_path / "unsure" / "cat"
    folder.mkdir(parents=True)
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.jpg").write_bytes(jpeg(300))
    index = "x cat/a.jpg\n² cat/b.jpg\n299 cat/c.jpg\n301 cat/d.jpg\ncat/a.jpg\n\n"
    (tmp_path / "unsure" / INDEX).write_text(index, encoding="utf-8")
    one = keeper(cap_bytes=310)
    one.offer(frame(unsure(), jpeg(300)))
    assert {f"cat/{name}.jpg" for name in ("a", "b", "c", "d")} < set(files(tmp_path / "unsure"))


def test_names_are_of_world_time_and_sort(keeper, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        keeper(wall=lambda: 1764043200.0625).offer(frame(unsure(), jpeg(10)))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert files(tmp_path / "unsure") == ["cat/20251125T040000.062500Z-0.jpg"]


def test_a_frame_as_large_as_all(keeper, tmp_path):
    one = keeper()
    for seq in range(2):
        one.offer(frame(unsure(), jpeg(1000), seq))
    assert [name[-5] for name in files(tmp_path / "unsure")] == ["1"]


def test_a_frame_larger_than_all(keeper, tmp_path):
    with pytest.raises(OutputError, match=r"limit for all kept frames, 1,000 bytes\. Allow more with --save-cap\."):
        keeper().offer(frame(unsure(), jpeg(1001)))
    assert not (tmp_path / "unsure").exists()


def test_a_full_disk(keeper, tmp_path, monkeypatch):
    one = keeper()
    one.offer(frame(unsure(), jpeg(10), 0))
    with monkeypatch.context() as patch:

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            one.offer(frame(unsure(), jpeg(10), 1))
    assert len(files(tmp_path / "unsure")) == 1, "nothing is left half-written"
    one.offer(frame(unsure(), jpeg(10), 2))
    assert len(files(tmp_path / "unsure")) == 2


def test_pixels_are_kept_as_jpeg_and_upright(keeper, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255
    keeper(cap_bytes=10**6, write=functools.partial(encode, rotation=90)).offer(frame(unsure(), pixels))
    (name,) = files(tmp_path / "unsure")
    kept = np.asarray(Image.open(tmp_path / "unsure" / name))
    assert kept.shape == (60, 40, 3), "train reads it as it stands"
    assert kept[:30, 20:].mean() > 250 and kept[30:].mean() < 5, "the upper left is now the upper right"


def test_what_is_written_can_be_something_else_than_the_frame(keeper, tmp_path):
    received = []

    def write(image):
        received.append(image)
        return b"map of it", ".png"

    one = keeper(write=write)
    one.offer(frame(result(score=0.9), jpeg(10), 0))
    one.offer(frame(unsure(), jpeg(10), 1))
    assert received == [jpeg(10)], "nothing is made of a frame that is sure"
    (name,) = files(tmp_path / "unsure")
    assert name == "cat/20251125T040000.250000Z-1.png" and (tmp_path / "unsure" / name).read_bytes() == b"map of it"


def test_a_frame_of_which_nothing_can_be_made_is_an_event(keeper, tmp_path):
    def write(image):
        raise ImageError("the model's scores are not numbers")

    (event,) = keeper(write=write).take(frame(NO_NUMBERS, jpeg(10)))
    assert event.kind == "save_failed" and "not numbers" in event.message
    assert not (tmp_path / "unsure").exists()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_turning_bytes_is_turning_pixels(rotation):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    turned = np.rot90(pixels, -rotation // 90)
    assert np.array_equal(np.asarray(turn(buffer.getvalue(), rotation)), turned)
    assert np.array_equal(turn(pixels, rotation), turned)
    data, suffix = encode(buffer.getvalue(), rotation)
    assert (suffix, data == buffer.getvalue()) == ((".png", True) if not rotation else (".jpg", False))


@pytest.mark.parametrize(
    ("label", "why", "folder"),
    [
        ("red fox", "", "red fox"),
        ("Füchse", "", "Füchse"),
        ("", "empty", "_"),
        (".git", "hidden", "_.git"),
        ("..", "hidden", "_.."),
        ("a/b", "slash", "_a_b"),
        ("a\\b", "slash", "_a_b"),
        ("a\nb", "control character", "_a_b"),
        ("a\u200db", "printed", "_a_b"),
        ("abstain", "unsure", "_abstain"),
        (" a", "space", "_a"),
        ("Val", "splits", "_Val"),
        ("ü" * 99, "longer", "_" + "ü" * 49),
    ],
)
def test_labels_as_folders(label, why, folder):
    assert why in why_no_folder(label) and bool(why) == bool(why_no_folder(label))
    assert folder_name(label) == folder
    assert not why_no_folder(folder)
