"""Models made by plain TensorFlow, not edgecnn: read, quantized, verified and bundled."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import keras as keras3

from edgecnn.bundle.file import read_bundle
from edgecnn.errors import DatasetError, ExportError, NetworkError, ParityError, RunError
from edgecnn.export import imported
from edgecnn.export.flatbuffer import read
from edgecnn.export.onnx import float32
from edgecnn.networks.keras import keras as keras2
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import FrozenModel
from edgecnn.pixels import resize
from edgecnn.region import RESAMPLINGS
from edgecnn.runtime.classifier import Classifier, fitted
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.selftest import selftest
from edgecnn.verify.layers import layer_errors

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.usefixtures("blank_plots"),
]

CLASSES = ("dark", "light", "middle")
LEVELS = {"dark": 40, "light": 210, "middle": 128}


def picture(level, random):
    noise = random.integers(-35, 36, (8, 10, 3))
    return Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images whose classes differ only in brightness."""
    folder, random = tmp_path_factory.mktemp("photos") / "photos", np.random.default_rng(7)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(60):
            picture(LEVELS[name], random).save(folder / name / f"{number}.png")
    return folder


def network(keras, real, *, softmax):
    """Build a small network that classifies mean brightness, for the input to which `real` maps a pixel.

    Args:
        keras: Keras 2 or 3.
        real: maps a pixel's value to the network's input.
        softmax: "dense" as the last layer's activation, "layer" as a separate layer, or "" for logits.
    """
    keras.utils.set_random_seed(4)
    layers = keras.layers
    inputs = keras.Input((8, 10, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalAveragePooling2D()(inputs)])
    outputs = layers.Dense(3, activation="softmax" if softmax == "dense" else None, name="last")(x)
    model = keras.Model(inputs, layers.Softmax()(outputs) if softmax == "layer" else outputs)
    # the classes' levels in the real input: logits are highest for the nearest level
    levels = np.array([real(LEVELS[name]) for name in CLASSES])
    unit = (real(255) - real(0)) / 20
    kernel = np.zeros((7, 3), np.float32)
    kernel[4:] = levels / 3 / unit**2
    model.get_layer("last").set_weights([kernel, (-(levels**2) / 2 / unit**2).astype(np.float32)])
    return model


RANGES = {
    "0..255": (lambda pixel: pixel, ()),
    "-128..127": (lambda pixel: pixel - 128, ("--input-scale", 1)),
    "0..1": (lambda pixel: pixel / 255, ("--input-range", "auto")),
    "-1..1": (lambda pixel: pixel / 128 - 1, ("--input-range", "centred")),
}
READ_AS = {
    "0..255": "0 to 255 (raw)",
    "0..1": "0 to 1 (unit)",
    "-1..1": "-1 to 0.9922 (centred)",
    "-128..127": "-128 to 127 (given)",
}

MODELS = [
    pytest.param("mlperf.h5", keras2, "0..255", "dense", marks=pytest.mark.slow),
    ("codes.keras", keras2, "-128..127", ""),
    pytest.param("unit.keras", keras3, "0..1", "layer", marks=pytest.mark.slow),
    pytest.param("saved", keras3, "-1..1", "dense", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "keras", "range_", "softmax"), MODELS)
