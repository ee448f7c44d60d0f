"""All of --backbone: an ONNX file's network without its last layer, as a start for photos; and what it refuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import ExportError, NetworkError, OutputExistsError, RecipeError
from edgecnn.evaluate.answers import require_held_out
from edgecnn.files import sha256
from edgecnn.networks import build_network
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.recipe import build_recipe
from edgecnn.runs import BACKBONE, FLOAT_MODEL, Run, create_run
from edgecnn.stages.network_choice import with_backbone
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stages.train import open_images

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


class Quiet:
    def __init__(self):
        self.notes = []
        self.note = self.notes.append
        self.working = lambda what, done, total: None
        self.training = lambda progress: None


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
