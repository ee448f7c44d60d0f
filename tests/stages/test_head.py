"""All of --quick: the last layer on all photos, each answered by a layer that did not see it, through report and bundle."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.file import read_bundle
from edgecnn.errors import DatasetError, RecipeError
from edgecnn.evaluate.answers import ANSWERS, require_held_out
from edgecnn.networks.blocks import RUNGS, all_features
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import build_recipe
from edgecnn.runs import FLOAT_MODEL, INFO, QAT_MODEL, Run, create_run
from edgecnn.stages import folds
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.folds import train_on_all
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stages.train import open_images
from edgecnn.verify.parity import parity_report

NETWORK = "efficientnet_lite0_150kb"


def draw(folder, counts):
    """Crops of a temple and of a flower, so many of each."""
    random = np.random.default_rng(1)
    for (label, count), photo in zip(counts.items(), load_sample_images().images, strict=True):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            top, left = (int(random.integers(0, size - 120)) for size in photo.shape[:2])
            Image.fromarray(photo[top : top + 120, left : left + 120]).save(folder / label / f"{index}.png")
    return folder


def recipe_of(folder, **train):
    return build_recipe(
        {
            "name": "quick",
            "data": {"source": str(folder)},
            "network": {"name": NETWORK, "height": 32, "width": 32},
            "train": {"head_only": True, **train},
        }
    )


def shorten(patch):
    """Cut the network after four blocks, in a family that was not built before."""
    patch.setitem(RUNGS, NETWORK, 4)
    all_features.cache_clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run through every stage, which was killed after its features were computed, and the notes of its last start."""
    folder = tmp_path_factory.mktemp("quick photos")
    recipe = recipe_of(draw(folder / "photos", {"temple": 40, "flower": 20}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten(patch)
        patch.setattr("edgecnn.report.page.svg", lambda figure, name: "")
        with patch.context() as killed:
            killed.setattr("edgecnn.stages.last_layer.Int8Files", None)
            with pytest.raises(TypeError):
                run_recipe(recipe, folder / "run", Quiet(), max_drop=100.0)
        reporter = Quiet()
        with patch.context() as resumed:
            resumed.setattr("edgecnn.train.candidates.computed", None)
            run, report = run_recipe(recipe, folder / "run", reporter, max_drop=100.0)
        yield run, report, reporter.notes, recipe
    all_features.cache_clear()


class Quiet:
    def __init__(self):
        self.notes = []
        self.note = self.notes.append
        self.working = lambda what, done, total: None

    def training(self, progress):
        raise AssertionError("no epoch is trained")


def test_each_photo_teaches_and_is_answered_by_a_layer_that_never_saw_it(made):
    run, report, _, _ = made
    held, info = require_held_out(run), run.info
    assert len(held.classes) == 60 == info.data.used["train"] == report.data.test_images
    assert len(set(held.hashes.tolist())) == 60 and sorted(set(held.fold.tolist())) == [1, 2, 3, 4, 5]
    assert np.mean(held.float.argmax(axis=1) == held.classes) > 0.9
    assert [one.images for one in info.folds] == np.bincount(held.fold)[1:].tolist()
    assert info.init.licence == "Apache-2.0" and run.recipe.train.head_only


def test_the_body_keeps_its_weights_and_the_layer_is_the_one_on_all_photos(made):
    from edgecnn.networks import build_network
    from edgecnn.networks.pretrained import SOURCES, load_weights, read_weights

    run, *_ = made
    model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    body = build_network(NETWORK, 32, 32, 3, 2)
    load_weights(body, read_weights(SOURCES[0]))
    for mine, theirs in zip(model.layers[:-1], body.layers[:-1], strict=True):
        for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(one, other), mine.name
    student = model_from_bytes(run.read(QAT_MODEL, "train"))
    dataset = open_images(run.recipe, run, Quiet(), None)
    images = np.concatenate(
        [
            dataset.load((split,), height=32, width=32, channels=3, stage="verify")[split].images
            for split in dataset.sizes
        ]
    )
    float_, int8 = (predictor(one, 1 / 128, 0)(images) for one in (model, student))
    assert np.mean(float_.argmax(axis=1) == int8.argmax(axis=1)) > 0.9


def test_the_shipped_int8_file_computes_what_the_held_out_answers_are_made_of(made):
    """A fold's answers come from the int8 file's features and numpy; the file's own answers must be those of numpy too."""
    from edgecnn.evaluate.answers import device_model, input_contract
    from edgecnn.export import export_path
    from edgecnn.train.candidates import Int8Layer, Layer
    from edgecnn.train.ranges import _logits_ends

    run, *_ = made
    device = device_model(export_path(run, "tflite", "int8").read_bytes(), "tflite", input_contract(run))
    images = np.random.default_rng(1).integers(0, 256, (50, 32, 32, 3), np.uint8)
    logits, features = device.logits_and_features(images)
    student = model_from_bytes(run.read(QAT_MODEL, "train"))
    wrapper = student.layers[-1]
    (kernel, *_), *_ = wrapper._weight_vars
    layer = Layer(kernel.numpy().astype(float), wrapper.layer.bias.numpy().astype(float))
    ends = tuple(float(variable.numpy()) for variable in _logits_ends(student))
    expected = Int8Layer(layer, 0.0, ends).logits(features)
    step = (ends[1] - ends[0]) / 255
    assert np.abs(logits - expected).max() <= 1.01 * step, "off by one code at a tie, never by two"
    assert np.mean(np.abs(logits - expected) > 0.01 * step) < 0.05


def test_report_bundle_and_card_treat_it_as_a_run_of_folds(made):
    run, report, _, _ = made
    assert parity_report(run) == report and len(report.folds) == 5 and report.seen_images == 60
    kinds = {one.kind for one in report.comparisons}
    assert {"quantization", "seen", "conversion"} <= kinds
    bundle = read_bundle(bundle_path(run))
    assert bundle.files[ANSWERS].decode().count("\n") == 61
    assert bundle.manifest.provenance["recipe"]["train"]["head_only"] is True
    assert "all 60 images" in run.file("card.md").read_text(encoding="utf-8")


@pytest.mark.guard
def test_a_second_run_does_nothing_and_a_deleted_record_gives_the_same_model(made, monkeypatch):
    run, _, notes, recipe = made
    assert any("about" in line and "60 photos" in line for line in notes), "an estimate"
    reporter = Quiet()
    run_recipe(recipe, run.path, reporter, max_drop=100.0)
    assert (
        sum("skipped" in note for note in reporter.notes) == len(reporter.notes) - 1
        or "train: nothing has changed, skipped" in reporter.notes
    )
    before = {name: run.file(name).read_bytes() for name in (FLOAT_MODEL, QAT_MODEL)}
    held = require_held_out(run).sha256
    run.file(INFO).rename(run.file("kept.json"))
    train_on_all(open_images(recipe, run, Quiet(), None), Run(run.path), Quiet())
    assert {name: run.file(name).read_bytes() for name in before} == before
    assert require_held_out(run).sha256 == held
    run.file("kept.json").replace(run.file(INFO))


@pytest.mark.guard
def test_two_photos_per_class_give_a_model_and_one_group_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    recipe = recipe_of(draw(tmp_path / "photos", {"temple": 2, "flower": 2}))
    run = create_run(recipe, tmp_path / "run")
    info = train_on_all(open_images(recipe, run, Quiet(), None), run, Quiet())
    assert len(info.folds) == 2 and len(require_held_out(run).classes) == 4
    first = tmp_path / "photos" / "flower" / "0.png"
    (tmp_path / "photos" / "flower" / "1.png").write_bytes(first.read_bytes())
    other = create_run(recipe, tmp_path / "other")
    with pytest.raises(DatasetError, match="flower"):
        train_on_all(open_images(recipe, other, Quiet(), None), other, Quiet())
    all_features.cache_clear()


def test_a_network_without_weights_is_refused():
    own = dataclasses.replace(
        recipe_of("photos"), network=dataclasses.replace(recipe_of("photos").network, name="resnet8")
    )
    with pytest.raises(RecipeError, match="resnet8"):
        folds.require_pretrained(own)
    folds.require_pretrained(recipe_of("photos"))
    folds.require_pretrained(dataclasses.replace(own, train=dataclasses.replace(own.train, head_only=False)))
