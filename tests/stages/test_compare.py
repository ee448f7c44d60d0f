"""Any two models: three made by plain TensorFlow, with softmax inside and different input types and ranges."""

import json
import shutil
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.calibrate.input_range import Stated
from edgecnn.data import open_dataset
from edgecnn.emulate.on_boards import test_images as images_of_bundle
from edgecnn.errors import DatasetError, EngineError
from edgecnn.evaluate.statistics import is_scores
from edgecnn.networks.keras import keras, tf
from edgecnn.recipe import DataRecipe, build_recipe, to_tables
from edgecnn.report.sections import range_lines, warning_lines
from edgecnn.stages.compare import compare_models
from edgecnn.tables import to_json
from edgecnn.verify.model_files import open_model_file
from edgecnn.verify.parity_report import Gate, require_parity

UNIT = {"stated": Stated(input_range="unit")}
"""The range 0 to 1, which MLPerf's models and many others use."""


def tflite(model, images, io):
    """Quantize a model after training, with the converter's own input range, which differs from all of ours."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if io is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None] / np.float32(255)] for image in images[:60])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    return converter.convert()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network in the usual kinds of files that `compare` opens."""
    model, images = network
    folder = tmp_path_factory.mktemp("files")
    (folder / "int8.tflite").write_bytes(tflite(model, images, tf.int8))
    (folder / "uint8.tflite").write_bytes(tflite(model, images, tf.uint8))
    (folder / "float.tflite").write_bytes(tflite(model, images, None))
    model.save(folder / "keras2.h5")
    tf.saved_model.save(model, str(folder / "saved"))
    (folder / "float.onnx").write_bytes(onnx_file(model))
    return folder


def onnx_file(model, **options):
    import tf2onnx

    spec = (tf.TensorSpec((None, 12, 12, 3), tf.float32, name="input"),)
    converted, _ = tf2onnx.convert.from_function(tf.function(model), input_signature=spec, **options)
    return converted.SerializeToString()


@pytest.fixture(scope="module")
def more_files(network, files):
    """Other kinds of files in the same folder."""
    import keras as keras3

    model, _ = network
    model.save(files / "keras2.keras")
    (files / "first.onnx").write_bytes(onnx_file(model, inputs_as_nchw=["input"]))

    third = keras3.Sequential(
        [
            keras3.Input((12, 12, 3)),
            keras3.layers.Conv2D(8, 3, activation="relu"),
            keras3.layers.GlobalAveragePooling2D(),
            keras3.layers.Dense(3),
        ]
    )
    third.set_weights(model.get_weights())
    third.save(files / "keras3-logits.keras")


def verified(files, reference, candidate, photos, **options):
    return compare_models(files / reference, files / candidate, str(photos), **{**UNIT, "split": "all"} | options)


@pytest.mark.slow
@pytest.mark.usefixtures("more_files")
@pytest.mark.parametrize("name", ["keras2.keras", "keras3-logits.keras", "first.onnx"])
def test_other_kinds_of_files_answer_the_same(files, photos, schema_of, name):
    test_every_kind_of_file_answers_the_same(files, photos, schema_of, name)


@pytest.mark.parametrize("name", ["float.tflite", "keras2.h5", "float.onnx"])
def test_every_kind_of_file_answers_the_same(files, photos, schema_of, name):
    report = verified(files, "saved", name, photos)
    jsonschema.validate(to_json(report), schema_of("parity"))
    (item,) = report.comparisons
    assert report.data.test_images == 180
    assert item.accuracy_reference > 0.85
    assert item.agreement == 1.0
    assert item.unit == "score"
    assert item.largest_difference < 1e-4
    require_parity(report)


@pytest.mark.parametrize("name", ["int8.tflite", "uint8.tflite"])
def test_integer_inputs_use_the_files_own_quantization(files, photos, name):
    opened = open_model_file(files / name)
    assert str(opened.input.dtype) == name.split(".")[0]
    assert opened.input.scale == pytest.approx(1 / 255, rel=0.05) and opened.input.scale != 1 / 128
    report = verified(files, "float.tflite", name, photos)
    (item,) = report.comparisons
    assert item.agreement > 0.97 and item.unit == "score"
    assert item.largest_lsb < 20
    assert item.largest_difference == pytest.approx(item.largest_lsb / 256, abs=1 / 256)


def test_a_wrong_range_shows_in_the_outputs(files, photos):
    right, wrong = (
        verified(files, "float.tflite", "int8.tflite", photos, **given).comparisons[0]
        for given in (UNIT, {"stated": Stated(input_range="centred")})
    )
    # the int8 file's own range begins at 0, so half of the wrong range is cut off
    assert wrong.largest_lsb > 3 * right.largest_lsb
    assert wrong.confidence_drift.mean > 3 * right.confidence_drift.mean