def test_a_model_from_elsewhere_becomes_a_verified_bundle(edgecnn, tmp_path, photos, name, keras, range_, softmax):
    real, options = RANGES[range_]
    model = network(keras, real, softmax=softmax)
    path = tmp_path / name
    model.export(path, verbose=False) if name == "saved" else model.save(path)
    result = edgecnn("import", path, "--calibrate", photos, "--calibrate-images", 30, *options)
    assert result.code == 0, result.err
    run = tmp_path / "runs" / path.stem
    assert result.out.startswith(f"{run.relative_to(tmp_path)}: ") and "input (8, 10, 3), 3 classes" in result.out
    assert ("softmax removed" in result.out) == bool(softmax)
    assert f"{name} reads pixels as {READ_AS[range_]}, " in result.err
    assert ("the best of the usual ones on" in result.err) == (options in ((), ("--input-range", "auto")))
    assert "WARNING" not in result.err
    assert not list(run.glob("model-*")), "export writes the files"
    result = edgecnn("export", "--json")
    assert result.code == 0, result.err
    info = json.loads((run / "run.json").read_text())
    assert info["representative_dataset"]["split"] == "train" and info["representative_dataset"]["drawn"] == 30
    assert len(info["representative_dataset"]["sha256"]) == 64

    for arguments in (("--format", "tflite", "--float32"), ("--format", "onnx", "--int8")):
        result = edgecnn("export", *arguments)
        assert result.code == 0, result.err

    result = edgecnn("verify", "--max-drop", 3, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [item["name"] for item in report["models"]] == [
        "float", "tflite-int8", "tflite-float32", "onnx-int8",
    ]  # fmt: skip
    assert report["models"][0]["accuracy"] == 1.0
    assert all(item["agreement"] >= 0.97 for item in report["comparisons"]), report["comparisons"]

    assert edgecnn("bundle", "--out", "out.edgecnn").code == 0
    assert f"{name} reads pixels as {READ_AS[range_]}, " in (run / "card.md").read_text()
    assert selftest(read_bundle(tmp_path / "out.edgecnn")).passed
    classifier = Classifier.load(tmp_path / "out.edgecnn", precision="int8")
    random = np.random.default_rng(1)
    assert [classifier.classify(picture(LEVELS[label], random)).decision for label in CLASSES] == list(CLASSES)


def test_a_mean_and_other_labels_become_part_of_the_run(edgecnn, tmp_path, photos):
    """The model uses torchvision's range, and the outputs of `dark` and the others are not in alphabetical order."""
    network(keras3, lambda pixel: (pixel / 255 - 0.485) / 0.229, softmax="").save(tmp_path / "torch.keras")
    names = {"dark": "shade", "light": "bright", "middle": "centre"}
    shutil.copytree(photos, tmp_path / "named")
    for name, other in names.items():
        (tmp_path / "named" / name).rename(tmp_path / "named" / other)
    (tmp_path / "labels.txt").write_text("\n".join(names.values()))
    options = ("--input-mean", 0.485, "--input-std", 0.229, "--labels", "labels.txt", "--calibrate-images", 30)
    result = edgecnn("import", "torch.keras", "--calibrate", "named", *options)
    assert result.code == 0 and "WARNING" not in result.err, result.err
    assert edgecnn("export", "--int8").code == 0
    report = json.loads(edgecnn("verify", "--max-drop", 3, "--json").out)
    assert report["models"][0]["accuracy"] == 1.0 and report["models"][1]["accuracy"] > 0.95
    assert edgecnn("bundle", "--out", "out.edgecnn").code == 0
    random = np.random.default_rng(1)
    classifier = Classifier.load(tmp_path / "out.edgecnn")
    assert [classifier.classify(picture(LEVELS[name], random)).decision for name in names] == list(names.values())


@pytest.mark.parametrize(
    ("options", "fit", "resampling"),
    [((), "crop", "bilinear"), (("--fit", "stretch", "--resampling", "box"), "stretch", "box")],
)
def test_photos_are_shrunk_as_in_the_training_of_the_model(edgecnn, tmp_path, photos, options, fit, resampling):
    network(keras2, RANGES["0..255"][0], softmax="").save(tmp_path / "net.h5")
    assert edgecnn("import", "net.h5", "--calibrate", photos, "--input-range", "raw", *options).code == 0
    for command in (("export",), ("verify", "--max-drop", 3), ("bundle", "--out", "out.edgecnn")):
        assert edgecnn(*command).code == 0
    assert selftest(read_bundle(tmp_path / "out.edgecnn")).passed
    classifier = Classifier.load(tmp_path / "out.edgecnn")
    photo = np.random.default_rng(3).integers(0, 256, (37, 29, 3), np.uint8)
    photo[:, ::2] = 255
    pixels, other = (
        resize(photo, 8, 10, fit, resampling=name) for name in (resampling, *{*RESAMPLINGS} - {resampling})
    )
    assert not np.array_equal(pixels, other)
    scores = softmax(classifier.model.logits(pixels[None])[0] / classifier.temperature)
    assert [one.score for one in classifier.classify(photo).top] == pytest.approx(
        sorted(scores, reverse=True), rel=1e-6
    )
    assert np.array_equal(fitted(photo, classifier.model.contract), pixels)


def test_a_range_that_another_one_clearly_beats_gets_a_warning(edgecnn, tmp_path, photos):
    network(keras2, RANGES["0..255"][0], softmax="").save(tmp_path / "raw.h5")
    result = edgecnn("import", "raw.h5", "--calibrate", photos, "--input-scale", 1 / 128)
    assert result.code == 0, result.err
    (warning,) = [line for line in result.err.splitlines() if line.startswith("WARNING")]
    assert "the input range is probably wrong" in warning and warning.endswith("Try --input-range raw")


@pytest.mark.parametrize(
    "options",
    [("--input-range", "torch"), ("--input-range", "unit", "--input-scale", 1), ("--input-zero-point", 3)],
)
def test_meaningless_ranges_are_refused(edgecnn, tmp_path, photos, options):
    (tmp_path / "raw.h5").write_text("not read")
    assert edgecnn("import", "raw.h5", "--calibrate", photos, *options).code == 2


def test_a_cut_softmax_leaves_the_logits(tmp_path):
    logits = network(keras3, RANGES["-1..1"][0], softmax="")
    scores = network(keras3, RANGES["-1..1"][0], softmax="layer")
    scores.save(tmp_path / "scores.keras")
    read = imported.read_model(tmp_path / "scores.keras")
    model = read.frozen
    assert read.cut and read.what == f"Keras {keras3.__version__}"
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 8, 10, 3)).astype(np.float32)
    expected = logits.predict(pixels, verbose=0)
    np.testing.assert_allclose(model(tf.constant(pixels)), expected, rtol=1e-4, atol=1e-4)
    again = FrozenModel.from_bytes(model.to_bytes())
    np.testing.assert_array_equal(again(tf.constant(pixels)), model(tf.constant(pixels)))


