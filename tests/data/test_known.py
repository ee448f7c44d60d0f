"""A run keeps the images that it started with, whatever is added to their folder later."""

import os
from dataclasses import replace

import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.data import open_dataset, open_run_dataset
from edgecnn.data.recorded import require_split, write_known
from edgecnn.emulate.bundles import recorded_data
from edgecnn.errors import DatasetError, RunError
from edgecnn.evaluate.taught import images_csv
from edgecnn.recipe import build_recipe
from edgecnn.run_info import InputSize, RunInfo
from edgecnn.runs import IMAGES, create_run
from edgecnn.tables import to_json

SPLITS = ("train", "validation", "test")


@pytest.fixture
def run(pets, tmp_path):
    """A run on the folder of pets as it was when training began."""
    recipe = build_recipe({"data": {"source": str(pets)}})
    run, dataset = create_run(recipe, tmp_path / "run"), open_dataset(recipe.data)
    size = InputSize(height=12, width=12, channels=3)
    run.write_info(RunInfo(state="trained", data=dataset.info({}), input=size, parameters=1, versions={}))
    write_known(run, dataset)
    return run


def grow(pets, fill, picture):
    """Add photos of both classes, a copy, and a new class that sorts first; all are newer than the others."""
    names = [f"{label}/new{number}.png" for label in ("aardvark", "cat", "dog") for number in range(20)]
    fill(pets, {name: picture(9000 + number) for number, name in enumerate(names)})
    fill(pets, {"cat/copy.png": (pets / "cat" / "0.png").read_bytes()})
    for path in pets.glob("*/new*.png"):
        os.utime(path, (path.stat().st_mtime + 60,) * 2)
    later = (pets / "cat" / "copy.png").stat().st_mtime + 90
    os.utime(pets / "cat" / "copy.png", (later, later))


def test_added_photos_do_not_lock_a_run(run, pets, fill, picture):
    before = open_run_dataset(run).load(SPLITS, height=12, width=12, channels=3, stage="verify")
    grow(pets, fill, picture)
    notes = []
    dataset = open_run_dataset(run, note=notes.append)
    for split in SPLITS:
        require_split(run, dataset, split)
    after = dataset.load(SPLITS, height=12, width=12, channels=3, stage="verify")
    assert dataset.labels == run.info.data.labels == ("cat", "dog") and dataset.fingerprint == run.info.data.fingerprint
    for split in SPLITS:
        assert (after[split].images == before[split].images).all()
        assert (after[split].classes == before[split].classes).all()
    assert notes == ["pets: left out 61 images added after training began"]


def test_a_bundle_finds_its_test_photos_among_added_ones_by_its_list(run, pets, fill, picture, root):
    info, quiet = run.info.data, (lambda *state: None, lambda text: None)
    shipped = read_bundle(root / "models" / "digits" / "digits.edgecnn")
    provenance = {"recipe": {"data": {"source": str(pets)}}, "data": to_json(info)}
    manifest = replace(shipped.manifest, labels=info.labels, provenance=provenance)
    bundle = replace(shipped, manifest=manifest, files={IMAGES: images_csv(run)})
    fill(
        pets,
        {f"{label}/new{number}.png": picture(9000 + number) for label in ("aardvark", "cat") for number in range(20)},
    )
    assert recorded_data(bundle, None, "test", *quiet).hashes["test"] == info.split_hashes["test"]
    with pytest.raises(DatasetError, match="the test images of pets are not those"):
        recorded_data(replace(bundle, files={}), None, "test", *quiet)


def test_a_photo_stays_in_its_split_if_the_user_divides_them_later(run, pets):
    (pets / "train").mkdir()
    for label in ("cat", "dog"):
        (pets / label).rename(pets / "train" / label)
        (pets / "test" / label).mkdir(parents=True)
        os.link(pets / "train" / label / "0.png", pets / "test" / label / "0.png")
        (pets / "train" / label / "0.png").unlink()
    dataset = open_run_dataset(run)
    for split in SPLITS:
        require_split(run, dataset, split)


def test_a_photo_that_was_moved_and_copied_counts_once(run, pets):
    one = open_run_dataset(run).items["train"][0]
    (pets / "train").mkdir()
    for label in ("cat", "dog"):
        (pets / label).rename(pets / "train" / label)
    label, _, name = one.source.partition("/")
    (pets / "test" / label).mkdir(parents=True)
    (pets / "train" / label / name).rename(pets / "test" / label / name)
    (pets / "test" / label / "copy.png").write_bytes((pets / "test" / label / name).read_bytes())
    dataset = open_run_dataset(run)
    assert [item.hash for item in dataset.items["train"]].count(one.hash) == 1
    require_split(run, dataset, "train")


def test_a_missing_photo_is_named(run, pets, picture):
    dataset = open_run_dataset(run)
    (gone, *_), changed = dataset.items["test"], dataset.items["train"][0]
    (pets / gone.source).unlink()
    (pets / changed.source).write_bytes(picture(4242))
    dataset = open_run_dataset(run)
    count = run.info.data.split_sizes["test"]
    with pytest.raises(
        RunError, match=f"pets lacks .* 1 of the {count} test images that .*run began with: {gone.source}"
    ):
        require_split(run, dataset, "test")
    with pytest.raises(RunError, match=f"train images .*: {changed.source}"):
        require_split(run, dataset, "train")
    require_split(run, dataset, "validation")
    run.file(IMAGES).unlink()
    with pytest.raises(RunError, match=f"it had {count} images, now it has {count - 1}"):
        require_split(run, open_run_dataset(run), "test")
