import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.evidence import read_validation, verdict_of
from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_dataset
from edgecnn.errors import OutputExistsError, RunError
from edgecnn.export import export_path
from edgecnn.files import sha256_file
from edgecnn.recipe import DataRecipe, build_recipe, load_recipe, merge
from edgecnn.runs import CARD, CONFIDENCE, INFO, PARITY, Run
from edgecnn.runtime import Classifier
from edgecnn.runtime.selftest import selftest
from edgecnn.stages import pipeline
from edgecnn.stages.against import by_these_images, other_network
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.stages.pipeline import Replacing, Stages, run_recipe
from edgecnn.train.settle import settle


def again(run, tiny_recipe, reporter, **over):
    recipe = build_recipe(merge(load_recipe(tiny_recipe), over))
    return run_recipe(recipe, run.path, reporter, max_drop=100.0)


def done(run, lines):
    """The stages that were done, by their names; a line on a skipped stage says more than its name."""
    names = json.loads(run.file("stages.json").read_text())
    return [line for line in lines if line in names]


def test_nothing_is_done_twice(own_run, tiny_recipe, reporter):
    before = {path.name: path.read_bytes() for path in own_run.path.rglob("*") if path.is_file()}
    again(own_run, tiny_recipe, reporter)
    assert [note for note in reporter.notes if not note.endswith(": nothing has changed, skipped")] == []
    assert {path.name: path.read_bytes() for path in own_run.path.rglob("*") if path.is_file()} == before


def test_a_missing_output_is_made_again_and_nothing_else(own_run, tiny_recipe, reporter):
    path = export_path(own_run, "onnx", "float32")
    before = path.read_bytes()
    path.unlink()
    again(own_run, tiny_recipe, reporter)
    assert done(own_run, reporter.notes) == ["export onnx float32"]
    assert path.read_bytes() == before


def test_a_damaged_output_is_made_again(own_run, tiny_recipe, reporter):
    path = bundle_path(own_run)
    before = path.read_bytes()
    path.write_bytes(b"damaged")
    again(own_run, tiny_recipe, reporter)
    assert path.read_bytes() == before, "the same input gives the same bundle, byte for byte"


def test_a_changed_gate_verifies_again(own_run, tiny_recipe, reporter):
    run_recipe(build_recipe(load_recipe(tiny_recipe)), own_run.path, reporter, max_drop=99.0)
    assert done(own_run, reporter.notes) == ["verify", "report", "bundle"]


def test_each_flag_that_changes_verifies_again(own_run, tiny_recipe, reporter, monkeypatch):
    """The first run here has the flags of the fixture's."""
    asked = []
    monkeypatch.setattr(
        pipeline, "verify", lambda run, dataset, *, gate, target_error, progress: asked.append((gate, target_error))
    )
    recipe = build_recipe(load_recipe(tiny_recipe))
    for flags in (
        {},
        {"accept_conversion": True},
        {"target_error": 0.5},
        {"target_error": 0.25},
        {"target_error": 0.25},
    ):
        run_recipe(recipe, own_run.path, reporter, max_drop=100.0, **flags)
    assert [(gate.accept_conversion, target) for gate, target in asked] == [(True, None), (False, 0.5), (False, 0.25)]


def test_a_comparison_is_made_again_for_a_stricter_flag_another_bundle_or_other_images(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pipeline, "verify_against", lambda run, dataset, old, **rest: made.append(old.name))
    old, other = tmp_path / "old.edgecnn", tmp_path / "other.edgecnn"
    old.write_bytes(b"1"), other.write_bytes(b"2")
    stages = Stages(Run(tmp_path), lambda text: None)
    images, exports = {"test": "a"}, {"int8": "b"}
    usual = {"old": old, "renamed": {}, "rule": ""}
    for change, one, files in (
        ({}, images, exports),
        ({"rule": "strict"}, images, exports),
        ({"renamed": {"cat": "dog"}}, images, exports),
        ({"old": other}, images, exports),
        ({}, {"test": "c"}, exports),
        ({}, images, {"int8": "d"}),
    ):
        made.clear()
        for _ in range(2):
            pipeline.do_against(
                stages, SimpleNamespace(hashes=one), files, Replacing(**usual | change), SimpleNamespace(working=None)
            )
        assert len(made) == 1, change


