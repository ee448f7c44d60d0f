"""The images choose whatever a recipe leaves open, and stated values stay."""

import copy
import functools
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.errors import MissingExtraError, RecipeError
from edgecnn.networks import pretrained
from edgecnn.recipe import build_recipe, merge
from edgecnn.train.settle import images_choose, reasons, settle, usual_network


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a function that makes a folder with a number of images per class, of a given size. Tests share it: do not change it."""
    random = np.random.default_rng(1)

    @functools.cache
    def make(count, size, mode="RGB"):
        folder = tmp_path_factory.mktemp("photos")
        for label in ("cat", "dog"):
            (folder / label).mkdir()
            for index in range(count):
                pixels = random.integers(0, 256, (size[1], size[0], len(mode)), np.uint8).squeeze()
                Image.fromarray(pixels, mode).save(folder / label / f"{index}.png")
        return folder

    return make


def test_the_images_choose_the_network_only_for_photos(photos, monkeypatch):
    def choose(source, **tables):
        recipe = build_recipe(merge({"data": {"source": str(source)}}, tables))
        return images_choose(recipe, open_dataset(recipe.data))

    small = photos(40, (32, 32))
    assert choose(small) and choose(photos(40, (120, 90)))
    assert not choose(small, network={"name": "resnet8"}), "the recipe names one"
    assert not choose(small, init={"source": "random"}), "ImageNet's weights are not the start"
    assert not choose("digits")
    for train in ({"folds": 5}, {"robust": True}, {"tuning": "always"}):
        assert not choose(small, train=train), "no last layer ships"
        assert choose(small, train=train, network={"max_kb": 500.0}), "a limit that fine-tuning has to meet"
    assert choose(small, train={"head_only": True}) and choose(small, train={"tuning": "never"})
    monkeypatch.setattr("edgecnn.train.settle.MANY_SMALL_IMAGES", 50)
    assert not choose(small), "many small images learn as much from scratch"


def settled(source, **tables):
    recipe = build_recipe(merge({"data": {"source": str(source)}}, tables))
    dataset = open_dataset(recipe.data)
    result = settle(recipe, dataset)
    assert settle(result, dataset) == result, "once settled, nothing is left open"
    return result, reasons(recipe, result, dataset)


def test_photos_start_from_imagenet(photos):
    recipe, lines = settled(photos(40, (120, 90)), train={"tuning": "if-better"})
    network, train = recipe.network, recipe.train
    assert (network.name, network.height, network.width, network.channels) == ("efficientnet_lite0_1200kb", 128, 128, 3)
    assert (train.augment, train.batch_size, train.learning_rate) == ("photo", 32, 0.0005)
    assert train.epochs == 100 and recipe.qat.epochs == 3 and recipe.qat.batch_size == 32
    assert "it starts from ImageNet" in lines[0] and "128x128" in lines[1] and "100 epochs" in lines[2]


@pytest.mark.parametrize(("size", "rate"), [("150kb", 0.001), ("270kb", 0.001), ("1200kb", 0.0005), ("4000kb", 0.0005)])
def test_a_small_cut_learns_at_twice_the_rate(photos, size, rate):
    assert settled(photos(40, (60, 60)), network={"name": f"efficientnet_lite0_{size}"})[0].train.learning_rate == rate


def test_grey_photos_stay_grey(photos):
    assert settled(photos(40, (120, 90), "L"))[0].network.channels == 1


def test_few_small_images_start_from_imagenet_too(photos):
    recipe, _ = settled(photos(40, (32, 32)))
    assert (recipe.network.name, recipe.network.height) == ("efficientnet_lite0_1200kb", 128)
    recipe, _ = settled(photos(40, (32, 32)), network={"name": "efficientnet_lite0_1200kb"})
    assert recipe.network.height == 160, "of a named network"
    recipe, _ = settled(photos(40, (32, 32)), network={"name": "resnet_100kb"})
    assert (recipe.network.height, recipe.train.augment, recipe.train.learning_rate) == (32, "shift", 0.003)


def test_many_small_images_start_from_scratch(photos, monkeypatch):
    monkeypatch.setattr("edgecnn.train.settle.MANY_SMALL_IMAGES", 50)
    recipe, lines = settled(photos(40, (32, 32)))
    assert (recipe.network.name, recipe.network.height) == ("resnet_100kb", 32)
    assert "enough to train from scratch" in lines[0]


def test_a_named_dataset_keeps_the_articles_network():
    recipe, lines = settled("digits")
    assert (recipe.network.name, recipe.network.height, recipe.train.augment) == ("article", 8, "shift")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.qat.epochs, recipe.qat.batch_size) == (10, 128, 2, 128)
    assert "default for named datasets" in lines[0]


def test_stated_values_stay(photos):
    stated = {
        "network": {"name": "resnet8", "height": 48, "width": 64},
        "train": {"epochs": 5, "batch_size": 7, "learning_rate": 0.1, "augment": "shift"},
        "qat": {"epochs": 0, "batch_size": 9},
        "init": {"source": "random"},
    }
    recipe, lines = settled(photos(40, (120, 90)), **stated)
    assert lines == []
    for table, values in stated.items():
        assert {key: getattr(getattr(recipe, table), key) for key in values} == values


def test_a_backbone_with_random_weights_trains_from_scratch(photos):
    recipe, _ = settled(photos(40, (120, 90)), network={"name": "efficientnet_lite0_150kb"}, init={"source": "random"})
    assert (recipe.network.height, recipe.train.learning_rate, recipe.train.epochs) == (90, 0.003, 100)


def test_missing_weights_are_named_before_a_run_begins(edgecnn, photos, tmp_path, monkeypatch):
    whole = pretrained.importlib.util.find_spec
    monkeypatch.setattr(
        pretrained.importlib.util, "find_spec", lambda name: None if "efficientnet" in name else whole(name)
    )
    result = edgecnn("train", "--data", str(photos(40, (120, 90))))
    assert result.code == MissingExtraError.exit_code
    assert "[backbones]" in result.err and "--network resnet_100kb" in result.err
    assert not (tmp_path / "runs").exists()


def test_from_imagenet_weights_are_averaged_and_labels_smoothed_more(photos):
    source = photos(40, (60, 60))
    train = settled(source)[0].train
    assert (train.schedule, train.label_smoothing) == ("averaged", 0.1)
    stated = settled(source, train={"schedule": "cosine", "label_smoothing": 0.0})[0].train
    assert (stated.schedule, stated.label_smoothing) == ("cosine", 0.0)
    for tables in ({"network": {"name": "resnet_100kb"}}, {"init": {"source": "random"}}):
        train = settled(source, **tables)[0].train
        assert (train.schedule, train.label_smoothing) == ("one-cycle", 0.05)


def test_robust_training_takes_more_epochs_unless_they_are_stated(photos):
    plain, robust, stated = (
        settled(photos(40, (32, 32)), network={"name": "resnet_100kb"}, train=train)[0].train.epochs
        for train in ({}, {"robust": True}, {"robust": True, "epochs": 7})
    )
    assert (robust, stated) == (math.ceil(1.25 * plain), 7)


def test_strangers_are_recognised_only_for_photos_from_imagenet(photos):
    source = photos(40, (60, 60))
    assert settled(source)[0].stranger.rate == 0.05
    assert settled(source, stranger={"rate": 0.1})[0].stranger.rate == 0.1
    decide = [settled(source, stranger=given)[0].stranger.decide for given in ({}, {"rate": 0.1}, {"rate": 0.0})]
    assert decide == [False, True, False], "a device makes the decision if the recipe requests it"
    assert settled(source, stranger={"rate": 0.0})[0].stranger.rate == 0
    assert settled(source, network={"name": "resnet_100kb"})[0].stranger.rate == 0
    assert settled(source, init={"source": "random"})[0].stranger.rate == 0
    assert settled("digits")[0].stranger.rate == 0


def test_a_class_named_stranger(photos, tmp_path):
    source = shutil.copytree(photos(40, (60, 60)), tmp_path / "photos")
    (source / "dog").rename(source / "stranger")
    assert settled(source)[0].stranger.rate == 0
    with pytest.raises(RecipeError, match="a class is named 'stranger'"):
        settled(source, stranger={"rate": 0.05})


def settled_for(dataset, count, shape=(90, 120, 3), **tables):
    """Settle a recipe as if a user's own photos had this number of training images, and (height, width, channels)."""
    many = copy.copy(dataset)
    many.own, many.shape, many.sizes = True, shape, {"train": count, "validation": 30, "test": 40}
    recipe = build_recipe(merge({"init": {"source": "random"}, "network": {"name": "resnet_100kb"}}, tables))
    result = settle(recipe, many)
    return result, reasons(recipe, result, many)


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "qat_epochs"),
    [
        (70, 32, 100, 8),
        (1_999, 32, 49, 2),  # 62 whole batches: 3,000 steps in 48.4 epochs, and 80 in 1.3
        (2_000, 64, 97, 3),  # 31 of them
        (9_999, 64, 20, 2),  # 156 in 19.2
        (10_000, 128, 39, 2),  # 78 in 38.5
        (60_000, 128, 10, 2),
    ],
)
def test_the_number_of_photos_sets_batches_and_epochs(count, batch, epochs, qat_epochs):
    recipe, lines = settled_for(open_dataset(build_recipe({"data": {"source": "digits"}}).data), count)
    assert (recipe.train.batch_size, recipe.train.epochs) == (batch, epochs)
    assert (recipe.qat.batch_size, recipe.qat.epochs) == (batch, qat_epochs)
    assert (recipe.network.height, recipe.network.width) == (90, 120)
    assert "input size: 120x90 pixels (width x height)" in lines[0]
    assert lines[1] == f"training: {epochs} epochs in batches of {batch}, chosen for {count:,} images"


