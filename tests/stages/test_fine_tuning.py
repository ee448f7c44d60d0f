"""Fine-tuning has to win: which model ships, what of it is left, and runs that were killed on the way."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.file import read_bundle
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import require_held_out
from edgecnn.networks.blocks import RUNGS, all_features
from edgecnn.networks.predict import model_from_bytes
from edgecnn.recipe import IF_BETTER, build_recipe
from edgecnn.runs import CHECKPOINT, FLOAT_MODEL, HELD_OUT, QAT_MODEL, Run
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stress.measure import open_subject
from edgecnn.train.best import Rival

NETWORK = "efficientnet_lite0_150kb"


def draw(folder, counts):
    """Crops of a temple and of a flower, as many of each as given."""
    random = np.random.default_rng(1)
    for (label, count), photo in zip(counts.items(), load_sample_images().images, strict=True):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            top, left = (int(random.integers(0, size - 120)) for size in photo.shape[:2])
            Image.fromarray(photo[top : top + 120, left : left + 120]).save(folder / label / f"{index}.png")


class Quiet:
    def __init__(self):
        self.notes, self.epochs = [], []
        self.note = self.notes.append
        self.working = lambda what, done, total: None

    def training(self, progress):
        if progress.validation_accuracy is not None:
            self.epochs.append((progress.phase, progress.epoch))


def recipe_of(folder):
    return build_recipe(
        {
            "name": "tuned",
            "data": {"source": str(folder)},
            "network": {"name": NETWORK, "height": 32, "width": 32},
            "train": {"epochs": 3, "batch_size": 16},
            "qat": {"epochs": 1},
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine tuning")
    draw(folder / "photos", {"temple": 72, "flower": 18})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(RUNGS, NETWORK, 4)
        all_features.cache_clear()
        patch.setattr("edgecnn.report.page.svg", lambda figure, name: "")
        yield folder
    all_features.cache_clear()


def made(place, name, kills=(), **answers):
    """A run through every stage, after a kill at each of the moments, and the reporter of its last start.

    `head` are the answers that the head is said to give: a poor head loses.
    """
    recipe, run = recipe_of(place / "photos"), place / name
    with pytest.MonkeyPatch.context() as patch:
        if "head" in answers:
            begin = Rival.begin
            patch.setattr(Rival, "begin", lambda self, logits: begin(self, answers["head"](logits)))
        for kill in kills:
            with patch.context() as killed:
                where, name = kill
                killed.setattr(import_module(where) if isinstance(where, str) else where, name, None)
                with pytest.raises(TypeError):
                    run_recipe(recipe, run, Quiet(), max_drop=100.0)
        reporter = Quiet()
        return *run_recipe(recipe, run, reporter, max_drop=100.0), reporter


def weights(run, name):
    return model_from_bytes(run.read(name, "train")).get_weights()


def equal(one, other):
    return all(
        np.array_equal(*pair)
        for name in (FLOAT_MODEL, QAT_MODEL)
        for pair in zip(weights(one, name), weights(other, name), strict=True)
    )


def unsure(logits):
    """Answers with one mistake, so that fine-tuning begins, and otherwise those of the head."""
    found = logits.copy()
    found[0] = found[0, ::-1]
    return found


@pytest.fixture(scope="module")
def head(place):
    return made(place, "head")


@pytest.fixture(scope="module")
def beaten(place):
    return made(place, "beaten", head=lambda logits: -logits)


def test_a_head_without_mistakes_ships_and_nothing_is_fine_tuned(head):
    run, report, reporter = head
    info = run.info
    assert info.head_ships and info.tuning.epochs == 0 and info.tuning.head_accuracy == 1.0
    assert run.recipe.train.tuning == IF_BETTER and not reporter.epochs and not run.file(CHECKPOINT).exists()
    sizes = info.data.used
    held = require_held_out(run)
    assert len(held.classes) == sizes["train"] + sizes["validation"]
    assert not info.folds and report.data.split == "test" and report.data.test_images == info.data.split_sizes["test"]
    assert any("head 100.0%" in note for note in reporter.notes)


def test_no_test_photo_teaches_the_head_or_chooses(head):
    run, *_ = head
    from edgecnn.data.dataset import known_images

    of_split = {}
    for split, _, digest in known_images(run).files:
        of_split.setdefault(split, set()).add(digest)
    assert set(require_held_out(run).hashes.tolist()) == of_split["train"] | of_split["validation"]
    for file in run.file("features").iterdir():
        with np.load(file) as kept:
            assert not set(kept["hashes"].tolist()) & of_split["test"], file.name


def test_card_report_and_bundle_show_the_verdict(head):
    run, *_ = head
    card = run.file("card.md").read_text(encoding="utf-8")
    assert "validation photos: head ships" in card and "of training and validation" in card
    assert "head ships" in run.file("report.html").read_text(encoding="utf-8")
    assert read_bundle(bundle_path(run)).manifest.provenance["tuning"]["ships"] == "head"


def test_stress_does_not_measure_on_photos_that_taught_the_head(head):
    run, *_ = head
    for path in (run.path, bundle_path(run)):
        with pytest.raises(RunError, match="--split test"):
            open_subject(path, None, "validation", lambda *progress: None)
    subject = open_subject(run.path, None, "test", lambda *progress: None)
    assert len(subject.images.classes) == run.info.data.split_sizes["test"]


def test_a_fine_tuned_model_that_wins_ships_as_before(beaten):
    run, report, reporter = beaten
    info = run.info
    assert info.tuning.ships == "fine-tuned" and info.tuning.decided_by == "accuracy"
    assert info.tuning.balanced, "a quarter as many flowers as temples"
    assert info.tuning.epochs == len([one for one in reporter.epochs if one[0] == "float"]) > 0
    assert not run.file(HELD_OUT).exists() and report.int8 is not None
    assert "fine-tuned ships" in run.file("card.md").read_text(encoding="utf-8")


@pytest.mark.guard
def test_with_tuning_always_there_is_no_rival(place):
    recipe = recipe_of(place / "photos")
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, tuning="always"))
    run, _ = run_recipe(recipe, place / "always", reporter := Quiet(), max_drop=100.0)
    assert run.info.tuning is None and not run.file(HELD_OUT).exists()
    assert [one for one in reporter.epochs if one[0] == "float"] == [("float", 1), ("float", 2), ("float", 3)]


@pytest.mark.guard
def test_killed_while_the_head_is_fitted(place, head):
    kills = [
        ("edgecnn.train.train", "fit_head"),
        ("edgecnn.stages.last_layer", "Int8Files"),
        ("edgecnn.stages.last_layer", "write_held_out"),
    ]
    run, *_ = made(place, "killed in the head", kills)
    assert equal(run, head[0]) and require_held_out(run).sha256 == require_held_out(head[0]).sha256
    assert run.info.tuning == head[0].info.tuning


@pytest.mark.guard
def test_killed_before_the_verdict_and_after_it(place, beaten):
    """All epochs are done and none is done again, whatever is killed."""
    kills = [(Rival, "verdict"), ("edgecnn.train.train", "to_float32"), ("edgecnn.train.train", "choice")]
    run, _, reporter = made(place, "killed after", kills, head=lambda logits: -logits)
    assert equal(run, beaten[0]) and run.info.tuning == beaten[0].info.tuning
    assert not reporter.epochs


@pytest.mark.guard
def test_killed_in_fine_tuning_that_loses(place, monkeypatch):
    monkeypatch.setattr("edgecnn.train.best.PATIENCE", 1)
    whole, *_ = made(place, "loses", head=unsure)
    assert whole.info.tuning.epochs > 0
    kills = [(Rival, "begin"), ("edgecnn.train.loop", "write_history"), (Rival, "verdict")]
    run, *_ = made(place, "loses and is killed", kills, head=unsure)
    assert run.info.tuning == whole.info.tuning
    assert equal(run, whole)


@pytest.mark.guard
def test_quick_then_resume_goes_on_to_fine_tuning(place, edgecnn):
    recipe = place / "open.toml"
    recipe.write_text(f'[network]\nname = "{NETWORK}"\nheight = 32\nwidth = 32\n')
    out = place / "quick"
    assert edgecnn("train", recipe, "--data", place / "photos", "--quick", "--out", out).code == 0
    assert Run(out).info.folds and Run(out).recipe.train.head_only
    result = edgecnn("train", "--resume", "--out", out)
    assert result.code == 0, result.err
    run = Run(out)
    assert run.info.tuning and not run.info.folds and not run.recipe.train.head_only
    assert not run.file("folds.csv").exists()
    assert run.info.data.used["validation"] > 0