LEVELS = {"dark": 40, "light": 210, "middle": 128}


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A folder of images whose classes differ only in brightness."""
    folder, random = tmp_path_factory.mktemp("levels") / "levels", np.random.default_rng(7)
    for label, level in LEVELS.items():
        (folder / label).mkdir(parents=True)
        for number in range(60):
            noise = random.normal(0, 30, (12, 12, 3)) + random.normal(0, 12)
            Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def nearest(tmp_path_factory):
    """Networks that answer with the level nearest to the mean pixel, each for its own range: in any other range they are wrong.

    That for raw pixels also has a size of its own.
    """
    folder = tmp_path_factory.mktemp("nearest")
    for name, real in {
        "centred": lambda pixel: (pixel - 128) / 128,
        "unit": lambda pixel: pixel / 255,
        "raw": lambda pixel: pixel,
        "codes": lambda pixel: pixel - 128,
    }.items():
        levels = np.array([real(LEVELS[label]) for label in sorted(LEVELS)], np.float64)
        spread = real(140.0) - real(128.0)
        side = 24 if name == "raw" else 12
        inputs = keras.Input((side, side, 3))
        last = keras.layers.Dense(3)
        model = keras.Model(inputs, last(keras.layers.GlobalAveragePooling2D()(inputs)))
        last.set_weights([np.tile(levels, (3, 1)) / 3 / spread**2, -(levels**2) / 2 / spread**2])
        model.save(folder / f"{name}.h5")
    return folder


@pytest.mark.parametrize("name", ["centred", "unit", "raw"])
def test_the_input_range_is_chosen_and_named(nearest, grey, name):
    other = "unit" if name == "raw" else "raw"  # two models may use two ranges
    report = compare_models(nearest / f"{name}.h5", nearest / f"{other}.h5", str(grey), split="all")
    assert [item.name for item in report.input_ranges] == [name, other]
    assert report.comparisons[0].accuracy_reference > 0.8 and report.comparisons[0].agreement == 1.0
    first, second = range_lines(report)
    assert first.startswith(f"{name}.h5 reads pixels as ") and f"({name}), the best of the usual ones on" in first
    assert f"({other})" in second and warning_lines(report) == []


@pytest.mark.slow
def test_a_range_that_another_one_clearly_beats_gets_a_warning(edgecnn, nearest, grey):
    """It compared 11 % with 12.5 %: both models read a range that they were not made for, and agreed."""
    two = ("compare", nearest / "unit.h5", nearest / "raw.h5", "--data", grey)
    for given in (("--input-range", "centred"), ("--input-scale", 1 / 128)):
        for json_ in ((), ("--json",)):
            result = edgecnn(*two, *given, "--split", "all", "--max-drop", 100, *json_)
            assert result.code == 0, result.err
            lines = (result.err if json_ else result.out).splitlines()
            for name in ("unit", "raw"):
                (warning,) = [line for line in lines if line.startswith(f"WARNING: {name}.h5: the input range")]
                assert warning.endswith(f"Try --input-range {name}")
    right = edgecnn(*two[:2], nearest / "unit.h5", *two[3:], "--input-range", "unit", "--split", "all")
    assert "WARNING" not in right.out


@pytest.mark.parametrize("name", ["int8.tflite", pytest.param("uint8.tflite", marks=pytest.mark.slow)])
def test_a_quantized_input_reports_its_range(files, photos, name):
    report = compare_models(files / "saved", files / name, str(photos))
    item = report.input_ranges[1]
    assert (item.name, item.text) == ("unit", "as its input's quantization declares")


def test_an_unusual_range_is_used_as_given(nearest, grey):
    report = compare_models(
        nearest / "codes.h5", nearest / "codes.h5", str(grey), split="all", stated=Stated(input_range=(1.0, 0))
    )
    assert report.comparisons[0].accuracy_reference > 0.8
    assert {item.name for item in report.input_ranges} == {"given"} and warning_lines(report) == []


def folder_of(photos, folder, layout):
    """Link images of each class into folder/PREFIX/class; `layout` has each prefix's slice of the 60."""
    for prefix, part in layout.items():
        for label in sorted(path.name for path in photos.iterdir()):
            place = folder / prefix / label
            place.mkdir(parents=True)
            for image in sorted((photos / label).iterdir())[part]:
                (place / image.name).symlink_to(image)
    return folder