def test_small_images_begin_and_end_at_their_limits():
    dataset = open_dataset(build_recipe({"data": {"source": "digits"}}).data)
    sides = [settled_for(dataset, 70, shape)[0].train.augment for shape in ((64, 80, 3), (63, 80, 3), (80, 63, 3))]
    assert sides == ["photo", "shift", "shift"]
    free = build_recipe({})
    chosen = []
    for count, shape in ((5_000, (48, 30, 3)), (4_999, (48, 30, 3)), (5_000, (30, 49, 3))):
        photos = copy.copy(dataset)
        photos.own, photos.shape, photos.sizes = True, shape, {"train": count, "validation": 30, "test": 40}
        chosen.append(usual_network(free, photos))
    assert chosen == ["resnet_100kb", "efficientnet_lite0_1200kb", "efficientnet_lite0_1200kb"]


def test_the_epoch_to_keep_may_be_the_last_or_none_but_no_later_one():
    dataset = open_dataset(build_recipe({"data": {"source": "digits"}}).data)
    for keep in (0, 3):
        assert settled_for(dataset, 70, qat={"epochs": 3, "keep": keep})[0].qat.keep == keep
    with pytest.raises(RecipeError, match=r"qat\.keep is 4, expected at most 3"):
        settled_for(dataset, 70, qat={"epochs": 3, "keep": 4})


