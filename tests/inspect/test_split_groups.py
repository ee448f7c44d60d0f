"""Training divides photos: groups share a split, splits have their shares, the list survives new photos, and inspection agrees."""

import csv
import errno
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.data.splits import read_split_groups
from edgecnn.errors import DatasetError, OutputError
from edgecnn.files import sha256_file
from edgecnn.inspect import look
from edgecnn.inspect.fix import USUAL, write_cleaned
from edgecnn.inspect.inspection import inspect_images
from edgecnn.labels import SOURCES_CSV, SPLITS_CSV
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.runs import LEFT_OUT, create_run
from edgecnn.stages import Silent
from edgecnn.stages import train as stage
from edgecnn.stages.train import placed, write_split_groups

SPLITS = ("train", "validation", "test")


class Quiet(Silent):
    def __init__(self):
        self.notes = []
        self.note = self.detail = self.notes.append


@pytest.fixture(autouse=True)
def by_hashes(monkeypatch):
    monkeypatch.setattr(look, "missing_weights", lambda: True)


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
    splits = split_of(dataset)
    assert split_of(opened(pets)) == splits, "the next command follows the list"
    pairs = [(path, path.replace(" copy.", ".")) for path in splits if " copy." in path]
    assert len(pairs) == 12 and all(splits[one] == splits[other] for one, other in pairs)
    assert "pets: 24 of 52 photos are copies of others" in notes[1] and notes[2].endswith(
        f"the splits are stored in {pets}/{SPLITS_CSV}; photos listed there never move"
    )
    for label in ("cat", "dog"):
        mine = [split for path, split in splits.items() if path.startswith(label)]
        assert [mine.count(split) for split in SPLITS] == pytest.approx([18.2, 2.6, 5.2], abs=1.3)
    before = (pets / SPLITS_CSV).read_text().splitlines()
    (pets / "cat" / "0.jpg").unlink()
    (pets / "dog" / "1.jpg").rename(pets / "cat" / "1.jpg")
    for number in (2, 30):
        (pets / "cat" / f"{number} later.jpg").write_bytes(encode(scene(number), quality=60))
    (pets / "dog" / "new.jpg").write_bytes(encode(scene(99)))
    after, notes = train(pets)
    now = split_of(after)
    assert {path: now[path] for path in splits if path in now} == {path: splits[path] for path in splits if path in now}
    assert now["cat/1.jpg"] == splits["dog/1.jpg"]
    assert now["cat/30 later.jpg"] == splits["cat/30.jpg"]
    assert "51 photos kept in the split that edgecnn-splits.csv lists; 3 new photos" in notes[1]
    lines = (pets / SPLITS_CSV).read_text().splitlines()
    renamed = {line for line in before if ",dog/1.jpg," in line}
    assert set(before) - renamed < set(lines) and len(lines) == len(before) + 3, "only its path is another now"
    assert train(pets)[0].hashes == after.hashes and (pets / SPLITS_CSV).read_text().splitlines() == lines


def test_other_fractions_divide_new_photos_only_and_a_line_says_so(pets):
    train(pets)
    other = open_dataset(DataRecipe(source=str(pets), test_fraction=0.5))
    placed(other, reporter := Quiet())
    assert any(re.search("test has (19|2.)%", line) and "of the photos, not 50%" in line for line in reporter.notes)


def test_inspection_splits_like_training_and_writes_nothing(pets):
    def inspected():
        dataset = open_dataset(DataRecipe(source=str(pets)), for_training=False)
        return inspect_images(dataset, missing="by hashes alone")

    first = inspected()
    assert (
        not (pets / SPLITS_CSV).exists() and len(first.groups) == 12 and not any(group.leak for group in first.groups)
    )
    dataset, _ = train(pets)
    assert first.fingerprint == dataset.fingerprint == inspected().fingerprint and first.splits == dataset.sizes
    write_cleaned(first, opened(pets), pets.parent / "cleaned", USUAL, lambda *_: None)
    assert (pets.parent / "cleaned" / SPLITS_CSV).read_bytes() == (pets / SPLITS_CSV).read_bytes(), (
        "the kept photos keep their splits"
    )