def test_a_second_run_with_folds_trains_again_for_another_recipe_or_other_images(
    tmp_path, tiny_recipe, reporter, monkeypatch
):
    trained, images = [], {"first": 1}
    dataset = SimpleNamespace(fingerprint="a", items={"train": [SimpleNamespace(hash="first")]})
    monkeypatch.setattr(pipeline, "open_images", lambda *_: dataset)
    monkeypatch.setattr(pipeline, "placed", lambda *_: dataset)
    monkeypatch.setattr(
        pipeline, "read_folds", lambda run: SimpleNamespace(of=images, all_teach=lambda dataset: dataset)
    )

    def train(dataset, run, *_):
        trained.append((dataset.fingerprint, run.recipe.train.epochs))
        run.file(INFO).write_text("{}")

    monkeypatch.setattr(pipeline, "train_on_all", train)

    def call(epochs, force=False):
        train = {"train": {"epochs": epochs, "folds": 2}}
        recipe = build_recipe(merge(load_recipe(tiny_recipe), train))
        pipeline.trained_by_folds(recipe, tmp_path / "run", force, reporter, 1)

    call(4), call(4)
    with pytest.raises(OutputExistsError):
        call(5)
    call(5, force=True)
    dataset.fingerprint = "b"
    dataset.items["train"].append(SimpleNamespace(hash="second"))
    with pytest.raises(OutputExistsError, match="differs in the images"):
        call(5)
    call(5, force=True)
    images["second"] = 2
    call(5)
    assert trained == [("a", 4), ("a", 5), ("b", 5)]


def test_a_different_recipe_does_not_replace_the_run_without_force(own_run, tiny_recipe, reporter):
    with pytest.raises(OutputExistsError, match=r"train\.epochs \(6, now 7\)"):
        again(own_run, tiny_recipe, reporter, train={"epochs": 7})


def test_interrupted_training_resumes(tmp_path, tiny_recipe, tiny_network, reporter):
    class Stop(KeyboardInterrupt):
        pass

    class Impatient(type(reporter)):
        def training(self, progress):
            super().training(progress)
            if self.epochs[-1:] == [("float", 2)]:
                raise Stop

    class Trained(type(reporter)):
        def note(self, text):
            super().note(text)
            if text.startswith("export"):
                raise Stop

    small = {"network": {"name": tiny_network}, "train": {"epochs": 3}, "qat": {"method": "ptq"}}
    recipe = build_recipe(merge(load_recipe(tiny_recipe), small))
    with pytest.raises(Stop):
        run_recipe(recipe, tmp_path / "run", Impatient(), max_drop=100.0)
    resumed = Trained()
    with pytest.raises(Stop):
        run_recipe(recipe, tmp_path / "run", resumed, max_drop=100.0)
    assert resumed.epochs == [("float", 2), ("float", 3)]


def test_the_bundle_holds_everything_that_it_promises(finished_run):
    bundle = read_bundle(bundle_path(finished_run))
    assert bundle.manifest.labels == tuple("0123456789")
    assert [entry.file for entry in bundle.manifest.models] == [
        "models/int8.tflite", "models/float32.tflite", "models/int8.onnx", "models/float32.onnx",
    ]  # fmt: skip
    assert bundle.manifest.defaults["tflite"] == "models/int8.tflite"
    assert json.loads(bundle.files["parity.json"]) == json.loads(finished_run.read(PARITY, "verify"))
    assert bundle.manifest.provenance["recipe"]["data"]["source"] == "digits"
    assert read_validation(bundle.files).images == 206, "of the validation split"
    assert selftest(bundle).passed


def test_the_report_shows_the_calibration_of_the_scores_on_the_test_split(finished_run):
    tested = json.loads(finished_run.read(PARITY, "verify"))["confidence"]
    chosen = json.loads(finished_run.read(CONFIDENCE, "bundle"))
    assert (tested["model"], tested["n"]) == ("tflite-int8", 385)
    assert tested["temperature"] == chosen["temperature"]
    assert chosen["validation"]["n"] == 206, "chosen only on validation images"


def test_bundles_contain_no_path_of_this_machine(own_run, tmp_path):
    recipe = own_run.file("recipe.toml")
    recipe.write_text(recipe.read_text().replace('source = "digits"', f'source = "{tmp_path}/photos"'))
    path, _ = bundle_stage(own_run, tmp_path / "moved.edgecnn")
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_bundle_with_one_precision(edgecnn, own_run, tmp_path):
    report = json.loads(own_run.read(PARITY, "verify"))
    result = edgecnn("bundle", "--only", "int8", "--out", tmp_path / "small.edgecnn")
    assert "tflite-int8: " in result.out and "float32: " not in result.out and "calibration error" not in result.out
    assert result.code == 0, result.err
    bundle = read_bundle(tmp_path / "small.edgecnn")
    files = {"models/int8.tflite", "models/int8.onnx"}
    assert {model.file for model in bundle.manifest.models} == files == set(bundle.manifest.defaults.values())
    assert json.loads(bundle.files["parity.json"]) == report, "the proof is complete"
    assert (tmp_path / "small.edgecnn").stat().st_size < bundle_path(own_run).stat().st_size / 2
    assert Classifier.load(tmp_path / "small.edgecnn").classify(bundle.golden_inputs()[0]).top
    missing = edgecnn("bundle", "--only", "int16x8", "--out", tmp_path / "none.edgecnn")
    assert missing.code == RunError.exit_code and "no int16x8 model" in missing.err and "float32, int8" in missing.err


