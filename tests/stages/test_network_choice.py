"""The choice of a network, a backbone's file, and fine-tuning, which has to win."""

import dataclasses
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_dataset
from edgecnn.errors import DatasetError, ExportError, NetworkError, OutputExistsError, RecipeError, RunError
from edgecnn.evaluate.answers import require_held_out
from edgecnn.files import sha256
from edgecnn.networks import build_network
from edgecnn.networks.blocks import RUNGS
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import IF_BETTER, NEVER, build_recipe
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import BACKBONE, CHECKPOINT, CHOICE, FLOAT_MODEL, HELD_OUT, QAT_MODEL, Run, create_run
from edgecnn.stages import Silent, folds, network_choice
from edgecnn.stages.against import asked_for
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.network_choice import settled, unkept, with_backbone
from edgecnn.stages.pipeline import run_recipe, trained
from edgecnn.stages.train import open_images
from edgecnn.stress.measure import open_subject
from edgecnn.train.best import Rival

SIDE, CLASSES = 32, 7  # of the file; its classes are none of the photos'


def write(path, *, end="Gemm", side=SIDE, outputs=1, squash=False, seed=3):
    """A small classifier with random weights; with `squash`, it sees only pixels between 0 and 1."""
    random, nodes, weights, last = np.random.default_rng(seed), [], [], "pixels"

    def add(op, *arrays, **attributes):
        nonlocal last
        names = [f"w{len(weights) + place}" for place in range(len(arrays))]
        weights.extend(
            numpy_helper.from_array(np.asarray(one, np.float32), name) for one, name in zip(arrays, names, strict=True)
        )
        nodes.append(helper.make_node(op, [last, *names], [f"t{len(nodes)}"], name=f"/{op}_{len(nodes)}", **attributes))
        last = nodes[-1].output[0]

    if squash:
        add("Clip", 0.0, 1.0)
    for channels, filters in ((3, 8), (8, 16), (16, 32)):
        kernel = random.normal(scale=(2 / channels / 9) ** 0.5, size=(filters, channels, 3, 3))
        add("Conv", kernel, random.normal(scale=0.1, size=filters), strides=[2, 2], pads=[1, 1, 1, 1])
        add("HardSwish" if end == "HardSwish" else "Relu")
    add("GlobalAveragePool")
    add("Flatten")
    if end != "Flatten":
        add("Gemm", random.normal(size=(CLASSES, 32)), random.normal(size=CLASSES), transB=1)
    shown = [
        helper.make_tensor_value_info(nodes[-1 - place].output[0], TensorProto.FLOAT, None) for place in range(outputs)
    ]
    entry = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, side, side])
    graph = helper.make_graph(nodes, "net", [entry], shown, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def draw(folder, counts, levels=(60, 180)):
    """Noise around another level of light for each class."""
    random = np.random.default_rng(1)
    for (label, count), level in zip(counts.items(), levels, strict=True):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = random.normal(level, 4, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def recipe_of(photos, file, network=None, **train):
    return build_recipe(
        {
            "name": "backbone",
            "data": {"source": str(photos)},
            "network": {"name": str(file), **(network or {})},
            "train": train,
        }
    )


def opened(recipe, reporter):
    return with_backbone(recipe, open_images(recipe, None, reporter, None), reporter)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("some photos") / "photos", {"dark": 30, "light": 30})


class Quiet(Silent):
    """A reporter that records its notes and the trained epochs."""

    def __init__(self):
        self.notes, self.epochs = [], []
        self.note = self.detail = self.notes.append

    def training(self, progress):
        if progress.validation_accuracy is not None:
            self.epochs.append((progress.phase, progress.epoch))


def test_quick_fits_a_last_layer_to_the_files_features_and_runs_to_the_bundle(
    photos, tmp_path, monkeypatch, blank_plots
):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "net.onnx")
    recipe = recipe_of(photos, file, head_only=True)
    run, report = run_recipe(recipe, tmp_path / "run", Quiet(), max_drop=100.0)
    held, network = require_held_out(run), run.recipe.network
    assert np.mean(held.int8.argmax(axis=1) == held.classes) > 0.9 and report.data.test_images == 60
    assert network.options["sha256"] == sha256(file.read_bytes()) and (network.height, network.channels) == (SIDE, 3)
    assert run.file(BACKBONE).read_bytes() == file.read_bytes()
    kernel = numpy_helper.to_array(onnx.load(file).graph.initializer[0])
    layers = [layer for layer in model_from_bytes(run.read(FLOAT_MODEL, "train")).layers if layer.weights]
    np.testing.assert_array_equal(layers[0].get_weights()[0], kernel.transpose(2, 3, 1, 0))
    assert layers[-1].get_weights()[0].shape == (32, 2) and run.info.init.run == "net.onnx"

    again = Quiet()
    run_recipe(recipe, tmp_path / "run", again, max_drop=100.0)
    assert "train: nothing has changed, skipped" in again.notes
    assert not any("trying" in note or "best" in note for note in again.notes)  # the range is the run's
    write(file, seed=4)
    with pytest.raises(OutputExistsError):
        run_recipe(recipe, tmp_path / "run", Quiet(), max_drop=100.0)