def test_a_custom_softmax_is_refused(edgecnn, tmp_path, photos):
    model = network(keras2, RANGES["-1..1"][0], softmax="")
    powers = tf.exp(model.output - tf.reduce_max(model.output, axis=1, keepdims=True))
    keras2.Model(model.input, powers / tf.reduce_sum(powers, axis=1, keepdims=True)).save(tmp_path / "own.h5")
    result = edgecnn("import", "own.h5", "--calibrate", photos)
    assert result.code == ExportError.exit_code and "ending in logits" in result.err
    assert not (tmp_path / "runs" / "own").exists()


def test_force_replaces_an_earlier_import(edgecnn, tmp_path, photos):
    network(keras2, RANGES["-1..1"][0], softmax="").save(tmp_path / "own.h5")
    start = ("import", "own.h5", "--calibrate", photos)
    assert edgecnn(*start).code == 0
    assert edgecnn(*start, "--seed", 9, "--force").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["latest", "own"]
    assert "seed = 9\n" in (tmp_path / "runs" / "own" / "recipe.toml").read_text()
    assert edgecnn(*start).code == 0, "without --force a different folder is used"
    assert (tmp_path / "runs" / "own-2").exists()


def test_layers_that_cannot_be_quantized_are_named(edgecnn, tmp_path, photos):
    model = network(keras2, RANGES["-1..1"][0], softmax="")
    keras2.Model(model.input, tf.cos(model.output)).save(tmp_path / "cosine.h5")
    assert edgecnn("import", "cosine.h5", "--calibrate", photos).code == 0
    result = edgecnn("export")
    assert result.code == ExportError.exit_code and "COS" in result.err


