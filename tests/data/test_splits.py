"""Images are split by content: membership, hashes and fingerprints depend on nothing else."""

import dataclasses
import os
import shutil

import pytest

from edgecnn.data import open_dataset
from edgecnn.data.items import Item
from edgecnn.data.splits import SPLITS, divide
from edgecnn.errors import DatasetError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe


def item(number: int, split: str = "train") -> Item:
    return Item(split=split, label=number % 2, hash=sha256(b"%d" % number), source=str(number), handle=None)


def where(divided) -> dict[str, str]:
    return {item.source: split for split in SPLITS for item in divided[split]}


def test_the_hash_decides_by_the_stated_formula():
    recipe = DataRecipe(validation_fraction=0.1, test_fraction=0.2)
    divided = divide(map(item, range(5000)), recipe)
    for split in SPLITS:
        for entry in divided[split]:
            place = int(entry.hash[:16], 16) / 2**64
            assert split == ("test" if place < 0.2 else "validation" if place < 0.3 else "train")
            assert entry.split == split
    assert 900 < len(divided["test"]) < 1100
    assert 430 < len(divided["validation"]) < 570


def test_the_fractions_are_upper_bounds():
    recipe = DataRecipe(validation_fraction=0.5, test_fraction=0.25)
    first = {"test": "0" * 64, "validation": f"4{'0' * 63}", "train": f"c{'0' * 63}"}
    last = {"test": f"3{'f' * 9}{'0' * 54}", "validation": f"b{'f' * 9}{'0' * 54}", "train": f"{'f' * 10}{'0' * 54}"}
    for hashes in (first, last):
        items = (dataclasses.replace(item(0), hash=hash_, source=split) for split, hash_ in hashes.items())
        assert all(source == split for source, split in where(divide(items, recipe)).items())


def test_adding_images_moves_none():
    before = where(divide(map(item, range(1000)), DataRecipe()))
    after = where(divide(map(item, range(3000)), DataRecipe()))
    assert {source: after[source] for source in before} == before


def test_a_smaller_validation_split_is_part_of_a_larger_one():
    small, large = (
        {entry.hash for entry in divide(map(item, range(1000)), DataRecipe(validation_fraction=fraction))["validation"]}
        for fraction in (0.1, 0.2)
    )
    assert small < large


def test_splits_from_the_source_stay():
    own_test = divide([*map(item, range(1000)), *(item(n, "test") for n in range(1000, 1100))], DataRecipe())
    assert {entry.source for entry in own_test["test"]} == {str(n) for n in range(1000, 1100)}
    assert 60 < len(own_test["validation"]) < 140
    own_both = divide([item(1), item(2, "validation"), item(3, "test")], DataRecipe(validation_fraction=0.5))
    assert where(own_both) == {"1": "train", "2": "validation", "3": "test"}
    own_validation = divide([*map(item, range(1000)), item(1000, "validation")], DataRecipe())
    assert len(own_validation["validation"]) == 1
    assert 150 < len(own_validation["test"]) < 250


def test_adding_an_image_to_a_folder_moves_no_other(pets, fill, picture):
    recipe = DataRecipe(source=str(pets))
    size = {"height": 12, "width": 12, "channels": 3, "stage": "train"}
    before = open_dataset(recipe).load(("train", "validation"), **size)
    fill(pets, {f"cat/new{number}.png": picture(5000 + number) for number in range(30)})
    after = open_dataset(recipe).load(("train", "validation"), **size)
    for split in before:
        assert [source for source in after[split].sources if "new" not in source] == list(before[split].sources)
    assert any("new" in source for source in after["train"].sources)


def test_names_and_disk_order_do_not_matter(pets, tmp_path):
    original = open_dataset(DataRecipe(source=str(pets)))
    copy = tmp_path / "other" / "pets"
    for label in ("dog", "cat"):
        (copy / label).mkdir(parents=True)
        for number, path in enumerate(sorted((pets / label).iterdir(), reverse=True)):
            shutil.copy(path, copy / label / f"renamed-{number}.png")
    renamed = open_dataset(DataRecipe(source=str(copy)))
    assert renamed.fingerprint == original.fingerprint
    assert renamed.hashes == original.hashes
    size = {"height": 12, "width": 12, "channels": 3, "stage": "verify"}
    first, second = original.load(SPLITS, **size), renamed.load(SPLITS, **size)
    for split in SPLITS:
        assert (first[split].images == second[split].images).all()
        assert (first[split].classes == second[split].classes).all()


def test_the_order_of_a_folders_listing_does_not_matter(pets, monkeypatch):
    expected = open_dataset(DataRecipe(source=str(pets)))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert open_dataset(DataRecipe(source=str(pets))).fingerprint == expected.fingerprint


@pytest.mark.parametrize("change", ["pixel", "label", "gone"])
def test_the_fingerprint_detects_every_change(pets, change, picture):
    before = open_dataset(DataRecipe(source=str(pets)))
    victim = pets / "cat" / "7.png"
    if change == "pixel":
        victim.write_bytes(picture(7777))
    elif change == "label":
        victim.rename(pets / "dog" / "moved.png")
    else:
        victim.unlink()
    after = open_dataset(DataRecipe(source=str(pets)))
    assert after.fingerprint != before.fingerprint
    assert after.hashes != before.hashes


def test_the_fingerprint_includes_the_fractions(pets):
    recipe = DataRecipe(source=str(pets))
    other = dataclasses.replace(recipe, validation_fraction=0.3)
    assert open_dataset(recipe).fingerprint != open_dataset(other).fingerprint


def test_a_class_without_training_images_reports_how_many_are_needed(tmp_path, fill, picture, pictures):
    to_validation = (seed for seed in range(10_000) if int(sha256(picture(seed))[:16], 16) / 2**64 < 0.2)
    foxes = {f"train/fox/{n}.png": picture(next(to_validation)) for n in range(3)}
    files = {**pictures("train/cat", 0, 9), **pictures("train/dog", 100, 9), **pictures("test/fox", 20_000, 3), **foxes}
    with pytest.raises(DatasetError, match=r"no training images for 'fox'.*\n.*at least 10 training images"):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)), validation_fraction=0.3))


def test_an_empty_validation_split_reports_how_many_are_needed(tmp_path, fill, picture):
    seeds = (seed for seed in range(10_000) if int(sha256(picture(seed))[:16], 16) / 2**64 > 0.5)
    files = {f"{label}/{n}.png": picture(next(seeds)) for label in ("cat", "dog") for n in range(3)}
    with pytest.raises(DatasetError, match=r"the validation split is empty; it takes 10%.*\n.*about 66 in total"):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)))).check()


def test_an_empty_test_split_reports_how_many_are_needed(tmp_path, fill, picture):
    places = {seed: int(sha256(picture(seed))[:16], 16) / 2**64 for seed in range(100)}
    kept = [seed for seed, place in places.items() if place > 0.5]
    validation = [seed for seed, place in places.items() if 0.2 < place < 0.3]
    files = {
        f"{label}/{seed}.png": picture(seed)
        for label, seeds in (("cat", kept[::2]), ("dog", kept[1::2]))
        for seed in seeds
    }
    files |= {f"cat/{seed}.png": picture(seed) for seed in validation}
    with pytest.raises(DatasetError, match=r"(?s)pets.* test .*20%.* 31 "):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)))).check()