@pytest.mark.guard
def test_fine_tuning_starts_from_the_file_and_resumes_without_it(photos, tmp_path, edgecnn):
    file = write(tmp_path / "my net.onnx")
    out = tmp_path / "run"
    train = (
        "train",
        "--data",
        photos,
        "--backbone",
        file,
        "--input-range",
        "unit",
        "--epochs",
        "3",
        "--qat-epochs",
        "1",
        "--set",
        "train.tuning=always",
    )
    assert edgecnn(*train, "--out", out).code == 0
    run, before = Run(out), [numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer]
    layers = [layer for layer in model_from_bytes(run.read(FLOAT_MODEL, "train")).layers if layer.weights]
    moved = [
        float(np.abs(layer.get_weights()[0] - before[2 * place].transpose(2, 3, 1, 0)).max())
        for place, layer in enumerate(layers[:3])
    ]
    assert max(moved) > 0 and max(moved) < 0.1 and run.recipe.network.input_range == "unit"
    done = run.info
    file.unlink()
    run.file("run.json").unlink()
    assert edgecnn("train", "--resume", "--out", out).code == 0
    assert Run(out).info.validation_accuracy == done.validation_accuracy
    copy = run.file(BACKBONE)
    copy.write_bytes(copy.read_bytes()[:-1] + b"\0")
    assert "not the backbone of this recipe" in edgecnn("train", "--resume", "--out", out).err


def test_a_run_that_goes_on_to_fine_tuning_keeps_its_copy_of_the_file(tmp_path):
    recipe = recipe_of("photos", tmp_path / "net.onnx")
    run = create_run(recipe, tmp_path / "run")
    for keep in (True, False):
        run.file(BACKBONE).write_bytes(b"the file")
        create_run(recipe, run.path, force=True, keep_features=keep)
        assert run.file(BACKBONE).exists() == keep


@pytest.mark.parametrize("mean", [None, "0.485,0.456,0.406"])
def test_the_features_are_those_of_onnx_runtime(tmp_path, mean):
    file = write(tmp_path / "net.onnx")
    options = {"mean": mean, "std": "0.229,0.224,0.225"} if mean else {}
    model = build_network(str(file), SIDE, SIDE, 3, 2, options)
    pixels = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    body = type(model)(model.inputs, model.layers[-1].input)
    found = predictor(body, 1 / 128, 0)(pixels)
    graph = onnx.load(file)
    graph.graph.output[0].name = graph.graph.node[-2].output[0]
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    real = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225] if mean else (pixels - 128.0) / 128
    (expected,) = session.run(None, {"pixels": real.transpose(0, 3, 1, 2).astype(np.float32)})
    assert found.shape == (5, 32) and np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_range_is_the_one_whose_features_tell_the_classes_apart(tmp_path, reporter):
    dim = draw(tmp_path / "dim", {"one": 30, "other": 30}, levels=(80, 110))
    recipe = opened(recipe_of(dim, write(tmp_path / "net.onnx", squash=True)), reporter)  # -1 to 1 loses all below 128
    assert recipe.network.input_range == "unit" and "mean" not in recipe.network.options
    given = opened(recipe_of(dim, tmp_path / "net.onnx", {"options": {"input_range": "imagenet"}}), reporter)
    assert given.network.options["mean"] == "0.485,0.456,0.406" and "input_range" not in given.network.options