def test_a_folder_with_only_a_test_split_is_compared_as_a_whole(edgecnn, files, photos, tmp_path):
    data = folder_of(photos, tmp_path / "only", {"test": slice(0, 15)})
    result = edgecnn("compare", files / "saved", files / "float.tflite", "--data", data)
    assert result.code == 0, result.err
    assert "only, 45 of 45 images (its own test split)" in result.out
    assert "of the compared images, since there are no others" in result.out


def test_the_compared_images_and_their_number_are_reported(edgecnn, files, photos, tmp_path):
    two = ("compare", files / "saved", files / "float.tflite", "--data")
    report = json.loads(edgecnn(*two, photos, "--json").out)
    data = report["data"]
    assert (data["images"], data["own_test"]) == (180, False) and 20 < data["test_images"] < 60
    first = edgecnn(*two, photos).out.splitlines()[0]
    assert f"colours, {data['test_images']} of 180 images (a test split, chosen by content; --split all" in first
    assert "colours, all 180 images" in edgecnn(*two, photos, "--split", "all").out
    own = folder_of(photos, tmp_path / "own", {"train": slice(0, 40), "test": slice(40, 60)})
    result = edgecnn(*two, own)
    assert "own, 60 of 180 images (its own test split)" in result.out
    assert "validation and training images" in result.out, "the range is not chosen on test images"


def test_a_folder_of_only_the_bundles_test_images(photos, tmp_path):
    whole = folder_of(photos, tmp_path / "whole", {"train": slice(0, 40), "test": slice(40, 60)})
    alone = folder_of(photos, tmp_path / "alone", {"test": slice(40, 60)})
    manifest = SimpleNamespace(
        input=SimpleNamespace(height=12, width=12, channels=3),
        labels=open_dataset(DataRecipe(source=str(whole))).labels,
        provenance={
            "recipe": to_tables(build_recipe({"data": {"source": str(whole)}})),
            "data": {"split_hashes": open_dataset(DataRecipe(source=str(whole))).hashes},
        },
    )
    bundle = SimpleNamespace(manifest=manifest, path=tmp_path / "whole.edgecnn")
    split, described = images_of_bundle(bundle, str(alone), lambda what, done, total: None, lambda text: None)
    assert len(split.classes) == described.test_images == 60


def test_scores_are_distinguished_from_logits():
    scores = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    assert is_scores(scores, 0.0)
    assert not is_scores(scores * 2, 0.0)
    assert not is_scores(scores - 0.3, 0.0)
    assert not is_scores(np.array([[0.3, 0.3]], np.float32), 0.0)
    assert is_scores(np.array([[0.3, 0.698]], np.float32), 1 / 256)


def test_the_command(edgecnn, files, photos, nearest, grey, tmp_path):
    arguments = ("compare", files / "float.tflite", files / "float.onnx", "--data", photos)
    result = edgecnn(*arguments, "--input-scale", 1 / 255, "--input-zero-point", -128, "--out", "report.json", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads((tmp_path / "report.json").read_text())
    apart = ("compare", nearest / "unit.h5", nearest / "raw.h5", "--data", grey, "--input-range", "unit")
    refused = edgecnn(*apart, "--out", "refused.json", "--json")
    assert refused.code == 14 and json.loads(refused.out) == json.loads((tmp_path / "refused.json").read_text())
    printed = edgecnn(*arguments, "--split", "all").out
    assert "float.onnx" in printed and "180 images" in printed


def test_what_cannot_be_compared(edgecnn, files, photos, finished_run, tmp_path):
    from edgecnn.export import export_path

    digits = export_path(finished_run, "tflite", "int8")
    with pytest.raises(DatasetError, match="has 10 outputs, and colours has 3 classes"):
        compare_models(digits, digits, str(photos))
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "bad.keras").write_text("no model")
    (tmp_path / "bad.h5").write_text("no model")
    (tmp_path / "bad.tflite").write_text("no model")
    for name in ("missing.tflite", "notes.txt", "bad.keras", "bad.h5", "bad.tflite", "."):
        with pytest.raises(EngineError):
            open_model_file(tmp_path / name)
    assert edgecnn("compare", digits).code == 2
    assert edgecnn("compare", digits, digits).code == 2
    two = ("compare", digits, digits, "--data", photos)
    assert edgecnn(*two, "--split", "train").code == 2


def test_a_model_with_itself(finished_run):
    from edgecnn.export import export_path

    digits = export_path(finished_run, "tflite", "int8")
    report = compare_models(digits, digits, "digits", gate=Gate(max_drop=0, min_agreement=1.0))
    assert report.comparisons[0].largest_lsb == 0
    assert [model.name for model in report.models] == [
        "model-int8.tflite (reference)", "model-int8.tflite (candidate)",
    ]  # fmt: skip


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINTS = {"neutral": 0, "warm": 12, "cool": -12}
"""Classes in output order, which is not alphabetical, with each one's excess of red over the mean."""