def test_a_file_that_is_not_a_model_is_refused(tmp_path, edgecnn, photos):
    (tmp_path / "text.h5").write_text("weights")
    (tmp_path / "folder").mkdir()
    two = keras2.Input((8, 8, 3))
    keras2.Model([two, keras2.Input((2,))], keras2.layers.Flatten()(two)).save(tmp_path / "two.h5")
    keras2.Model(two, two).save(tmp_path / "image.h5")
    network(keras2, RANGES["-1..1"][0], softmax="").save_weights(tmp_path / "weights.h5")
    for name, message in {
        "none.keras": "no model at",
        "text.h5": "neither a .keras nor a .h5 file",
        "folder": "no saved_model.pb",
        "two.h5": "2 inputs and 1 outputs",
        "image.h5": "expected .None, num_classes.",
        "weights.h5": "only weights",
    }.items():
        with pytest.raises(ExportError, match=message):
            imported.read_model(tmp_path / name)
    network(keras2, RANGES["-1..1"][0], softmax="").save(tmp_path / "three.h5")
    result = edgecnn("import", "three.h5", "--calibrate", "digits")
    assert result.code == ExportError.exit_code and "3 outputs, but digits has 10 classes" in result.err


def gated(model):
    """Return a network with a product of its features, which has no layer that can be trained as int8."""
    last = model.get_layer("last")
    features = last.input
    gate = keras2.layers.Dense(7, activation="sigmoid", name="gate")(features)
    outputs = keras2.layers.Dense(3, name="after")(features * gate * 2)
    gated = keras2.Model(model.input, outputs)
    gated.get_layer("gate").set_weights([np.zeros((7, 7), np.float32), np.zeros(7, np.float32)])  # a half of everything
    gated.get_layer("after").set_weights(last.get_weights())
    return gated


def imagenet(pixel):
    return (pixel / 255 - 0.456) / 0.225


def tags(run):
    return (run / "card.md").read_text().split("tags: ")[1].split("]")[0]


@pytest.mark.parametrize("wraps", [pytest.param(True, marks=pytest.mark.guard), False])
def test_an_int8_model_of_an_imported_one_is_trained_or_if_it_cannot_be_is_rounded(edgecnn, tmp_path, photos, wraps):
    model = network(keras2, imagenet, softmax="layer")
    model = model if wraps else gated(network(keras2, imagenet, softmax=""))
    (tmp_path / "net.onnx").write_bytes(float32(model))
    result = edgecnn("import", "net.onnx", "--calibrate", photos, "--input-range", "imagenet", "--qat-epochs", 2)
    assert result.code == 0, result.err
    run = tmp_path / "runs" / "net"
    int8 = json.loads((run / "run.json").read_text())["int8"]
    validated = int8["validation"]
    if wraps:
        assert int8["asked"] == "auto" and validated["qat"] and validated["ptq"] and (run / "qat.h5").exists()
        assert len((run / "history.csv").read_text().splitlines()) == 3
        assert "cannot be trained as int8" not in result.err
    else:
        assert "cannot be trained as int8" in result.err and not (run / "qat.h5").exists()
        assert (int8["method"], validated["qat"]) == ("ptq", None)
        assert (int8["rounding"] == "gptq") == (run / "rounded.h5").exists()
        assert validated["ptq"]["divergence"] <= validated["ptq_nearest"]["divergence"]
    for arguments in (("--int8",), ("--format", "onnx", "--int8"), ("--float32",)):
        result = edgecnn("export", *arguments)
        assert result.code == 0, result.err
    result = edgecnn("verify", "--max-drop", 3)
    assert result.code == 0, result.err
    assert "cannot know which images trained" in result.out
    assert json.loads((run / "parity.json").read_text())["int8"]["method"] == int8["method"]
    result = edgecnn("layers")
    assert result.code == 0 and "Relu_" in result.out and "not matched" not in result.out, result.err
    assert edgecnn("bundle", "--out", "out.edgecnn").code == 0
    assert ("quantization-aware-training" in tags(run)) == (int8["method"] == "qat")
    assert selftest(read_bundle(tmp_path / "out.edgecnn")).passed
    classifier = Classifier.load(tmp_path / "out.edgecnn", precision="int8")
    random = np.random.default_rng(1)
    assert [classifier.classify(picture(LEVELS[label], random)).decision for label in CLASSES] == list(CLASSES)