def test_an_open_side_takes_the_given_size(photos, tmp_path, reporter):
    file = write(tmp_path / "net.onnx", side="side")
    with pytest.raises(ExportError, match="--size"):
        opened(recipe_of(photos, file), reporter)
    network = opened(recipe_of(photos, file, {"height": 48, "width": 40}), reporter).network
    assert (network.height, network.width) == (48, 40)


def test_layers_that_cannot_be_trained_as_int8_are_named(photos, tmp_path, reporter):
    file = write(tmp_path / "net.onnx", end="HardSwish")
    assert opened(recipe_of(photos, file), reporter).qat.method == "ptq"
    assert any("cannot be trained as int8" in note for note in reporter.notes)
    with pytest.raises(NetworkError, match="--quick"):
        opened(recipe_of(photos, file, head_only=True), reporter)


def test_what_is_no_backbone_is_refused_with_the_reason(photos, tmp_path, reporter, edgecnn):
    cases = (
        (write(tmp_path / "features.onnx", end="Flatten"), {}, NetworkError, "expected a dense layer"),
        (write(tmp_path / "two.onnx", outputs=2), {}, ExportError, "2 outputs"),
        (tmp_path / "missing.onnx", {}, NetworkError, "missing.onnx"),
        (write(tmp_path / "net.onnx"), {"options": {"sha256": "0" * 64}}, NetworkError, "not the backbone"),
        (tmp_path / "net.onnx", {"channels": 1}, RecipeError, "reads 3 channels"),
        (tmp_path / "net.onnx", {"options": {"mean": "0.5"}}, RecipeError, "--input-std"),
    )
    for file, network, error, text in cases:
        with pytest.raises(error, match=text):
            opened(recipe_of(photos, file, network), reporter)
    train = ("train", "--data", photos, "--backbone")
    assert "docs/your-model.md" in edgecnn(*train, "model.pt").err
    both = edgecnn(*train, tmp_path / "net.onnx", "--network", "resnet8")
    assert both.code == 2 and "mutually exclusive" in both.err


NETWORK = "efficientnet_lite0_150kb"


def recipe_of_fine_tuning(folder, **network):
    return build_recipe(
        {
            "name": "tuned",
            "data": {"source": str(folder)},
            "network": network,
            "train": {"epochs": 3, "batch_size": 16},
            "qat": {"epochs": 1},
        }
    )


NAMED = {"name": NETWORK, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory, crops):
    folder = tmp_path_factory.mktemp("fine tuning")
    crops(folder / "photos", {"temple": 72, "flower": 18})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(RUNGS, NETWORK, 4)
        patch.setattr("edgecnn.train.settle.FEWEST_JUDGES", 5)
        patch.setattr("edgecnn.report.page.svg", lambda figure, name: "")
        yield folder