def test_photos_that_only_resemble_each_other_are_divided_as_others(pets, monkeypatch):
    """Fake features: all photos of a class are nearly the same by their features, as before a camera that never moves."""
    for copy in pets.glob("*/* copy.jpg"):
        copy.unlink()

    def forged(items, read, cache, body, meter):
        rows = np.zeros((len(items), 1280), np.float32)
        for row, item in zip(rows, items, strict=True):
            row[item.label], row[100 + int(item.source[4:-4])] = 0.95**0.5, 0.05**0.5
        return rows, 0

    monkeypatch.setattr(look, "missing_weights", lambda: False)
    monkeypatch.setattr(look, "compute", forged)
    monkeypatch.setattr(look, "open_body", lambda: lambda parts: np.eye(len(parts), 1280, dtype=np.float32))
    report = inspect_images(open_dataset(DataRecipe(source=str(pets)), for_training=False))
    dataset, _ = train(pets)
    assert dataset.sizes == {"train": 28, "validation": 4, "test": 8}
    assert not report.groups and report.fingerprint == dataset.fingerprint


def test_folders_below_the_class_folders_are_groups_until_none_divides_anew(pets, scene, encode):
    for path in pets.glob("*/*.jpg"):
        part = path.parent / f"part-{int(path.stem.split()[0]) % 10}"
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)
    dataset, notes = train(pets)
    groups = {}
    for path, split in split_of(dataset).items():
        groups.setdefault(path.split("/")[1], set()).add(split)
    assert len(groups) == 10 and all(len(found) == 1 for found in groups.values()), (
        "one folder in two classes is one group"
    )
    assert {split for found in groups.values() for split in found} == set(SPLITS)
    assert dataset.groups().by == "folder" and sum(dataset.groups().splits.values()) == 10
    assert any("10 groups by 'folder'" in line for line in notes)
    before = (pets / SPLITS_CSV).read_bytes()
    (pets / "dog" / "part-3" / "later.jpg").write_bytes(encode(scene(99)))
    now = split_of(train(pets)[0])
    assert {now["dog/part-3/later.jpg"]} == groups["part-3"], "a new photo of an old group"

    listed = (pets / SPLITS_CSV).read_bytes()
    recipe = DataRecipe(source=str(pets), group_by="none")
    anew = placed(open_dataset(recipe), reporter := Quiet())
    was = {one: split_group.split for one, split_group in read_split_groups(listed, SPLITS_CSV).items()}
    moved = sum(item.split != was[item.hash] for part in anew.items.values() for item in part)
    assert any(
        f"divided anew, since {SPLITS_CSV} was divided otherwise: {moved} photos" in line for line in reporter.notes
    )
    assert (pets / "edgecnn-splits-1.csv").read_bytes() == listed != before and not anew.groups()
    placed(open_dataset(recipe), reporter := Quiet())
    assert not any("anew" in line for line in reporter.notes) and not (pets / "edgecnn-splits-2.csv").exists()


def test_a_list_of_the_version_before_is_kept_and_a_line_says_how_to_divide_anew(pets):
    items = [item for part in opened(pets).items.values() for item in part]
    text = "sha256,group,split\n" + "".join(f"{item.hash},{item.hash},train\n" for item in items[:40])
    text += "".join(
        f"{item.hash},{item.hash},{split}\n"
        for item, split in zip(items[40:50], ["test", "validation"] * 5, strict=True)
    )
    (pets / SPLITS_CSV).write_text(text)
    _, notes = train(pets)
    assert any("is of edgecnn 0.2.0" in line and "--group-by" in line for line in notes)
    lines = (pets / SPLITS_CSV).read_text().splitlines()
    assert lines[0] == "sha256,group,split" and set(text.splitlines()) < set(lines) and len(lines) == 53
    anew = placed(open_dataset(DataRecipe(source=str(pets), group_by=r"^(\d+)")), reporter := Quiet())
    assert any("divided anew" in line for line in reporter.notes) and anew.groups().by == r"^(\d+)"
    with pytest.raises(DatasetError, match="matches none of 52 names"):
        placed(open_dataset(DataRecipe(source=str(pets), group_by="page")), Quiet())