def test_a_model_changed_after_verification_is_not_bundled(own_run):
    path = export_path(own_run, "tflite", "float32")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RunError, match="has changed since it was verified"):
        bundle_stage(own_run, force=True)


def test_bundling_before_verifying(own_run):
    own_run.file(PARITY).unlink()
    with pytest.raises(RunError, match="First: edgecnn verify"):
        bundle_stage(own_run, force=True)


def test_the_card_has_the_reports_figures(finished_run):
    card = finished_run.read(CARD, "bundle").decode()
    report = json.loads(finished_run.read(PARITY, "verify"))
    for model in report["models"]:
        assert f"| {model['name']} | {model['accuracy']:.2%} |" in card
    assert "Handwritten digits (scikit-learn)" in card


def test_a_run_against_an_old_bundle_needs_no_recipe_and_ends_with_the_next_serial_number(own_run, edgecnn, tmp_path):
    """The old run's choices on the same images give the same recipe, so nothing is trained again."""
    old = tmp_path / "old.edgecnn"
    bundle_stage(own_run, old, serial=7)
    command = ("run", "--against", old, "--out", own_run.path, "--max-drop", "100")
    first = edgecnn(*command)
    assert first.code == 0 and "settings as for tiny" in first.err
    assert {"against", "report", "bundle"} <= set(first.err.splitlines()) and "train" not in first.err.splitlines()
    assert "tiny against tiny serial 7" in first.out and "passed: it drops 0.00 points" in first.out
    new = read_bundle(bundle_path(own_run))
    assert new.manifest.serial == 8 and verdict_of(new)[0] == "passed"
    assert json.loads(new.files["against.json"])["parts"][0]["n"] == 385, "the test images of both"
    asked, _ = bundle_stage(own_run, tmp_path / "asked.edgecnn", serial=20)
    assert read_bundle(asked).manifest.serial == 20
    assert "Old against new" in own_run.file("report.html").read_text()
    assert not {"train", "verify", "against", "report", "bundle"} & set(edgecnn(*command).err.splitlines())
    against, shipped = own_run.file("against.json"), sha256_file(export_path(own_run, "tflite", "int8"))
    against.write_text(against.read_text().replace(shipped, "0" * 64))
    with pytest.raises(
        RunError, match=r"is about another model than .* First: edgecnn verify .* --against tiny\.edgecnn"
    ):
        bundle_stage(own_run, force=True)


def test_more_images_change_only_settings_that_depend_on_their_number(finished_run, reporter):
    bundle = read_bundle(bundle_path(finished_run))
    dataset = open_dataset(DataRecipe(source="digits"))
    asked = build_recipe({"data": {"source": "digits"}, "init": {"source": "random"}, "train": {"learning_rate": 0.01}})
    few = copy.copy(dataset)
    few.own, few.sizes = True, {"train": 300, "validation": 40, "test": 80}
    former = settle(asked, few)
    sizes = {"data": {"split_sizes": dict(few.sizes)}}
    old = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, provenance=sizes))
    many = copy.copy(few)
    many.sizes = {"train": 3_000, "validation": 400, "test": 800}
    again, lines = by_these_images(former, old, many)
    assert (again.train.batch_size, again.train.epochs, again.train.learning_rate) == (None, None, 0.01)
    assert settle(again, many) == settle(dataclasses.replace(asked, network=former.network), many)
    assert any(line.startswith("train.batch_size: 64, was 32: 4,200 images, not 420") for line in lines)
    assert by_these_images(former, old, few)[1] == []
    assert other_network(bundle, finished_run) == []
    provenance = copy.deepcopy(bundle.manifest.provenance)
    provenance["recipe"]["network"]["name"] = "resnet8"
    old = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, provenance=provenance))
    assert other_network(old, finished_run) == ["for these photos, article at 8x8 was chosen; tiny has resnet8 at 8x8"]
