"""Training splits photos: those that show the same share a split, the list survives new photos, and inspection agrees."""

import csv
import errno
import io
import zipfile

import numpy as np
import pytest

from edgecnn.data import open_dataset
from edgecnn.data.sides import FILE, SOURCES, read_sides
from edgecnn.errors import OutputError
from edgecnn.inspect import features
from edgecnn.inspect.fix import USUAL, write_cleaned
from edgecnn.inspect.inspection import inspect_images
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.runs import LEFT_OUT, create_run
from edgecnn.stages import sides as stage
from edgecnn.stages.sides import placed, write_sides

SPLITS = ("train", "validation", "test")


class Quiet:
    def __init__(self):
        self.notes = []
        self.note = self.notes.append

    def working(self, what, done, total):
        pass

    training = working


@pytest.fixture(autouse=True)
def by_hashes(monkeypatch):
    monkeypatch.setattr(features, "missing_weights", lambda: True)


@pytest.fixture
def pets(tmp_path, fill, scene, encode):
    """Photos of 40 scenes of two classes; 12 of them also have a compressed copy."""
    pictures = {f"{('cat', 'dog')[n % 2]}/{n}.jpg": scene(n) for n in range(40)}
    files = {path: encode(picture, quality=90) for path, picture in pictures.items()}
    copies = {path.replace(".", " copy."): encode(picture, quality=45) for path, picture in list(pictures.items())[:12]}
    return fill(tmp_path / "pets", files | copies)


def opened(path):
    return open_dataset(DataRecipe(source=str(path)))


def split_of(dataset):
    return {item.source: item.split for part in dataset.items.values() for item in part}


def train(path, run=None):
    reporter = Quiet()
    return placed(opened(path), reporter, run), reporter.notes


def test_copies_share_a_split_and_nothing_moves_as_photos_arrive(pets, scene, encode):
    dataset, notes = train(pets)
    splits, content = split_of(dataset), split_of(opened(pets))
    assert content == splits, "the next command follows the list"
    pairs = [(path, path.replace(" copy.", ".")) for path in splits if " copy." in path]
    assert len(pairs) == 12 and all(splits[one] == splits[other] for one, other in pairs)
    assert "pets: 24 of 52 photos show the same thing as others" in notes[1] and notes[2].endswith(
        f"the splits are stored in {pets}/{FILE}; photos listed there never move"
    )
    before = (pets / FILE).read_text().splitlines()
    (pets / "cat" / "0.jpg").unlink()
    (pets / "dog" / "1.jpg").rename(pets / "cat" / "1.jpg")
    for number in (2, 30):
        (pets / "cat" / f"{number} later.jpg").write_bytes(encode(scene(number), quality=60))
    (pets / "dog" / "new.jpg").write_bytes(encode(scene(99)))
    after, notes = train(pets)
    now = split_of(after)
    assert {path: now[path] for path in splits if path in now} == {path: splits[path] for path in splits if path in now}
    assert now["cat/1.jpg"] == splits["dog/1.jpg"] and now["cat/2 later.jpg"] == splits["cat/2.jpg"]
    assert now["cat/30 later.jpg"] == splits["cat/30.jpg"]
    assert (
        "51 photos kept in the split that edgecnn-splits.csv lists; 3 new photos, of which 2 show the same thing"
        in notes[1]
    )
    lines = (pets / FILE).read_text().splitlines()
    assert set(before) < set(lines) and len(lines) == len(before) + 3
    assert train(pets)[0].hashes == after.hashes and (pets / FILE).read_text().splitlines() == lines


def test_splits_follow_content_if_no_two_photos_show_the_same(pets):
    for copy in pets.glob("*/* copy.jpg"):
        copy.unlink()
    before = opened(pets)
    dataset, notes = train(pets)
    assert dataset.hashes == before.hashes and dataset.fingerprint == before.fingerprint
    assert notes[1] == "pets: no two of 40 photos show the same thing"
    other = open_dataset(DataRecipe(source=str(pets), test_fraction=0.5))
    placed(other, reporter := Quiet())
    assert "would be in another split by data.test_fraction" in reporter.notes[2]


def test_inspection_splits_like_training_and_writes_nothing(pets):
    def inspected():
        dataset = open_dataset(DataRecipe(source=str(pets)), for_training=False)
        return inspect_images(dataset, missing="by hashes alone")

    first = inspected()
    assert not (pets / FILE).exists() and len(first.groups) == 12 and not any(group.leak for group in first.groups)
    dataset, _ = train(pets)
    assert first.fingerprint == dataset.fingerprint == inspected().fingerprint and first.splits == dataset.sizes
    write_cleaned(first, opened(pets), pets.parent / "cleaned", USUAL, lambda *_: None)
    assert (pets.parent / "cleaned" / FILE).read_bytes() == (pets / FILE).read_bytes(), (
        "the kept photos keep their splits"
    )


