"""Training on all photos: with folds, or only the last layer."""

import collections
import csv
import dataclasses
import io
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")


from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_run_dataset
from edgecnn.data.folds import assign
from edgecnn.data.items import Item
from edgecnn.errors import DatasetError, RecipeError
from edgecnn.evaluate.answers import ANSWERS, require_held_out
from edgecnn.evaluate.statistics import compare
from edgecnn.networks.blocks import RUNGS
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import build_recipe
from edgecnn.runs import FLOAT_MODEL, FOLD, INFO, QAT_MODEL, Run, create_run
from edgecnn.stages import Silent, folds
from edgecnn.stages import folds as stage
from edgecnn.stages.against import verify_against
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.folds import begun, majority_recipe, train_by_folds, train_on_all
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stages.train import by_folds_line, open_images
from edgecnn.verify.parity import parity_report

COUNT = 2


class Quiet(Silent):
    """A reporter that records its notes and the trained epochs."""

    def __init__(self):
        self.notes, self.epochs = [], []
        self.note = self.detail = self.notes.append

    def training(self, progress):
        self.epochs.append(progress.epoch)


def recipe_of(network):
    return build_recipe(
        {
            "name": "folded",
            "data": {"source": "digits"},
            "network": {"name": network},
            "train": {"epochs": 4, "batch_size": 64, "learning_rate": 0.02, "folds": COUNT},
            "qat": {"epochs": 1, "batch_size": 64, "method": "qat", "rounding": "nearest"},
            "stranger": {"rate": 0.05},
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_network):
    """A run through every stage that was killed twice on the way, and the notes of its last start."""
    folder = tmp_path_factory.mktemp("folds")
    answers, train_fold = stage.fold_answers, stage.train_fold
    kills = {"answers of fold 1": 1, "before fold 2": 2}

    def killed(place, function):
        def call(*arguments):
            fold = next(item for item in arguments if isinstance(item, int))
            if kills.get(place) == fold:
                del kills[place]
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("edgecnn.report.page.svg", lambda figure, name: "")
        patch.setattr(stage, "fold_answers", killed("answers of fold 1", answers))
        patch.setattr(stage, "train_fold", killed("before fold 2", train_fold))
        recipe = recipe_of(tiny_network)
        while True:
            reporter = Quiet()
            try:
                run, report = run_recipe(recipe, folder / "run", reporter, max_drop=100.0)
                break
            except KeyboardInterrupt:
                continue
        assert not kills
    return run, report, reporter, recipe


@pytest.mark.guard
def test_every_image_has_one_answer_from_a_model_that_never_saw_it(made):
    run, _, _, _ = made
    held = require_held_out(run)
    assert len(set(held.hashes.tolist())) == len(held.hashes) == 1797
    for fold in range(1, COUNT + 1):
        rows = list(csv.DictReader(run.file(f"{FOLD.format(fold=fold)}/images.csv").open()))
        tested = {row["sha256"] for row in rows if row["split"] == "test"}
        assert tested == set(held.hashes[held.fold == fold].tolist())
        assert not tested & {row["sha256"] for row in rows if row["split"] != "test"}
    known = list(csv.DictReader(run.file("images.csv").open()))
    assert {row["split"] for row in known} == {"train"} and len(known) == 1797
    assert (Run(run.path.parent / "runs" / "latest")).path.resolve() == run.path.resolve(), "no fold is the last run"


@pytest.mark.guard
def test_the_final_model_uses_what_the_folds_chose(made):
    run = made[0]
    infos = [json.loads(run.file(f"{FOLD.format(fold=fold)}/fold.json").read_text()) for fold in range(1, COUNT + 1)]
    kept = min(info["epoch"] for info in infos)  # the lower median of two
    assert (run.recipe.qat.keep, run.info.int8.epoch, run.recipe.qat.method) == (kept, kept, "qat")
    assert run.info.data.used == {"train": 1797, "validation": 0}
    assert len(run.info.folds) == COUNT and sum(info.images for info in run.info.folds) == 1797
    started = [note for note in made[2].notes if note.startswith("fold ") and ":" not in note]
    assert started == ["fold 2 of 2"], "the last start found the first fold finished"


@pytest.mark.guard
def test_old_and_new_folds_are_compared_on_their_held_out_answers(made, tmp_path):
    run = Run(shutil.copytree(made[0].path, tmp_path / "run"))
    old = bundle_path(made[0])
    dataset = open_run_dataset(run)
    against = verify_against(run, dataset, old, renamed={}, rule="usual", progress=lambda *progress: None)
    whole, before = against.parts
    assert (whole.n, before.n, before.photos) == (1797, 1797, "old"), (
        "all images trained both, and each has a held-out answer"
    )
    held = require_held_out(run)
    assert whole.accuracy_reference == whole.accuracy_candidate == np.mean(held.int8.argmax(axis=1) == held.classes)
    assert (against.verdict, against.old.taught_by, against.new.taught_by) == ("passed", "folds", "folds")
    assert read_bundle(old).manifest.provenance["asked"]["train"]["epochs"] == made[3].train.epochs


@pytest.mark.guard
def test_the_report_gives_the_folds_estimate_over_all_images(made):
    run, report, _, _ = made
    held = require_held_out(run)
    assert (report.data.split, report.data.test_images, len(report.folds)) == ("folds", 1797, COUNT)
    figures = compare(held.float.argmax(axis=1), held.int8.argmax(axis=1), held.classes)
    paired = report.comparisons[0]
    assert paired.kind == "quantization" and paired.n == 1797
    assert (paired.drop, paired.lost, paired.gained) == (figures.drop, figures.lost, figures.gained)
    models = {model.name: model for model in report.models}
    assert models["float"].accuracy == figures.accuracy_reference
    assert models["tflite-int8"].accuracy == models["onnx-int8"].accuracy == figures.accuracy_candidate
    assert models["tflite-int8"].sha256 and models["tflite-float32"].accuracy == figures.accuracy_reference
    others = [item for item in report.comparisons[1:] if item.kind not in ("seen", "conversion")]
    assert others == [], "on training images, only agreement and LSB count"
    assert report.seen_images == 1000 and report.passed
    assert report.confidence.n == report.strangers.n == 1797
    assert 0.02 < report.strangers.refused / 1797 < 0.09
    assert report == parity_report(run)


@pytest.mark.guard
def test_the_bundle_carries_each_images_hash_fold_and_answer(made):
    run, _, _, _ = made
    bundle = read_bundle(bundle_path(run))
    rows = list(csv.DictReader(io.StringIO(bytes(bundle.files[ANSWERS]).decode())))
    held = require_held_out(run)
    assert [row["sha256"] for row in rows] == held.hashes.tolist()
    assert [int(row["fold"]) for row in rows] == held.fold.tolist()
    assert [row["int8"] for row in rows] == [str(one) for one in held.int8.argmax(axis=1)]
    assert len(bundle.manifest.provenance["folds"]) == COUNT
    assert bundle.manifest.provenance["data"]["split_sizes"]["train"] == 1797


@pytest.mark.guard
def test_card_page_and_texts_name_the_figures(made):
    run = made[0]
    for text in (run.file("card.md").read_text(), run.file("report.html").read_text()):
        assert "The model that ships was trained on all 1,797 images." in text
        assert f"{COUNT} models were each tested on a part of the images that they were not trained on" in text
        assert "1,797 test images" not in text and "used once" not in text


@pytest.mark.guard
def test_a_second_run_does_nothing(made):
    run, recipe = made[0], made[3]
    reporter = Quiet()
    before = {name: run.file(name).read_bytes() for name in (FLOAT_MODEL, QAT_MODEL, INFO)}
    again, _ = run_recipe(recipe, run.path, reporter, max_drop=100.0)
    assert {name: again.file(name).read_bytes() for name in before} == before
    assert reporter.epochs == [] and "train" not in reporter.notes


@pytest.mark.guard
def test_inspect_judges_labels_by_the_folds_answers(made, edgecnn, monkeypatch):
    run = made[0]
    monkeypatch.setattr("edgecnn.inspect.question.ODDS", 1.0)  # so that every error of the tiny network is named
    result = edgecnn("inspect", "digits", "--no-features", "--run", run.path, "--fail-on", "never", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    held = require_held_out(run)
    named = {item["source"] for item in report["wrong_labels"]}
    assert named == set(held.sources[held.float.argmax(axis=1) != held.classes].tolist())
    assert report["method"]["labels_by"] == run.name


@pytest.mark.slow
def test_two_jobs_give_the_same_weights_and_figures(made, tmp_path, monkeypatch, reporter):
    run, _, _, recipe = made
    monkeypatch.chdir(tmp_path)
    other = create_run(recipe, tmp_path / "run")
    train_by_folds(open_images(recipe, other, reporter, None), other, reporter, jobs=2)
    assert_same(run, other)
    assert open_run_dataset(other).fingerprint == open_run_dataset(run).fingerprint


IN_TRAINING_S = 4.0, 16.0
"""How long after its start a process is killed: between its imports and about its end, on an idle machine."""


@pytest.mark.parametrize("most", [pytest.param(3, marks=pytest.mark.guard), pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(made, tmp_path, monkeypatch, spawn, most):
    whole, _, _, recipe = made
    monkeypatch.chdir(tmp_path)
    moments = random.Random(seed := random.randrange(10**6))
    print(f"moments drawn with seed {seed}")
    command = [sys.executable, "-m", "edgecnn", "train", "--resume", "--out", "killed"]
    kills, run = 0, create_run(recipe, tmp_path / "killed")
    while kills < most:
        process = spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=moments.uniform(*IN_TRAINING_S))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, said
        assert_same(whole, run)
        shutil.rmtree(run.path)
        create_run(recipe, run.path)
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert_same(whole, run)


def assert_same(whole, run):
    one, other = require_held_out(whole), require_held_out(run)
    for name, values in vars(one).items():
        if name == "similarity":  # from a matrix product: the order of BLAS's sums depends on its threads
            assert np.allclose(values, getattr(other, name), rtol=0, atol=1e-6, equal_nan=True)
        else:
            assert np.array_equal(values, getattr(other, name)), name
    for name in (FLOAT_MODEL, QAT_MODEL):
        for mine, theirs in zip(
            *(model_from_bytes(item.read(name, "train")).get_weights() for item in (whole, run)), strict=True
        ):
            assert np.array_equal(mine, theirs)


def test_the_folds_vote(fold_info):
    recipe = build_recipe({"network": {"name": "article"}, "train": {"epochs": 7}, "qat": {"epochs": 3}})
    others = fold_info(network="b", epoch=0, epochs=90), fold_info(method="ptq", epoch=1)
    result = majority_recipe(recipe, [fold_info(epochs=9), fold_info(epoch=3), *others])
    assert (result.train.epochs, result.qat.method, result.qat.keep, result.qat.epochs) == (10, "qat", 2, 4)
    assert result.qat.rounding == "nearest"
    calibrated = majority_recipe(
        recipe, [fold_info(epoch=0, rounding="gptq"), fold_info(epoch=0, rounding="gptq"), fold_info(epoch=5)]
    )
    assert (calibrated.qat.keep, calibrated.qat.rounding) == (0, "gptq")
    after = majority_recipe(recipe, [fold_info(method="ptq"), fold_info(method="ptq"), fold_info()])
    assert (after.qat.method, after.qat.keep) == ("ptq", None)
    others = [fold_info(network="b", epochs=90, qat_epochs=9, epoch=9)] * 2
    assert majority_recipe(recipe, others).train.epochs == 90, "the network was left open: all vote"
    outvoted = majority_recipe(recipe, [fold_info(epochs=9, qat_epochs=4, epoch=1), *others])
    assert (outvoted.train.epochs, outvoted.qat.epochs) == (9, 4), (
        "folds of another network do not vote, even if they are more"
    )


def test_photos_of_a_named_group_share_a_fold_also_when_the_rule_changes(tmp_path, monkeypatch):
    """Piles over both classes; without the rule photos differ and piles are divided. A run keeps its folds, whatever the rule is later."""
    monkeypatch.setattr("edgecnn.stages.train.find", lambda dataset, reporter: ([], None))
    random = np.random.default_rng(1)
    for label in ("coin", "token"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for pile, number in itertools.product(range(6), range(4)):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"pile{pile}_{number}.png")

    def folds_of(name, **data):
        recipe = build_recipe(
            {
                "data": {"source": str(tmp_path / "photos"), **data},
                "network": {"name": "resnet8"},
                "train": {"folds": 3},
            }
        )
        run = Run(tmp_path / name) if (tmp_path / name).exists() else create_run(recipe, tmp_path / name)
        dataset = open_images(recipe, None, Quiet(), None)
        folds = begun(dataset, run, Quiet())[1]
        piles = collections.defaultdict(set)
        for item in itertools.chain(*dataset.items.values()):
            piles[Path(item.source).name.partition("_")[0]].add(folds.of[item.hash])
        return folds, {len(found) for found in piles.values()}

    grouped, shared = folds_of("grouped", group_by=r"(.+)_\d+$")
    assert shared == {1} and sorted(collections.Counter(grouped.of.values()).values()) == [16, 16, 16]
    assert set(grouped.groups.values()) == {f"pile{pile}" for pile in range(6)}
    single, divided = folds_of("single")
    assert max(divided) > 1 and sorted(collections.Counter(single.of.values()).values()) == [16, 16, 16]
    assert folds_of("grouped") == (grouped, {1}) and folds_of("single", group_by=r"(.+)_\d+$") == (single, divided)


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (("ab1", "ab2", "ab3"), 2, "name smaller groups"),  # one of two folds holds two of three sites
        (("a1", "a2", "b3", "b4", "b5"), 5, ""),
    ],
)
def test_each_fold_of_groups_has_images_to_validate_with_or_there_are_no_folds(names, count, message):
    """Groups by name: the classes of their images, and a number. A part for validation that holds all of a class keeps another class's."""
    items = [
        Item(split="train", label="ab".index(label), hash=f"{name}{label}{number}", source="", handle=None)
        for name in names
        for label in name[:-1]
        for number in range(8 if label == "a" else 4)
    ]
    groups = {item.hash: item.hash[:-2] for item in items}
    dataset = SimpleNamespace(name="photos", given={"train"}, labels=("a", "b"), items={"train": items}, redivided=dict)
    if message:
        with pytest.raises(DatasetError, match=message):
            assign(dataset, groups, count, 1)
        return
    made = assign(dataset, groups, count, 1)
    for fold in range(1, made.count + 1):
        places = made.without(dataset, fold, 1)
        classes = {part: {one[-2] for one in groups if places[one] == part} for part in ("train", "validation")}
        assert classes["validation"] and classes["validation"] <= classes["train"]


def test_training_without_folds_ends_with_the_cost_and_benefit_of_folds(photos, finished_run, fold_info):
    dataset = open_images(
        build_recipe({"data": {"source": str(photos)}, "network": {"name": "resnet8"}}), None, Quiet(), None
    )
    info = dataclasses.replace(finished_run.info, data=dataset.info(dataset.sizes), seconds=100.0)
    line = by_folds_line(finished_run, dataset, info)
    sizes = dataset.sizes
    assert "--folds 5, about 10 min here" in line and "all 180 photos" in line
    assert f"not {sizes['train']}," in line and line.endswith(f"not {sizes['test']}.")
    chose = SimpleNamespace(path=finished_run.path, stored=lambda name, kind: SimpleNamespace(seconds=50.0))
    assert "about 15 min here" in by_folds_line(chose, dataset, info), "six choices of a network take 5 minutes"
    assert "about 1 min here" in by_folds_line(finished_run, dataset, dataclasses.replace(info, seconds=0.5))
    assert by_folds_line(finished_run, dataset, dataclasses.replace(info, folds=(fold_info(),))) == ""


NETWORK = "efficientnet_lite0_150kb"


def recipe_of_head(folder, **train):
    return build_recipe(
        {
            "name": "quick",
            "data": {"source": str(folder)},
            "network": {"name": NETWORK, "height": 32, "width": 32},
            "train": {"head_only": True, **train},
        }
    )


def shorten(patch):
    """Cut the network after four blocks."""
    patch.setitem(RUNGS, NETWORK, 4)


@pytest.fixture(scope="module")
def made_head(tmp_path_factory, crops):
    """A run through every stage, which was killed after its features were computed, and the notes of its last start."""
    folder = tmp_path_factory.mktemp("quick photos")
    recipe = recipe_of_head(crops(folder / "photos", {"temple": 40, "flower": 20}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten(patch)
        patch.setattr("edgecnn.report.page.svg", lambda figure, name: "")
        with patch.context() as killed:
            killed.setattr("edgecnn.stages.last_layer.Int8Files", None)
            with pytest.raises(TypeError):
                run_recipe(recipe, folder / "run", QuietHead(), max_drop=100.0)
        reporter = QuietHead()
        with patch.context() as resumed:
            resumed.setattr("edgecnn.train.candidates.computed", None)
            run, report = run_recipe(recipe, folder / "run", reporter, max_drop=100.0)
        yield run, report, reporter.notes, recipe


class QuietHead(Quiet):
    def training(self, progress):
        raise AssertionError("no epoch is trained")


def test_each_photo_teaches_and_is_answered_by_a_layer_that_never_saw_it(made_head):
    run, report, _, _ = made_head
    held, info = require_held_out(run), run.info
    assert len(held.classes) == 60 == info.data.used["train"] == report.data.test_images
    assert len(set(held.hashes.tolist())) == 60 and sorted(set(held.fold.tolist())) == [1, 2, 3, 4, 5]
    assert np.mean(held.float.argmax(axis=1) == held.classes) > 0.9
    assert [one.images for one in info.folds] == np.bincount(held.fold)[1:].tolist()
    assert info.init.licence == "Apache-2.0" and run.recipe.train.head_only


def test_the_body_keeps_its_weights_and_the_layer_is_the_one_on_all_photos(made_head):
    from edgecnn.networks import build_network
    from edgecnn.networks.pretrained import SOURCES, load_weights, read_weights

    run, *_ = made_head
    model = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    body = build_network(NETWORK, 32, 32, 3, 2)
    load_weights(body, read_weights(SOURCES[0]))
    for mine, theirs in zip(model.layers[:-1], body.layers[:-1], strict=True):
        for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(one, other), mine.name
    student = model_from_bytes(run.read(QAT_MODEL, "train"))
    dataset = open_images(run.recipe, run, QuietHead(), None)
    images = np.concatenate(
        [
            dataset.load((split,), height=32, width=32, channels=3, stage="verify")[split].images
            for split in dataset.sizes
        ]
    )
    float_, int8 = (predictor(one, 1 / 128, 0)(images) for one in (model, student))
    assert np.mean(float_.argmax(axis=1) == int8.argmax(axis=1)) > 0.9


def test_the_shipped_int8_file_computes_what_the_held_out_answers_are_made_of(made_head):
    """A fold's answers come from the int8 file's features and numpy; the file's own answers must be those of numpy too."""
    from edgecnn.evaluate.answers import device_model, input_contract
    from edgecnn.export import export_path
    from edgecnn.train.candidates import Int8Layer, Layer
    from edgecnn.train.ranges import _logits_ends

    run, *_ = made_head
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


def test_report_bundle_and_card_treat_it_as_a_run_of_folds(made_head):
    run, report, _, _ = made_head
    assert parity_report(run) == report and len(report.folds) == 5 and report.seen_images == 60
    kinds = {one.kind for one in report.comparisons}
    assert {"quantization", "seen", "conversion"} <= kinds
    bundle = read_bundle(bundle_path(run))
    assert bundle.files[ANSWERS].decode().count("\n") == 61
    assert bundle.manifest.provenance["recipe"]["train"]["head_only"] is True
    assert "all 60 images" in run.file("card.md").read_text(encoding="utf-8")


@pytest.mark.guard
def test_a_second_run_does_nothing_and_a_deleted_record_gives_the_same_model(made_head, monkeypatch):
    run, _, notes, recipe = made_head
    assert any("about" in line and "60 photos" in line for line in notes), "an estimate"
    reporter = QuietHead()
    run_recipe(recipe, run.path, reporter, max_drop=100.0)
    assert (
        sum("skipped" in note for note in reporter.notes) == len(reporter.notes) - 1
        or "train: nothing has changed, skipped" in reporter.notes
    )
    before = {name: run.file(name).read_bytes() for name in (FLOAT_MODEL, QAT_MODEL)}
    held = require_held_out(run).sha256
    run.file(INFO).rename(run.file("kept.json"))
    train_on_all(open_images(recipe, run, QuietHead(), None), Run(run.path), QuietHead())
    assert {name: run.file(name).read_bytes() for name in before} == before
    assert require_held_out(run).sha256 == held
    run.file("kept.json").replace(run.file(INFO))


@pytest.mark.guard
def test_two_photos_per_class_give_a_model_and_one_group_does_not(tmp_path, monkeypatch, crops):
    monkeypatch.chdir(tmp_path)
    shorten(monkeypatch)
    recipe = recipe_of_head(crops(tmp_path / "photos", {"temple": 2, "flower": 2}))
    run = create_run(recipe, tmp_path / "run")
    info = train_on_all(open_images(recipe, run, QuietHead(), None), run, QuietHead())
    assert len(info.folds) == 2 and len(require_held_out(run).classes) == 4
    first = tmp_path / "photos" / "flower" / "0.png"
    (tmp_path / "photos" / "flower" / "1.png").write_bytes(first.read_bytes())
    other = create_run(recipe, tmp_path / "other")
    with pytest.raises(DatasetError, match="flower"):
        train_on_all(open_images(recipe, other, QuietHead(), None), other, QuietHead())


def test_a_network_without_weights_is_refused():
    photos = SimpleNamespace(own=True, shape=(90, 120, 3), sizes={"train": 40})
    own = dataclasses.replace(
        recipe_of_head("photos"), network=dataclasses.replace(recipe_of_head("photos").network, name="resnet8")
    )
    with pytest.raises(RecipeError, match="resnet8"):
        folds.require_pretrained(own, photos)
    folds.require_pretrained(recipe_of_head("photos"), photos)
    folds.require_pretrained(dataclasses.replace(own, train=dataclasses.replace(own.train, head_only=False)), photos)