@pytest.fixture(scope="module")
def torch(tmp_path_factory):
    """A folder with photos of three tints, an ONNX file like PyTorch's that classifies them with torchvision's mean and std, and labels."""
    from onnx import TensorProto, helper, numpy_helper

    folder, random = tmp_path_factory.mktemp("torch"), np.random.default_rng(3)
    for name, more in TINTS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(60):
            pixels = 255 * np.array(MEAN) + (more, 0, 0) + random.normal(0, 20, (12, 12, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "photos" / name / f"{number}.png")
    centres = np.array([[more / 255 / STD[0], 0, 0] for more in TINTS.values()], np.float32) * 200
    bias = -(centres**2).sum(axis=1) / 400
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("Gemm", ["flat", "centres", "bias"], ["logits"], transB=1),
        ],
        "torch",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(centres, "centres"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "torch.onnx").write_bytes(model.SerializeToString())
    (folder / "classes.txt").write_text("\n".join(TINTS))
    return folder


@pytest.mark.parametrize(
    "given",
    [
        ("--input-mean", MEAN, "--input-std", STD),
        pytest.param(("--input-range", "imagenet"), marks=pytest.mark.slow),
        (),
    ],
)
def test_a_mean_and_a_deviation_per_channel(edgecnn, torch, root, given, schema_of):
    options = [",".join(map(str, item)) if isinstance(item, tuple) else item for item in given]
    two = (torch / "torch.onnx",) * 2
    command = (
        "compare",
        *two,
        "--data",
        torch / "photos",
        "--split",
        "all",
        "--labels",
        torch / "classes.txt",
        *options,
    )
    report = json.loads(edgecnn(*command, "--json").out)
    jsonschema.validate(report, schema_of("parity"))
    assert report["comparisons"][0]["accuracy_reference"] > 0.95 and "doubts" not in report
    printed = edgecnn(*command).out
    assert "0 to 1, less the mean 0.485, 0.456, 0.406, over the deviation 0.229, 0.224, 0.225" in printed
    assert "WARNING" not in printed


def test_a_reference_that_does_not_fit_its_classes_gets_a_warning(edgecnn, torch):
    two, data = (torch / "torch.onnx",) * 2, ("--data", torch / "photos", "--split", "all")
    alphabet = edgecnn("compare", *two, *data)
    assert "(imagenet), the best of the usual ones on" in alphabet.out, "whatever the order of the classes"
    assert "WARNING: torch.onnx (reference): in another order its outputs would classify" in alphabet.out
    assert "--labels FILE" in alphabet.out and "classifies 0.0%" in alphabet.out
    wrong = edgecnn("compare", *two, *data, "--labels", torch / "classes.txt", "--input-range", "unit")
    assert "the input range is probably wrong" in wrong.out and "Try --input-range imagenet" in wrong.out
    assert "which is little for a model of these 3 classes (below 56%)" in wrong.out


def test_a_model_may_have_more_classes_than_there_are_folders(edgecnn, torch, tmp_path):
    shutil.copytree(torch / "photos", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / sorted(TINTS)[0])
    two = (torch / "torch.onnx",) * 2
    options = ("--data", tmp_path / "photos", "--split", "all", "--labels", torch / "classes.txt", "--json")
    result = edgecnn("compare", *two, *options)
    assert result.code == 0 and json.loads(result.out)["comparisons"][0]["accuracy_reference"] > 0.95, result.err


def test_labels_and_means_that_do_not_fit(edgecnn, torch, tmp_path):
    two, data = (torch / "torch.onnx",) * 2, ("--data", torch / "photos")
    (tmp_path / "other.txt").write_text("neutral\nwarm\nkool\n")
    result = edgecnn("compare", *two, *data, "--labels", tmp_path / "other.txt")
    assert result.code == DatasetError.exit_code and "Did you mean 'kool'" in result.err
    for options, message in (
        (("--input-mean", "0.5,0.5,0.5"), "--input-mean and --input-std go together"),
        (("--input-mean", "123,117,104", "--input-std", "58,57,57"), "Divide those for 0 to 255 by 255"),
        (("--input-mean", "a", "--input-std", "1"), "expected R,G,B"),
        (("--input-mean", "0.5", "--input-std", "0.5", "--input-range", "raw"), "are mutually exclusive"),
    ):
        result = edgecnn("compare", *two, *data, *options)
        assert result.code == 2 and message in " ".join(result.err.split()), result.err