@pytest.mark.guard
def test_layers_can_stay_in_float_at_a_price_that_is_named(edgecnn, tmp_path, photos, monkeypatch):
    def unrecorded(run, *arguments):
        assert not (tmp_path / "runs" / "net" / "run.json").exists(), "killed here, the import would look finished"
        return layer_errors(run, *arguments)

    monkeypatch.setattr("edgecnn.stages.import_.layer_errors", unrecorded)
    (tmp_path / "net.onnx").write_bytes(float32(gated(network(keras2, imagenet, softmax=""))))
    start = ("import", "net.onnx", "--calibrate", photos, "--input-range", "imagenet", "--force")
    assert edgecnn(*start, "--float-layers", "nothing").code == ExportError.exit_code
    assert edgecnn("export", "runs/net", "--int8").code == RunError.exit_code  # the import did not end
    floats = {}
    for asked in ("1", "3"):
        result = edgecnn(*start, "--qat-epochs", 0, "--float-layers", asked)
        assert result.code == 0 and " ms per image on this machine, not " in result.err, result.err
        info = json.loads((tmp_path / "runs" / "net" / "run.json").read_text())
        assert len(info["imported"]["float_layers"]) == int(asked) and info["int8"]["method"] == "ptq"
        assert edgecnn("export", "--int8").code == 0
        graph = read((tmp_path / "runs" / "net" / "model-int8.tflite").read_bytes())
        floats[asked] = [
            one.name for one in graph.operators if one.outputs[0].type == "FLOAT32" and "QUANTIZE" not in one.name
        ]
        assert len(floats[asked]) == int(asked) and graph.inputs[0].type == "INT8" == graph.outputs[0].type
    assert "TFLite" in edgecnn("export", "--format", "onnx", "--int8").err
    assert edgecnn("export", "--float32").code == 0 and edgecnn("verify", "--max-drop", 3).code == 0
    assert (
        edgecnn("bundle", "--out", "out.edgecnn").code == 0 and selftest(read_bundle(tmp_path / "out.edgecnn")).passed
    )
    assert "3 layers in float" in (tmp_path / "runs" / "net" / "card.md").read_text()


