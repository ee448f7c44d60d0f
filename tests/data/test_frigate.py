"""Frigate's datasets: the folders that can be given, the class none, and missing parts."""

import pytest

from edgecnn.cli.recipes import resolve
from edgecnn.data import open_dataset
from edgecnn.errors import DatasetError, RecipeError, UnknownNameError
from edgecnn.interop.frigate_data import find_dataset
from edgecnn.recipe import build_recipe
from edgecnn.runs import without_folders
from edgecnn.train.candidates import sides_of
from edgecnn.train.settle import images_choose, settle


@pytest.fixture
def media(tmp_path, fill, pictures):
    """Frigate's media folder with one classifier, `door`; the class none has no images, and some images have no class yet."""
    dataset = "frigate/clips/door/dataset"
    files = pictures(f"{dataset}/open", 0, 30) | pictures(f"{dataset}/closed", 100, 30)
    files |= {f"{dataset}/none/": b"", "frigate/clips/door/train/1-2-none-0.5.webp": b"x", "frigate/recordings/": b""}
    files |= {"frigate/clips/door/.training_metadata.json": b"{}", "frigate/clips/previews/front/": b""}
    return fill(tmp_path / "media", files)


def recipe_of(path, **data):
    return build_recipe({"data": {"source": f"frigate:{path}", **data}})


@pytest.mark.parametrize("below", ["", "frigate", "frigate/clips", "frigate/clips/door", "frigate/clips/door/dataset"])
def test_every_folder_that_leads_to_the_dataset_is_accepted(media, below):
    dataset = open_dataset(recipe_of(media / below).data)
    assert (dataset.name, dataset.labels, dataset.shape) == ("door", ("closed", "open"), (224, 224, 3))
    assert sum(dataset.sizes.values()) == 60 and min(dataset.sizes.values()) > 0


def test_a_dataset_that_was_copied_away(media, tmp_path):
    copy = tmp_path / "doors"
    (media / "frigate/clips/door/dataset").rename(copy)
    assert open_dataset(recipe_of(copy).data).name == "doors"


def test_classes_of_frigates_own_folder_names(tmp_path, fill, pictures):
    files = pictures("x/dataset/clips", 0, 20) | pictures("x/dataset/dataset", 100, 20)
    assert open_dataset(recipe_of(fill(tmp_path, files) / "x/dataset").data).labels == ("clips", "dataset")


def test_none_is_a_class_if_it_has_images(media, fill, pictures):
    fill(media, pictures("frigate/clips/door/dataset/none", 200, 30))
    assert open_dataset(recipe_of(media).data).labels == ("closed", "none", "open")


def test_another_class_without_images_is_an_error(media, fill):
    fill(media, {"frigate/clips/door/dataset/ajar/": b""})
    with pytest.raises(DatasetError, match=r"the class folder ajar/ has no images"):
        open_dataset(recipe_of(media).data)


def test_several_classifiers_are_named(media, fill, pictures):
    fill(media, pictures("frigate/clips/cat/dataset/leo", 300, 3))
    with pytest.raises(DatasetError, match=r"2 classifiers: cat, door\. Name one, such as frigate:.*clips/cat"):
        open_dataset(recipe_of(media).data)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["clips/"], "expected NAME/dataset/CLASS"),
        (["clips/previews/front/a.webp"], "expected NAME/dataset/CLASS"),
        (["a.png"], "expected NAME/dataset/CLASS"),
        (["clips/door/dataset/"], "has no class folders"),
        (["clips/door/dataset/", "clips/door/train/a.webp"], "has no class folders"),
        (["clips/door/dataset/open/a.png"], "has only one class, 'open'"),
    ],
)
def test_missing_parts_are_named(tmp_path, fill, picture, files, message):
    fill(tmp_path / "media", {name: picture(1) for name in files})
    with pytest.raises(DatasetError, match=message):
        open_dataset(recipe_of(tmp_path / "media").data)


def test_a_file_or_no_folder_at_all(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="is not a folder"):
        find_dataset(tmp_path / "file")
    with pytest.raises(UnknownNameError, match=r"frigate:PATH expects a folder of frigate"):
        open_dataset(recipe_of(tmp_path / "nowhere").data)


def test_the_input_is_frigates_but_the_images_choose_the_network(media):
    source = f"frigate:{media}"
    dataset = open_dataset(recipe_of(media).data)
    small = "efficientnet_lite0_270kb"
    for stated, expected in (({}, "efficientnet_lite0_1200kb"), ({"name": small}, small)):
        recipe = settle(build_recipe({"data": {"source": source}, "network": stated}), dataset)
        network = recipe.network
        assert (recipe.data.fit, network.height, network.width, network.channels) == ("stretch", 224, 224, 3)
        assert network.name == expected
    left_open = build_recipe({"data": {"source": source}})
    assert images_choose(left_open, dataset)
    assert sides_of("efficientnet_lite2", left_open.network) == ((224, 224),), "only the cut of the network is chosen"


def test_a_recipe_overrides_frigates_input(media):
    assert recipe_of(media, fit="crop").data.fit == "crop"
    assert build_recipe({"data": {"source": f"frigate:{media}"}, "network": {"width": 96}}).network.width == 96
    assert build_recipe({"data": {"source": str(media)}}).data.fit == "crop"
    with pytest.raises(RecipeError, match="data"):
        build_recipe({"data": "frigate:x"})


def test_a_run_to_start_from_does_not_change_frigates_input(media, finished_run):
    network = resolve(None, None, {"data.source": f"frigate:{media}", "init.source": str(finished_run.path)}).network
    assert (network.name, network.height, network.width, network.channels) == ("article", 224, 224, 3)


def test_a_run_keeps_the_full_path_and_a_bundle_omits_it(media, monkeypatch):
    monkeypatch.chdir(media.parent)
    recipe = resolve(None, None, {"data.source": "frigate:media/frigate/clips/door"})
    assert recipe.data.source == f"frigate:{media.resolve()}/frigate/clips/door"
    assert without_folders(recipe).data.source == "frigate:door"


@pytest.mark.slow
def test_the_command_line_reads_it(edgecnn, media, tiny_network):
    result = edgecnn("train", "--data", f"frigate:{media}", "--network", tiny_network, "--dry-run")
    assert result.code == 0, result.err
    assert "input (224, 224, 3), 2 classes" in result.out