def made(place, name, kills=None, network=NAMED, photos="photos", **answers):
    """A run through every stage, its report, and its reporter. With `kills`: only trained, and first killed at each of these moments.

    `head` are the answers that the head is said to give, and `tuned` those of fine-tuning's epochs: the poor one loses.
    """
    recipe, run = recipe_of_fine_tuning(place / photos, **network), place / name
    with pytest.MonkeyPatch.context() as patch:
        if "head" in answers:
            begin = Rival.begin
            patch.setattr(Rival, "begin", lambda self, logits: begin(self, answers["head"](logits)))
        if "tuned" in answers:
            examine = Rival.examine
            patch.setattr(Rival, "examine", lambda self, logits: examine(self, answers["tuned"](logits)))
        reporter = Quiet()
        if kills is None:
            return *run_recipe(recipe, run, reporter, max_drop=100.0), reporter
        for kill in kills:
            with patch.context() as killed:
                where, name = kill
                killed.setattr(import_module(where) if isinstance(where, str) else where, name, None)
                with pytest.raises(TypeError):
                    trained(recipe, run, False, Quiet())
        return trained(recipe, run, False, reporter)[0], None, reporter


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


LOSES = {"head": unsure, "tuned": lambda logits: -logits}


@pytest.fixture(scope="module")
def head(place):
    return made(place, "head")


@pytest.fixture(scope="module")
def beaten(place):
    return made(place, "beaten", head=lambda logits: -logits)


@pytest.mark.guard
def test_a_head_without_mistakes_ships_and_nothing_is_fine_tuned(head):
    run, report, reporter = head
    info = run.info
    assert info.head_ships and info.tuning.epochs == 0 and info.tuning.head_accuracy == 1.0
    assert not reporter.epochs and not run.file(CHECKPOINT).exists()
    assert any("head 100.0%" in note for note in reporter.notes)
    assert len(info.folds) == 5 and report.data.split == "folds"
    assert report.data.test_images == len(require_held_out(run).classes) == info.data.used["train"] == 90


@pytest.mark.guard
def test_a_second_run_does_nothing_and_the_recipe_of_the_run_is_that_of_quick(head):
    run, *_ = head
    assert run.recipe.train.head_only and run.recipe.train.tuning is None
    for recipe in (recipe_of_fine_tuning(run.path.parent / "photos", **NAMED), run.recipe):
        again = Quiet()
        assert run_recipe(recipe, run.path, again, max_drop=100.0)[0].info == run.info
        assert sum("nothing has changed" in note for note in again.notes) > 5 and not again.epochs
    asked = asked_for(run)
    assert not asked["train"]["head_only"] and "tuning" not in asked["train"], "photos to come decide anew"
    assert (
        asked["network"]["name"] == NETWORK and asked["train"]["epochs"] == 3 and "learning_rate" not in asked["train"]
    )


@pytest.mark.guard
def test_resuming_a_run_whose_fine_tuning_has_lost_does_nothing(head, edgecnn):
    run, *_ = head
    before = run.file(FLOAT_MODEL).read_bytes()
    assert edgecnn("train", "--resume", "--out", run.path).code == 0
    assert run.file(FLOAT_MODEL).read_bytes() == before and Run(run.path).info == run.info


@pytest.mark.guard
def test_more_photos_do_not_continue_a_run_whose_head_ships(place, crops):
    crops(place / "few", {"temple": 12, "flower": 12})
    run, *_ = made(place, "grows", photos="few", head=np.copy, tuned=lambda logits: -logits)
    before = run.info
    assert before.folds
    (place / "few" / "temple" / "new.png").write_bytes((place / "photos" / "temple" / "70.png").read_bytes())
    with pytest.raises(OutputExistsError, match="the images"):
        made(place, "grows", photos="few", **LOSES)
    recipe = recipe_of_fine_tuning(place / "few", **NAMED)
    replaced, *_ = trained(recipe, run.path, True, Quiet())
    assert replaced.info.data.fingerprint != before.data.fingerprint and replaced.info.tuning, "they decide anew"


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_no_test_photo_chooses(place, monkeypatch):
    """No file of features has one before the verdict."""
    looked = []

    def of_head(recipe, dataset, run):
        tests = {item.hash for item in dataset.items["test"]}
        for file in run.file("features").iterdir():
            with np.load(file) as kept:
                looked.append(tests & set(kept["hashes"].tolist()))
        return network_choice.of_head(recipe, dataset, run)

    monkeypatch.setattr("edgecnn.stages.folds.of_head", of_head)
    monkeypatch.setattr("edgecnn.train.best.PATIENCE", 1)
    run, *_ = made(place, "unseen", (), network={}, **LOSES)
    assert run.info.head_ships and looked and not any(looked)