@pytest.mark.guard
def test_an_interrupted_import_leaves_no_run_and_begins_again(edgecnn, tmp_path, photos, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(float32(network(keras2, imagenet, softmax="layer")))
    start = ("import", "net.onnx", "--calibrate", photos, "--input-range", "imagenet", "--qat-epochs", 1)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgecnn.stages.import_.distil", killed)
        assert edgecnn(*start).code != 0
    assert edgecnn("export", "runs/net", "--int8").code == RunError.exit_code
    assert not (tmp_path / "runs" / "latest").exists()
    result = edgecnn(*start)
    assert result.code == 0, result.err
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["latest", "net"]


def test_a_board_plays_releases_and_updates_to_an_imported_bundle(edgecnn, tmp_path, photos, monkeypatch):
    pytest.importorskip("tuf", reason="releases need the extra release")
    (tmp_path / "net.onnx").write_bytes(float32(network(keras2, imagenet, softmax="layer")))
    for command in (
        ("import", "net.onnx", "--calibrate", photos, "--input-range", "imagenet"),
        ("export", "--int8"),
        ("export", "--float32"),
        ("verify", "--max-drop", 3),
        ("bundle", "--out", "net.edgecnn", "--serial", 1),
    ):
        result = edgecnn(*command)
        assert result.code == 0, result.err
    played = edgecnn("classify", f"folder:{photos}?fps=500", "--model", "net.edgecnn", "--json")
    frames = [one for one in map(json.loads, played.out.splitlines()) if "event" not in one]
    assert played.code == 0 and len(frames) == 180  # 60 photos of each class, in the order of the classes
    right = sum(one["decision"] == CLASSES[min(one["seq"] // 60, 2)] for one in frames)
    assert right >= 175
    (tmp_path / "passphrase").write_text("correct horse battery")
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    etc = tmp_path / "board" / "etc" / "edgecnn"
    etc.mkdir(parents=True)
    (etc.parent / "machine-id").write_text("a board\n")
    for command in (("release", "init"), ("release", "add", "net.edgecnn", "--to", "door", "--share", 100)):
        result = edgecnn(*command)
        assert result.code == 0, result.err
    shutil.copy(tmp_path / "releases" / "metadata" / "1.root.json", etc / "root.json")
    result = edgecnn("update", "--from", tmp_path / "releases", "--channel", "door", "--prefix", tmp_path / "board")
    assert result.code == 0, result.err
    assert "net serial 1" in result.out


@pytest.mark.guard
def test_a_graph_is_rebuilt_from_layers_when_its_int8_model_is_to_be_better(edgecnn, tmp_path, photos):
    network(keras3, RANGES["0..1"][0], softmax="dense").export(tmp_path / "saved", verbose=False)
    assert edgecnn("import", "saved", "--calibrate", photos, "--input-range", "unit").code == 0
    assert edgecnn("export").code == 0
    result = edgecnn("layers")
    assert result.code == RunError.exit_code and "--qat-epochs" in result.err
    result = edgecnn("import", "saved", "--calibrate", photos, "--input-range", "unit", "--qat-epochs", 0, "--force")
    assert result.code == 0, result.err
    assert (tmp_path / "runs" / "saved" / "qat.h5").exists()
    assert edgecnn("export").code == 0 and edgecnn("verify", "--max-drop", 3).code == 0
    assert edgecnn("layers").code == 0


def test_photos_that_the_model_has_not_seen_judge_it(edgecnn, tmp_path, photos):
    (tmp_path / "net.onnx").write_bytes(float32(network(keras2, RANGES["-1..1"][0], softmax="")))
    random = np.random.default_rng(8)
    for name in CLASSES[:2]:
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(25):
            picture(LEVELS[name], random).save(tmp_path / "new" / name / f"{number}.png")
    assert edgecnn("import", "net.onnx", "--calibrate", photos, "--unseen", "new").code == 0
    assert edgecnn("export").code == 0
    result = edgecnn("verify", "--max-drop", 3)
    assert result.code == 0 and "--unseen" in result.out, result.err
    data = json.loads((tmp_path / "runs" / "net" / "parity.json").read_text())["data"]
    assert (data["unseen"], data["test_images"]) == (True, 50)
    sizes = json.loads((tmp_path / "runs" / "net" / "run.json").read_text())["data"]["split_sizes"]
    assert sizes["test"] == 50 and sizes["train"] + sizes["validation"] == 180, "the others only calibrate and choose"
    (tmp_path / "new" / "dark").rename(tmp_path / "new" / "black")
    result = edgecnn("import", "net.onnx", "--calibrate", photos, "--unseen", "new", "--force")
    assert result.code == DatasetError.exit_code and "black" in result.err


def test_a_tflite_file_of_open_size_and_damaged_files_are_refused(edgecnn, tmp_path, photos):
    pixels = keras2.Input((None, None, 3))
    x = keras2.layers.GlobalAveragePooling2D()(keras2.layers.Conv2D(4, 3, padding="same")(pixels))
    (tmp_path / "open.tflite").write_bytes(tflite(keras2.Model(pixels, keras2.layers.Dense(3)(x)), None, None))
    result = edgecnn("import", "open.tflite", "--calibrate", photos)
    assert result.code == ExportError.exit_code and "expected a fixed height and width" in result.err
    network(keras3, RANGES["-1..1"][0], softmax="").save(tmp_path / "net.keras")
    data = bytearray((tmp_path / "net.keras").read_bytes())
    data[80] ^= 255  # in the first file of the archive
    (tmp_path / "net.keras").write_bytes(data)
    result = edgecnn("import", "net.keras", "--calibrate", photos)
    assert result.code == ExportError.exit_code and "net.keras" in result.err and "Traceback" not in result.err
    options = ("--float-layers", 2, "--qat-epochs", 3)
    assert edgecnn("import", "net.onnx", "--calibrate", photos, *options).code == 2


def test_outputs_that_are_not_numbers_are_refused(edgecnn, tmp_path, photos):
    model = network(keras2, RANGES["-1..1"][0], softmax="")
    keras2.Model(model.input, tf.math.log(model.output - 1e6)).save(tmp_path / "nan.h5")
    result = edgecnn("import", "nan.h5", "--calibrate", photos)
    assert result.code == ExportError.exit_code and "not numbers" in result.err and not (tmp_path / "runs").exists()


def test_a_custom_layer_is_named_with_the_way_out(edgecnn, tmp_path, photos):
    class Doubled(keras3.layers.Layer):
        def call(self, x):
            return x * 2

    model = network(keras3, RANGES["-1..1"][0], softmax="")
    keras3.Model(model.input, Doubled()(model.output)).save(tmp_path / "own.keras")
    result = edgecnn("import", "own.keras", "--calibrate", photos)
    assert result.code == NetworkError.exit_code and "Doubled" in result.err and "model.export(" in result.err


def tflite(model, real, io):
    """Convert a Keras 2 model as another program would: to float32 for `io` None, else to int8 with this type of input and output."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if io is not None:
        random = np.random.default_rng(3)
        shown = [
            np.float32(real(np.asarray(picture(level, random))))[None] for level in LEVELS.values() for _ in range(20)
        ]
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        first = model.input_shape[1] == 3
        converter.representative_dataset = lambda: (
            [image.transpose(0, 3, 1, 2) if first else image] for image in shown
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    return converter.convert()


FINISHED = [
    (RANGES["0..1"][0], tf.float32, "dense", "float.tflite"),
    (RANGES["0..255"][0], tf.uint8, "", "float.onnx"),
    (imagenet, tf.int8, "layer", "float.h5"),
    (imagenet, tf.float32, "", "float.tflite"),
    (RANGES["0..1"][0], tf.uint8, "", "first.tflite"),
]


@pytest.mark.parametrize(("real", "io", "softmax", "reference"), FINISHED)
def test_an_int8_file_of_another_program_ships_once_it_answers_like_its_float_model(
    edgecnn, tmp_path, photos, real, io, softmax, reference
):
    model = network(keras2, real, softmax=softmax)
    if reference == "first.tflite":  # channels first, as PyTorch's converters leave them
        pixels = keras2.Input((3, 8, 10))
        model = keras2.Model(pixels, model(keras2.layers.Permute((2, 3, 1))(pixels)))
    (tmp_path / "int8.tflite").write_bytes(tflite(model, real, io))
    if reference == "float.h5":
        model.save(tmp_path / reference)
    else:
        (tmp_path / reference).write_bytes(float32(model) if reference == "float.onnx" else tflite(model, real, None))
    start = ("import", "int8.tflite", "--calibrate", photos)
    if real is imagenet:
        start += ("--input-mean", "0.456,0.456,0.456", "--input-std", "0.225,0.225,0.225")
    result = edgecnn(*start)
    assert result.code == ExportError.exit_code and "--reference" in result.err
    result = edgecnn(*start, "--reference", reference)
    assert result.code == 0 and ("softmax removed" in result.out) == bool(softmax), result.err
    result = edgecnn("export", "--float32")
    assert result.code == ExportError.exit_code and "ships as it is" in result.err
    result = edgecnn("verify", "--max-drop", 3, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [item["name"] for item in report["models"]] == ["float", "tflite-int8"]
    assert report["models"][0]["accuracy"] == 1.0 and report["comparisons"][0]["agreement"] >= 0.97
    assert edgecnn("bundle", "--out", "out.edgecnn").code == 0
    assert reference in (tmp_path / "runs" / "int8" / "card.md").read_text()
    stressed = edgecnn("stress", "--corruptions", "jpeg", "--json")
    assert stressed.code == 0 and json.loads(stressed.out)["clean"]["float"]["accuracy"] == 1.0, stressed.err
    refused = edgecnn("layers")
    assert refused.code == RunError.exit_code and "ships as it is" in refused.err
    assert "edgecnn layers" not in (tmp_path / "runs" / "int8" / "report.html").read_text()
    assert selftest(read_bundle(tmp_path / "out.edgecnn")).passed
    random = np.random.default_rng(1)
    classifier = Classifier.load(tmp_path / "out.edgecnn")
    answers = [classifier.classify(picture(LEVELS[label], random)) for label in CLASSES]
    assert [answer.decision for answer in answers] == list(CLASSES)
    assert min(answer.top[0].score for answer in answers) > 0.5, "logits, of which a device makes scores once"


def test_an_int8_onnx_file_ships_too_and_one_that_answers_otherwise_does_not_pass(edgecnn, tmp_path, photos):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            random = np.random.default_rng(3)
            levels = [*LEVELS.values()] * 20
            self.images = iter([np.float32(imagenet(np.asarray(picture(level, random))))[None] for level in levels])

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"pixels": image}

    (tmp_path / "float.onnx").write_bytes(float32(network(keras2, imagenet, softmax="layer")))
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader())
    start = ("import", "int8.onnx", "--calibrate", photos, "--input-range", "imagenet", "--force")
    result = edgecnn(*start, "--reference", "float.onnx")
    assert result.code == 0, result.err
    assert edgecnn("verify", "--max-drop", 3).code == 0
    assert edgecnn("bundle", "--out", "out.edgecnn").code == 0
    random = np.random.default_rng(1)
    classifier = Classifier.load(tmp_path / "out.edgecnn")
    assert [classifier.classify(picture(LEVELS[label], random)).decision for label in CLASSES] == list(CLASSES)
    model = network(keras2, RANGES["0..1"][0], softmax="")
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel, bias + np.float32([0, 1e3, 0])])  # always light
    model.save(tmp_path / "light.h5")
    result = edgecnn(*start, "--reference", "light.h5")
    assert result.code == 0, result.err
    assert edgecnn("verify", "--max-drop", 3).code == 0, "the reference is worse, so nothing dropped"
    result = edgecnn("verify", "--max-drop", 3, "--min-agreement", 0.98)
    assert result.code == ParityError.exit_code


def test_a_float_tflite_file_alone_ships_as_float(edgecnn, tmp_path, photos):
    (tmp_path / "net.tflite").write_bytes(tflite(network(keras2, RANGES["0..1"][0], softmax=""), None, None))
    assert edgecnn("import", "net.tflite", "--calibrate", photos, "--qat-epochs", 1).code == 2
    assert edgecnn("import", "net.tflite", "--calibrate", photos).code == 0
    result = edgecnn("export", "--int8")
    assert result.code == ExportError.exit_code and "import the float model" in result.err
    assert edgecnn("verify").code == 0 and edgecnn("bundle", "--out", "out.edgecnn").code == 0
    assert [entry.precision for entry in read_bundle(tmp_path / "out.edgecnn").manifest.models] == ["float32"]
    random = np.random.default_rng(1)
    classifier = Classifier.load(tmp_path / "out.edgecnn")
    assert [classifier.classify(picture(LEVELS[label], random)).decision for label in CLASSES] == list(CLASSES)