def test_fine_tuning_has_to_win_on_photos_from_imagenet(photos, monkeypatch):
    source, network = photos(40, (120, 90)), {"name": "efficientnet_lite0_1200kb"}
    few = len(open_dataset(build_recipe({"data": {"source": str(source)}}).data).items["validation"])
    monkeypatch.setattr("edgecnn.train.settle.FEWEST_JUDGES", few)

    def tuning(**tables):
        return settled(source, **({"network": network} | tables))[0].train.tuning

    assert tuning() == "if-better"
    assert tuning(train={"tuning": "always"}) == "always"
    monkeypatch.setattr("edgecnn.train.settle.FEWEST_JUDGES", few + 1)
    assert tuning() == "never", "too few validation photos to judge it"
    assert tuning(train={"tuning": "if-better"}) == "if-better"
    for other in (
        {"train": {"folds": 5}},
        {"train": {"robust": True}},
        {"qat": {"method": "ptq"}},
        {"network": {"name": "resnet8"}},
    ):
        assert tuning(**other) is None, other
    for wrong in ({"folds": 5}, {}):
        with pytest.raises(RecipeError, match=r"train\.tuning"):
            name = network if wrong else {"name": "resnet8"}
            settled(source, network=name, train={"tuning": "if-better", **wrong})


def test_then_it_has_fewer_steps_of_quantization_aware_training(photos):
    source = photos(100, (120, 90))
    half, whole = (
        settled(source, train={"tuning": tuning, "batch_size": 10}, qat={"batch_size": 10})[0]
        for tuning in ("if-better", "always")
    )
    assert half.train.epochs == whole.train.epochs
    assert half.qat.epochs < whole.qat.epochs