def test_frames_of_one_scene_share_a_split_even_if_they_are_not_copies(pets, monkeypatch):
    """Fake features: only photos n and n + 20 resemble each other."""
    for copy in pets.glob("*/* copy.jpg"):
        copy.unlink()

    def forged(items, read, cache, body, meter):
        rows = np.zeros((len(items), 1280), np.float32)
        for row, number in zip(rows, (int(item.source[4:-4]) for item in items), strict=True):
            row[number % 20], row[100 + number] = 0.95**0.5, 0.05**0.5
        return rows, 0

    monkeypatch.setattr(features, "missing_weights", lambda: False)
    monkeypatch.setattr(features, "compute", forged)
    report = inspect_images(open_dataset(DataRecipe(source=str(pets)), for_training=False))
    dataset, notes = train(pets)
    splits = split_of(dataset)
    by_number = {int(path[4:-4]): split for path, split in splits.items()}
    assert all(by_number[number] == by_number[number + 20] for number in range(20)) and set(splits.values()) == set(
        SPLITS
    )
    assert "40 of 40 photos show the same thing as others" in notes[0]
    assert not report.groups and report.fingerprint == dataset.fingerprint


def test_if_everything_looks_alike_only_copies_share_a_split(pets, monkeypatch):
    monkeypatch.setattr(features, "missing_weights", lambda: False)
    monkeypatch.setattr(
        features, "compute", lambda items, *_: (np.eye(1, 1280, dtype=np.float32).repeat(len(items), 0), 0)
    )
    monkeypatch.setattr(features, "open_body", lambda: lambda parts: np.eye(len(parts), 1280, dtype=np.float32))
    splits = split_of(train(pets)[0])
    assert all(splits[path] == splits[path.replace(" copy.", ".")] for path in splits) and set(splits.values()) == set(
        SPLITS
    )


def test_a_frame_that_links_two_splits_is_named_and_left_out_of_comparisons(pets, scene, encode, tmp_path):
    splits = split_of(train(pets)[0])
    test, taught = (
        next(path for path in splits if splits[path] == split and "copy" not in path) for split in ("test", "train")
    )
    hashes = {item.source: item.hash for part in opened(pets).items.values() for item in part}
    (pets / "dog" / "between.jpg").write_bytes(encode(scene(77)))
    hashes |= {item.source: item.hash for part in opened(pets).items.values() for item in part}
    rows = [(hashes[path], path, "door", 50 * n) for n, path in enumerate((test, "dog/between.jpg", taught))]
    (pets / SOURCES).write_text("sha256,path,board,ts\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    dataset, notes = train(pets)
    now = split_of(dataset)
    assert (now[test], now[taught]) == ("test", "train")
    assert any("of the same thing as training photos" in line and test in line and taught in line for line in notes)
    run = create_run(build_recipe({"data": {"source": str(pets)}}), tmp_path / "run")
    write_sides(run, dataset)
    listed = {row["sha256"]: row["with"] for row in csv.DictReader(io.StringIO(run.file(LEFT_OUT).read_text()))}
    assert hashes[test] in listed and all(now[path] == "test" for path in now if hashes[path] in listed)
    assert read_sides(run.file(FILE).read_bytes(), FILE) == dataset.sides


def test_archives_and_read_only_folders_keep_the_list_with_the_run(pets, tmp_path, monkeypatch, scene, encode):
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pets.glob("*/*.jpg")):
            file.write(path, f"pets/{path.relative_to(pets)}")
    run = create_run(build_recipe({"data": {"source": str(archive)}}), tmp_path / "run")
    dataset, notes = train(archive, run)
    assert f"the splits are stored with the run, in its {FILE}, since nothing is written into archives" in notes[-1]
    write_sides(run, dataset)
    with zipfile.ZipFile(archive, "a") as file:
        for number in range(12, 20):
            file.writestr(f"pets/cat/{number} copy.jpg", encode(scene(number), quality=40))
    again, _ = train(archive, run)
    splits, now = split_of(dataset), split_of(again)
    assert {path: now[path] for path in splits} == splits, "the run's list takes precedence"
    with zipfile.ZipFile(archive, "a") as file:
        file.write(run.file(FILE), f"pets/{FILE}")
    assert split_of(train(archive)[0]) == now

    def refused(path, data):
        raise OutputError("no") from OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(stage, "write_atomic", refused)
    dataset, notes = train(pets)
    assert "since it cannot be written there (Read-only file system)" in notes[-1] and not (pets / FILE).exists()
    full = OutputError("full")
    monkeypatch.setattr(stage, "write_atomic", lambda path, data: (_ for _ in ()).throw(full))
    with pytest.raises(OutputError, match="full"):
        train(pets)