@pytest.mark.guard
@pytest.mark.parametrize("cause", ["own splits", "copies"])
def test_a_head_of_photos_that_folds_cannot_divide_never_sees_the_test_photos(place, crops, monkeypatch, cause):
    monkeypatch.setattr("edgecnn.train.best.PATIENCE", 1)
    if cause == "copies":
        flowers = crops(place / cause, {"temple": 40, "flower": 8}) / "flower"
        for one in flowers.iterdir():
            one.write_bytes((flowers / "0.png").read_bytes())
    else:
        crops(place / cause / "train", {"temple": 50, "flower": 50})
        for number, one in enumerate(sorted((place / cause).rglob("*.png"))):
            split = ("train", "train", "train", "validation", "test")[number % 5]
            (place / cause / split / one.parent.name).mkdir(parents=True, exist_ok=True)
            one.rename(place / cause / split / one.parent.name / one.name)
    run, report, _ = made(place, f"run of {cause}", photos=cause, **LOSES)
    info, held = run.info, require_held_out(run)
    assert info.head_ships and run.recipe.train.tuning == NEVER and not info.folds
    assert report.data.split == "test" and report.data.test_images == info.data.split_sizes["test"]
    assert len(held.classes) == info.data.used["train"] + info.data.used["validation"]
    assert "of training and validation" in run.file("card.md").read_text(encoding="utf-8")
    asked = asked_for(run)
    assert "tuning" not in asked["train"] and asked["network"]["name"] == NETWORK
    same, *_ = made(place, f"run of {cause}", photos=cause)
    assert same.info == info
    for path in (run.path, bundle_path(run)):
        with pytest.raises(RunError, match="--split test"):
            open_subject(path, None, "validation", lambda *progress: None)
        assert len(open_subject(path, None, "test", lambda *progress: None).images.classes) == report.data.test_images


@pytest.mark.guard
def test_card_report_and_bundle_show_the_verdict(head):
    run, *_ = head
    card = run.file("card.md").read_text(encoding="utf-8")
    assert "validation photos: head ships" in card and "all 90 images" in card
    assert "head ships" in run.file("report.html").read_text(encoding="utf-8")
    assert read_bundle(bundle_path(run)).manifest.provenance["tuning"]["ships"] == "head"


@pytest.mark.guard
@pytest.mark.parametrize("split", ["validation", "test"])
def test_stress_does_not_measure_on_photos_that_taught_the_head(head, split):
    run, *_ = head
    for path in (run.path, bundle_path(run)):
        with pytest.raises(RunError, match="tuning=always"):
            open_subject(path, None, split, lambda *progress: None)


@pytest.mark.guard
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
    recipe = recipe_of_fine_tuning(place / "photos", **NAMED)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, tuning="always"))
    run, *_ = trained(recipe, place / "always", False, reporter := Quiet())
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
    whole, *_ = made(place, "loses", (), head=unsure)
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
    (place / "photos").rename(place / "away")
    refused = edgecnn("train", "--resume", "--out", out)
    assert refused.code == DatasetError.exit_code and "are missing" in refused.err
    assert Run(out).info.folds and Run(out).file(FLOAT_MODEL).exists(), (
        "without its photos, the model that is there stays"
    )
    (place / "away").rename(place / "photos")
    result = edgecnn("train", "--resume", "--out", out)
    assert result.code == 0, result.err
    run = Run(out)
    assert run.info.tuning.n == round(0.1 * 90) and run.info.head_ships
    assert "validation photos: head ships" in result.err


