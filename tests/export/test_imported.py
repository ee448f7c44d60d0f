"""Models made by plain TensorFlow, not edgecnn: read, quantized, verified and bundled."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import keras as keras3

from edgecnn.bundle.read import read_bundle
from edgecnn.errors import ExportError
from edgecnn.export import imported
from edgecnn.networks.frozen import FrozenModel
from edgecnn.networks.keras import keras as keras2
from edgecnn.networks.keras import tf
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.selftest import selftest

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
    model, what, cut, _ = imported.read_model(tmp_path / "scores.keras")
    assert cut and what == f"Keras {keras3.__version__}"
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
