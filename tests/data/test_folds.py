"""Folds: every image tests one model and trains the others, similar images stay together, and a fold's choices never see its images."""

import numpy as np
import pytest

from edgecnn.data import open_dataset
from edgecnn.data.folds import Folds, assign, fold_infos, read_folds, require_listed, stratified, write_folds
from edgecnn.errors import DatasetError, RunError
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.runs import FOLD, FOLD_INFO, FOLDS, create_run, write_json


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DataRecipe(source="digits"), for_training=False)


@pytest.fixture(scope="module")
def few(digits):
    """Forty images of each digit."""
    items = [item for part in digits.items.values() for item in part]
    kept = [item.hash for label in range(10) for item in [item for item in items if item.label == label][:40]]
    return digits.redivided(dict.fromkeys(kept, "train"))


def hashes(dataset, *splits):
    return {item.hash for split in splits for item in dataset.items[split]}


def test_every_image_tests_once_and_similar_images_share_a_fold(few):
    everything = sorted(hashes(few, "train"))
    groups = {one: everything[index // 4 * 4] for index, one in enumerate(everything[:100])}
    folds = assign(few, groups, 5, 1)
    assert folds == assign(few, groups, 5, 1)
    assert sorted(folds.of) == everything and folds.count == 5
    for first in range(0, 100, 4):
        assert len({folds.of[one] for one in everything[first : first + 4]}) == 1
    parts = [folds.without(few, fold, 1) for fold in range(1, 6)]
    assert sorted(one for part in parts for one in hashes(part, "test")) == everything
    for part in parts:
        taught, validated, tested = (hashes(part, split) for split in ("train", "validation", "test"))
        assert taught | validated | tested == set(everything)
        assert not taught & tested and not validated & tested and not taught & validated
        assert len(validated) == pytest.approx(len(everything) * 0.8 / 10, rel=0.15)
        for first in range(0, 100, 4):
            alike = set(everything[first : first + 4])
            assert sum(bool(alike & some) for some in (taught, validated, tested)) == 1
        classes = np.bincount([item.label for item in part.items["test"]], minlength=10)
        assert classes.min() > 0.7 * classes.mean(), "each fold has every class"
    whole = folds.all_teach(parts[0])
    assert hashes(whole, "train") == set(everything) and not whole.sizes["validation"] + whole.sizes["test"]
    assert whole.fingerprint != parts[0].fingerprint


def test_every_class_keeps_a_training_image(few):
    """With two images of a class, one tests and the other trains, whatever the size of the validation part."""
    of = {label: [item.hash for item in few.items["train"] if item.label == label] for label in range(10)}
    rare, others = of[3][:2], [one for label in of if label != 3 for one in of[label][:4]]
    small = few.redivided(dict.fromkeys([*rare, *others], "train"))
    folds = assign(small, {}, 5, 1)
    for fold in range(1, folds.count + 1):
        assert any(item.label == 3 for item in folds.without(small, fold, 1).items["train"])
    with pytest.raises(DatasetError, match="the class '3' has fewer than two different photos"):
        assign(small, dict.fromkeys(rare, rare[0]), 5, 1)
    pairs = few.redivided(dict.fromkeys([one for label in of for one in of[label][:2]], "train"))
    with pytest.raises(DatasetError, match="each class has only one photo left"):
        assign(pairs, {}, 2, 1)


def test_fewer_images_than_folds():
    parts = stratified(np.array([0, 0, 1]), ["a", "b", "c"], 10, 1)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2] and len(parts) == 2


def test_the_list_is_stored_and_missing_images_are_noticed(digits, tmp_path):
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    assert read_folds(run) is None
    folds = assign(digits, {}, 3, 1)
    write_folds(run, folds)
    assert read_folds(run) == folds
    require_listed(run, folds, digits)
    fewer = digits.redivided(dict.fromkeys(sorted(folds.of)[2:], "train"))
    with pytest.raises(RunError, match=r"digits lacks .* 2 of the 1,797 images"):
        require_listed(run, folds, fewer)
    run.file(FOLDS).write_text("sha256,fold\nx,many\n")
    with pytest.raises(RunError, match="is damaged"):
        read_folds(run)


def test_the_records_of_finished_folds_are_read_in_order_with_the_last(tmp_path, fold_info):
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    assert fold_infos(run) == ()
    write_folds(run, Folds(count=3, of={"a": 1, "b": 3, "c": 2}, groups=dict(zip("abc", "abc", strict=True))))
    infos = [fold_info(images=600 - fold) for fold in (1, 3)]
    for fold, info in zip((1, 3), infos, strict=True):
        write_json(run.file(FOLD.format(fold=fold)) / FOLD_INFO, info)
    assert fold_infos(run) == tuple(infos)


def test_data_with_its_own_test_split_is_refused(photos, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for label in photos.iterdir():
            (tmp_path / split / label.name).symlink_to(label)
    dataset = open_dataset(DataRecipe(source=str(tmp_path)), for_training=False)
    with pytest.raises(DatasetError, match="has its own test images"):
        assign(dataset, {}, 3, 1)