@pytest.fixture
def two_networks(monkeypatch):
    """Photos choose among heads at 64x64, and fine-tuning trains a network at 32x32."""
    monkeypatch.setattr("edgecnn.train.candidates.USUAL", {"efficientnet_lite0": (64,)})
    monkeypatch.setattr("edgecnn.train.candidates.SIDES", {"efficientnet_lite0": (64,)})
    monkeypatch.setattr("edgecnn.train.settle.BACKBONE", NETWORK)
    monkeypatch.setattr("edgecnn.train.settle.TUNED_SIDE", 32)


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_the_head_of_another_network_ships_and_its_recipe_makes_it_again(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecnn.train.best.PATIENCE", 1)
        run, report, _ = made(place, "other head", network={}, **LOSES)
        info, chosen = run.info, run.stored(CHOICE, NetworkChoice)
        assert info.head_ships and info.tuning.epochs > 0 and report.data.split == "folds"
        assert (info.input.height, info.input.width) == (chosen.height, chosen.width) == (64, 64)
        assert (run.recipe.network.name, run.recipe.network.height) == (chosen.network, 64)
        assert run.recipe.train.head_only
        assert (
            weights(run, FLOAT_MODEL)[0].shape and model_from_bytes(run.read(FLOAT_MODEL, "train")).input_shape[1] == 64
        )

        again = Quiet()
        same, *_ = run_recipe(recipe_of_fine_tuning(place / "photos"), run.path, again, max_drop=100.0)
        assert same.info == info and not again.epochs
        assert sum("nothing has changed" in note for note in again.notes) > 5

        asked = asked_for(run)
        assert "name" not in asked["network"] and not asked["train"]["head_only"], "new photos choose anew"

    remade, _ = run_recipe(run.recipe, place / "made again", again := Quiet(), max_drop=100.0)
    assert equal(remade, run) and not again.epochs and remade.info.tuning is None
    assert remade.info.input == info.input


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_fine_tuning_that_beats_the_head_of_another_network_ships(place):
    run, *_ = made(place, "other beaten", network={}, head=lambda logits: -logits)
    assert run.info.tuning.ships == "fine-tuned" and run.info.input.height == 32
    assert (run.recipe.network.name, run.recipe.network.height) == (NETWORK, 32)
    assert run.recipe.train.tuning == IF_BETTER


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_killed_before_the_verdict_and_after_it_with_two_networks(place, monkeypatch):
    monkeypatch.setattr("edgecnn.train.best.PATIENCE", 1)
    whole, *_ = made(place, "two loses", (), network={}, **LOSES)
    assert whole.info.head_ships
    kills = [
        ("edgecnn.stages.last_layer", "head_answers"),
        (Rival, "verdict"),
        ("edgecnn.stages.pipeline", "ship_head"),
        ("edgecnn.stages.folds", "of_head"),
        ("edgecnn.stages.folds", "begun"),
        ("edgecnn.stages.folds", "fit_last_layer"),
        ("edgecnn.stages.last_layer", "write_held_out"),
        ("edgecnn.stages.folds", "fold_info"),
    ]
    run, *_ = made(place, "two loses and is killed", kills, network={}, **LOSES)
    assert run.info.tuning == whole.info.tuning and run.recipe == whole.recipe
    assert equal(run, whole) and require_held_out(run).sha256 == require_held_out(whole).sha256


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_with_few_validation_photos_the_head_ships_and_nothing_is_fine_tuned(place, monkeypatch):
    monkeypatch.setattr("edgecnn.train.settle.FEWEST_JUDGES", 10)
    run, report, reporter = made(place, "few judges", network={}, head=unsure)
    assert run.info.head_ships and run.info.tuning.n == 9 and run.info.tuning.epochs == 0 and not reporter.epochs
    assert run.info.input.height == 64 and run.recipe.train.head_only and report.data.test_images == 90
    assert sum("9 validation photos cannot judge" in note for note in reporter.notes) == 1
    assert not any("Fine-tuning trains" in note or note.startswith("training:") for note in reporter.notes)
    again = Quiet()
    same, _ = run_recipe(recipe_of_fine_tuning(place / "photos"), run.path, again, max_drop=100.0)
    assert same.info == run.info and "train: nothing has changed, skipped" in again.notes
    assert "tuning" not in asked_for(run)["train"], "with more photos it is judged"

    kills = [(Rival, "verdict"), ("edgecnn.stages.folds", "of_head"), ("edgecnn.stages.folds", "fit_last_layer")]
    killed, *_ = made(place, "few judges, killed", kills, network={}, head=unsure)
    assert killed.info.tuning == run.info.tuning and killed.recipe == run.recipe and equal(killed, run)

    monkeypatch.setattr("edgecnn.train.settle.FEWEST_JUDGES", 9)
    judged, *_ = made(place, "just enough", (), network={}, **LOSES)
    assert judged.info.tuning.epochs > 0


@pytest.mark.usefixtures("two_networks")
def test_limits_and_folds_name_what_fine_tuning_trains(place, reporter):
    dataset = open_dataset(recipe_of_fine_tuning(place / "photos").data)
    for network, wanted in (({"max_kb": 5000.0}, 64), ({"height": 64, "width": 64}, 64), ({}, 32)):
        recipe = recipe_of_fine_tuning(place / "photos", **network)
        with unkept() as run:
            assert settled(recipe, dataset, run, reporter).network.height == wanted


def made_by_folds(place, name, tuned, kills=()):
    """A run with three folds through every stage, first killed at each of `kills`, and its recipe and notes.

    The head makes one mistake, and fine-tuned models give the answers of `tuned`, logits by true classes.
    """
    recipe = recipe_of_fine_tuning(place / "photos")
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, folds=3))
    answers_of, layer_answers = folds.answers_of, folds.layer_answers

    def said(*given):
        held = answers_of(*given)
        return dataclasses.replace(held, float=tuned(np.eye(2, dtype=np.float32)[held.classes]))

    def mistaken(*given):
        hashes, classes, logits = layer_answers(*given)
        return hashes, classes, unsure(logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "answers_of", said)
        patch.setattr(folds, "layer_answers", mistaken)
        for kill in kills:
            with patch.context() as killed:
                killed.setattr(*kill, None)
                with pytest.raises(TypeError):
                    run_recipe(recipe, place / name, Quiet(), max_drop=100.0)
        reporter = Quiet()
        run, report = run_recipe(recipe, place / name, reporter, max_drop=100.0)
    return run, report, recipe, reporter.notes


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_by_folds_a_head_that_fine_tuning_does_not_beat_ships_also_when_killed(place):
    kills = [(folds, "train_fold"), (folds, "fit_all_photos")]
    run, report, recipe, notes = made_by_folds(place, "folds lose", lambda classes: -classes, kills)
    info = run.info
    assert info.head_ships and info.tuning.folds and info.tuning.n == 90 and info.tuning.epochs == 3
    assert any("of 90 held-out photos" in note and "head ships" in note for note in notes)
    assert run.recipe.train.head_only and run.recipe.folds == 3 and run.recipe.network.height == 64
    assert len(info.folds) == 3 and report.data.split == "folds" and report.data.test_images == 90
    again = Quiet()
    same, _ = run_recipe(recipe, run.path, again, max_drop=100.0)
    assert same.info == info and "train: nothing has changed, skipped" in again.notes
    asked = asked_for(run)["train"]
    assert asked["folds"] == 3 and not asked["head_only"], "photos to come decide anew"


@pytest.mark.guard
@pytest.mark.usefixtures("two_networks")
def test_by_folds_fine_tuning_that_beats_the_head_ships_with_its_verdict(place):
    run, _, _, notes = made_by_folds(place, "folds win", lambda classes: 9 * classes)
    info = run.info
    assert info.tuning.ships == "fine-tuned" and info.tuning.folds and not info.head_ships
    assert info.input.height == 32 and run.recipe.folds == 3 and not run.recipe.train.head_only
    assert any("fine-tuned ships" in note for note in notes)