def test_a_near_copy_of_photos_in_two_splits_is_named_and_left_out_of_comparisons(pets, scene, encode, tmp_path):
    splits = split_of(train(pets)[0])
    test, taught = (
        next(path for path in splits if splits[path] == split and "copy" not in path) for split in ("test", "train")
    )
    hashes = {item.source: item.hash for part in opened(pets).items.values() for item in part}
    copy = pets / "cat" / "copy of both.jpg"
    copy.write_bytes(encode(scene(int(Path(taught).stem)), quality=70))
    text = (pets / SPLITS_CSV).read_text()
    row = f"{sha256_file(copy)},mine,test,cat/copy of both.jpg,photo\n"
    (pets / SPLITS_CSV).write_text(text + row)
    dataset, notes = train(pets)
    now = split_of(dataset)
    assert (now[test], now[taught], now["cat/copy of both.jpg"]) == ("test", "train", "test"), (
        "the list was edited by hand"
    )
    assert any(
        "of the same thing as training photos" in line and "copy of both" in line and taught in line for line in notes
    )
    run = create_run(build_recipe({"data": {"source": str(pets)}}), tmp_path / "run")
    write_split_groups(run, dataset)
    listed = {row["sha256"]: row["with"] for row in csv.DictReader(io.StringIO(run.file(LEFT_OUT).read_text()))}
    assert listed[sha256_file(copy)] == hashes[taught]
    assert read_split_groups(run.file(SPLITS_CSV).read_bytes(), SPLITS_CSV) == dataset.split_groups


def door(people, seconds_each, apart_s):
    """Return the frames of people before one background, in order: pixels and times; each stays for some frames, 4 s apart."""
    random, frames = np.random.default_rng(5), []
    background = random.integers(0, 256, (30, 40, 3)).repeat(4, 0).repeat(4, 1)
    moment = 0.0
    for _ in range(people):
        clothes, top, left = random.integers(0, 256, (12, 8, 3)), random.integers(0, 60), random.integers(0, 100)
        for _ in range(seconds_each):
            frame = background.astype(np.float64)
            frame[top : top + 48, left : left + 32] = clothes.repeat(4, 0).repeat(4, 1)
            frames.append((np.clip(frame + random.normal(0, 4, frame.shape), 0, 255).astype(np.uint8), moment))
            left, moment = min(max(left + int(random.integers(-3, 4)), 0), 127), moment + apart_s
    return frames


@pytest.mark.parametrize("people, frames, least, groups", [(28, 1, 3, 28), (1, 6, 0, 1), (12, 4, 3, 12)])
def test_people_before_one_background_are_divided_and_one_person_is_a_group(
    pets, encode, people, frames, least, groups
):
    """All are labelled the next day: 28 people 4 s apart, one person for 20 s, and twelve people of four frames each."""
    train(pets)
    rows = ["sha256,path,board,ts"]
    for number, (pixels, moment) in enumerate(door(people, frames, 4.0)):
        path = pets / "cat" / f"frame-{number}.jpg"
        path.write_bytes(encode(Image.fromarray(pixels), quality=90))
        rows.append(f"{sha256_file(path)},cat/{path.name},door,{moment}")
    (pets / SOURCES_CSV).write_text("\n".join(rows) + "\n")
    dataset, _ = train(pets)
    found = [item for part in dataset.items.values() for item in part if "frame-" in item.source]
    assert sum(item.split == "test" for item in found) >= least
    assert len({dataset.group_of(item) for item in found}) == groups
    for person in range(people):
        mine = [item for item in found if int(item.source[10:-4]) // frames == person]
        assert len({dataset.group_of(item) for item in mine}) == 1


def test_archives_and_read_only_folders_keep_the_list_with_the_run(pets, tmp_path, monkeypatch, scene, encode):
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pets.glob("*/*.jpg")):
            file.write(path, f"pets/{path.relative_to(pets)}")
    run = create_run(build_recipe({"data": {"source": str(archive)}}), tmp_path / "run")
    dataset, notes = train(archive, run)
    assert (
        f"the splits are stored with the run, in its {SPLITS_CSV}, since nothing is written into archives" in notes[-1]
    )
    write_split_groups(run, dataset)
    with zipfile.ZipFile(archive, "a") as file:
        for number in range(12, 20):
            file.writestr(f"pets/cat/{number} copy.jpg", encode(scene(number), quality=40))
    again, _ = train(archive, run)
    splits, now = split_of(dataset), split_of(again)
    assert {path: now[path] for path in splits} == splits, "the run's list takes precedence"
    with zipfile.ZipFile(archive, "a") as file:
        file.write(run.file(SPLITS_CSV), f"pets/{SPLITS_CSV}")
    assert split_of(train(archive)[0]) == now

    def refused(path, data):
        raise OutputError("no") from OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(stage, "write_atomic", refused)
    dataset, notes = train(pets)
    assert "since it cannot be written there (Read-only file system)" in notes[-1] and not (pets / SPLITS_CSV).exists()
    full = OutputError("full")
    monkeypatch.setattr(stage, "write_atomic", lambda path, data: (_ for _ in ()).throw(full))
    with pytest.raises(OutputError, match="full"):
        train(pets)
