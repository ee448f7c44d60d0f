"""Any two models: three that plain TensorFlow made, with softmax inside, other input types and other ranges."""

import json

import jsonschema
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import DatasetError, EngineError
from edgecnn.networks.keras import tf
from edgecnn.verify.foreign import is_scores, open_foreign
from edgecnn.verify.gate import Gate, require_parity
from edgecnn.verify.models import verify_models

UNIT = {"input_range": "unit"}
"""The range 0 to 1, as MLPerf's and many others' models read."""


def tflite(model, images, io):
    """Quantize a model after training, with the converter's own input range, which is none of ours."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if io is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None] / np.float32(255)] for image in images[:60])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    return converter.convert()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network as every kind of file that `verify` opens."""
    model, images = network
    folder = tmp_path_factory.mktemp("files")
    (folder / "int8.tflite").write_bytes(tflite(model, images, tf.int8))
    (folder / "uint8.tflite").write_bytes(tflite(model, images, tf.uint8))
    (folder / "float.tflite").write_bytes(tflite(model, images, None))
    model.save(folder / "keras2.h5")
    model.save(folder / "keras2.keras")
    tf.saved_model.save(model, str(folder / "saved"))
    import keras as keras3

    third = keras3.Sequential(
        [
            keras3.Input((12, 12, 3)),
            keras3.layers.Conv2D(8, 3, activation="relu"),
            keras3.layers.GlobalAveragePooling2D(),
            keras3.layers.Dense(3),
        ]
    )
    third.set_weights(model.get_weights())
    third.save(folder / "keras3-logits.keras")
    import tf2onnx

    spec = (tf.TensorSpec((None, 12, 12, 3), tf.float32, name="input"),)
    (folder / "float.onnx").write_bytes(
        tf2onnx.convert.from_function(tf.function(model), input_signature=spec)[0].SerializeToString()
    )
    (folder / "first.onnx").write_bytes(
        tf2onnx.convert.from_function(tf.function(model), input_signature=spec, inputs_as_nchw=["input"])[
            0
        ].SerializeToString()
    )
    return folder


def verified(files, reference, candidate, photos, **options):
    return verify_models(files / reference, files / candidate, str(photos), **{**UNIT, "split": "all"} | options)


@pytest.mark.parametrize(
    "name", ["float.tflite", "keras2.h5", "keras2.keras", "keras3-logits.keras", "float.onnx", "first.onnx"]
)
def test_every_kind_of_file_answers_the_same(files, photos, root, name):
    report = verified(files, "saved", name, photos)
    jsonschema.validate(report, json.loads((root / "edgecnn/verify/parity.schema.json").read_text()))
    (item,) = report["comparisons"]
    assert report["data"]["test_images"] == 180
    assert item["accuracy_reference"] > 0.85
    assert item["agreement"] == 1.0
    assert item["unit"] == "score"
    assert item["largest_difference"] < 1e-4
    require_parity(report)


@pytest.mark.parametrize("name", ["int8.tflite", "uint8.tflite"])
def test_integer_inputs_are_read_by_the_files_own_quantization(files, photos, name):
    opened = open_foreign(files / name)
    assert str(opened.input.dtype) == name.split(".")[0]
    assert opened.input.scale == pytest.approx(1 / 255, rel=0.05) and opened.input.scale != 1 / 128
    report = verified(files, "float.tflite", name, photos)
    (item,) = report["comparisons"]
    assert item["agreement"] > 0.97 and item["unit"] == "score"
    assert item["largest_lsb"] < 20
    assert item["largest_difference"] == pytest.approx(item["largest_lsb"] / 256, abs=1 / 256)


def test_a_wrong_range_shows_in_the_outputs(files, photos):
    right, wrong = (
        verified(files, "float.tflite", "int8.tflite", photos, **given)["comparisons"][0]
        for given in (UNIT, {"input_range": "centred"})
    )
    # the int8 file's own range begins at 0, so that half of the wrong one is cut off
    assert wrong["largest_lsb"] > 3 * right["largest_lsb"]
    assert wrong["confidence_drift"]["mean"] > 3 * right["confidence_drift"]["mean"]


def test_scores_are_told_from_logits():
    scores = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    assert is_scores(scores, 0.0)
    assert not is_scores(scores * 2, 0.0)
    assert not is_scores(scores - 0.3, 0.0)
    assert not is_scores(np.array([[0.3, 0.3]], np.float32), 0.0)
    assert is_scores(np.array([[0.3, 0.698]], np.float32), 1 / 256)


def test_the_command(edgecnn, files, photos, tmp_path):
    arguments = ("verify", "--reference", files / "float.tflite", "--candidate", files / "float.onnx", "--data", photos)
    result = edgecnn(*arguments, "--input-scale", 1 / 255, "--input-zero-point", -128, "--out", "report.json", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads((tmp_path / "report.json").read_text())
    printed = edgecnn(*arguments, "--split", "all").out
    assert "float.onnx" in printed and "180 images" in printed


def test_what_cannot_be_compared(edgecnn, files, photos, finished_run, tmp_path):
    from edgecnn.export import export_path

    digits = export_path(finished_run, "tflite", "int8")
    with pytest.raises(DatasetError, match="gives 10 outputs, colours has 3 classes"):
        verify_models(digits, digits, str(photos))
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "bad.keras").write_text("no model")
    (tmp_path / "bad.h5").write_text("no model")
    (tmp_path / "bad.tflite").write_text("no model")
    for name in ("missing.tflite", "notes.txt", "bad.keras", "bad.h5", "bad.tflite", "."):
        with pytest.raises(EngineError):
            open_foreign(tmp_path / name)
    assert edgecnn("verify", "--reference", digits).code == 2
    assert edgecnn("verify", "--out", "x.json").code == 2
    two = ("verify", "--reference", digits, "--candidate", digits, "--data", photos)
    assert edgecnn(*two, "--split", "train").code == 2
    assert edgecnn(*two, "--layers").code == 2


def test_a_model_with_itself(finished_run):
    from edgecnn.export import export_path

    digits = export_path(finished_run, "tflite", "int8")
    report = verify_models(digits, digits, "digits", gate=Gate(max_drop=0, min_agreement=1.0))
    assert report["comparisons"][0]["largest_lsb"] == 0
    assert [model["name"] for model in report["models"]] == [
        "model-int8.tflite (reference)", "model-int8.tflite (candidate)",
    ]  # fmt: skip
