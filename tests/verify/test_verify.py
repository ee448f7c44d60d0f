"""The verify stage, and planted conversion faults that it must notice."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import jsonschema

from edgecnn.calibrate.confidence import choose_threshold
from edgecnn.calibrate.input_range import Stated
from edgecnn.data import Split, open_dataset
from edgecnn.errors import EngineError, ParityError, RunError, SplitError
from edgecnn.evaluate.answers import export_answers, load_test
from edgecnn.evaluate.statistics import answered_at
from edgecnn.export import export_path
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import model_bytes, model_from_bytes
from edgecnn.runs import CARD, FLOAT_MODEL, PARITY, QAT_MODEL
from edgecnn.runtime.decision import softmax
from edgecnn.stages.compare import compare_models
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.verify.layers import layer_errors
from edgecnn.verify.parity import compared, parity_report, reference_answers
from edgecnn.verify.parity_report import Gate, require_parity


@pytest.fixture(scope="module")
def report(finished_run):
    return parity_report(finished_run)


def verified(run, **options):
    return verify(run, open_dataset(run.recipe.data), **options)


def comparison(report, kind, candidate):
    return next(item for item in report.comparisons if item.kind == kind and item.candidate == candidate)


def test_the_report_follows_its_schema(report, finished_run, schema_of):
    schema = schema_of("parity")
    written = json.loads(finished_run.read(PARITY, "verify"))
    jsonschema.validate(written, schema)
    assert to_json(report) == written, "the report reads back unchanged"


def test_the_report_covers_every_export_and_int8_ones_twice(report, finished_run):
    assert [model.name for model in report.models] == [
        "float", "fake-quantized", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32", "tflite-int8-ptq",
    ]  # fmt: skip
    conversions = [item.candidate for item in report.comparisons if item.kind == "conversion"]
    assert conversions == ["tflite-int8", "onnx-int8"]
    assert report.data.test_images == 385
    assert report.passed


def test_figures_are_consistent(report):
    for item in report.comparisons:
        assert item.drop == pytest.approx(100 * (item.accuracy_reference - item.accuracy_candidate))
        # models that agree on a share of the images cannot differ in accuracy by more than the remaining share
        assert abs(item.drop) / 100 <= 1 - item.agreement + 1e-9
    assert comparison(report, "quantization", "tflite-float32").agreement == 1.0
    assert comparison(report, "conversion", "tflite-int8").agreement >= 0.99


@pytest.fixture
def bad_run(own_run, plant):
    """A run whose int8 TFLite file has a wrong last bias."""
    wrong = np.roll(np.linspace(-3, 3, 10), 3)
    plant(own_run, -1, lambda weights, bias: np.copyto(bias.codes, np.rint(wrong / bias.scale).astype(np.int32)))
    return own_run


def test_a_planted_fault_closes_the_gate_and_only_its_drop_may_be_accepted(bad_run):
    bad = verified(bad_run, gate=Gate(max_drop=1.0))
    assert not bad.passed
    assert not comparison(bad, "conversion", "tflite-int8").passed
    assert comparison(bad, "conversion", "onnx-int8").passed
    assert comparison(bad, "quantization", "tflite-int8").failed == ("drop",)
    with pytest.raises(ParityError, match="tflite-int8"):
        require_parity(bad)
    bad = verified(bad_run, gate=Gate(max_drop=100.0))
    assert comparison(bad, "quantization", "tflite-int8").passed
    assert "largest_lsb" in comparison(bad, "conversion", "tflite-int8").failed
    with pytest.raises(ParityError, match="tflite-int8"):
        require_parity(bad)


@pytest.mark.slow
def test_a_conversion_that_is_accepted_is_on_record_in_report_card_and_bundle(bad_run, edgecnn):
    own_run = bad_run
    refused = edgecnn("verify", own_run.path, "--max-drop", 100)
    assert refused.code == ParityError.exit_code and "--accept-conversion" in refused.err
    accepted = edgecnn("verify", own_run.path, "--max-drop", 100, "--accept-conversion")
    assert accepted.code == 0, accepted.err
    assert "WARNING: the conversion of tflite-int8 was accepted" in accepted.out
    report = parity_report(own_run)
    item = comparison(report, "conversion", "tflite-int8")
    assert report.accept_conversion and report.passed and item.accepted and item.failed
    assert not comparison(report, "conversion", "onnx-int8").accepted
    bundled = edgecnn("bundle", own_run.path, "--force")
    assert bundled.code == 0 and "WARNING: the conversion of tflite-int8 was accepted" in bundled.err
    assert "the conversion of tflite-int8 was accepted" in own_run.file(CARD).read_text()


def test_a_good_model_passes_a_strict_gate_of_its_own_drop(report):
    require_parity(report)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": "edgecnn.parity/2"}'])
def test_an_invalid_report_is_refused_with_advice(own_run, content):
    own_run.file(PARITY).write_text(content)
    with pytest.raises(RunError, match=r"parity\.json is not a parity report: .*First: edgecnn verify"):
        parity_report(own_run)


def test_changed_test_images_are_refused(own_run):
    text, recorded = own_run.file("run.json").read_text(), own_run.info.data.split_hashes["test"]
    own_run.file("run.json").write_text(text.replace(recorded, "0" * 64))
    with pytest.raises(RunError) as caught:
        verified(own_run)
    assert "the test split of digits is not the one that" in str(caught.value)
    assert f"it had 385 images, now it has 385 (SHA-256 {recorded[:12]}" in str(caught.value)


def test_nothing_exported(own_run):
    for format_ in ("tflite", "onnx"):
        for precision in ("int8", "float32"):
            export_path(own_run, format_, precision).unlink()
    with pytest.raises(RunError, match="First: edgecnn export"):
        verified(own_run)


def test_only_verify_may_see_test_images(own_run):
    with pytest.raises(SplitError):
        open_dataset(own_run.recipe.data).load(("test",), height=8, width=8, channels=1, stage="train")


def test_model_bytes_round_trip(own_run):
    model = model_from_bytes(own_run.read(QAT_MODEL, "train"))
    again = model_from_bytes(model_bytes(model))
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)


def silent(what, done, total):
    pass


def test_labels_permuted(own_run, plant):
    """Caught by the drop, in every class, and by agreement."""

    def permute(*tensors):
        for tensor in tensors:
            tensor.codes = np.roll(tensor.codes, 1, axis=0)
            tensor.scale = np.roll(tensor.scale, 1)

    plant(own_run, -1, permute)
    report = verify(own_run, open_dataset(own_run.recipe.data))
    with pytest.raises(ParityError, match="tflite-int8"):
        require_parity(report)
    found = {item.kind: item for item in report.comparisons if item.candidate == "tflite-int8"}
    quantization, conversion = found["quantization"], found["conversion"]
    assert quantization.failed == ("drop",) and quantization.drop > 80
    assert all(item.drop > 50 for item in quantization.per_class)
    assert conversion.failed == ("largest_lsb", "agreement")
    moved = [(int(flip.reference) + 1) % 10 == int(flip.candidate) for flip in quantization.flips]
    assert np.mean(moved) > 0.9, "the flips show which permutation"


def changed(model, path, change):
    """Store a Keras model with some of its weights (kernel, bias, kernel, bias) changed."""
    other = keras.models.clone_model(model)
    other.set_weights(change(model.get_weights()))
    other.save(path)
    return path


@pytest.fixture
def colours(network, photos, tmp_path):
    """Compare the network for colours with a changed copy."""

    def compare(change):
        model, _ = network
        paths = (changed(model, tmp_path / name, how) for name, how in (("a.h5", lambda same: same), ("b.h5", change)))
        report = compare_models(*paths, str(photos), stated=Stated(input_range="unit"), split="all")
        return report, report.comparisons[0]

    return compare


def test_red_and_blue_swapped(colours):
    """Caught by the drop; the drops per class show which channels."""
    report, item = colours(lambda weights: [weights[0][:, :, ::-1], *weights[1:]])
    assert item.failed == ("drop",)
    drops = {one.label: one.drop for one in item.per_class}
    assert min(drops["red"], drops["blue"]) > 50 > drops["green"]
    with pytest.raises(ParityError) as failed:
        require_parity(report)
    assert "channel order" in str(failed.value)


def test_an_unimportant_bias_zeroed(own_run, plant):
    """No answer has to change: the noise per layer names the layer, and the output differs by more codes than rounding explains."""

    def decibels():
        found = layer_errors(own_run, open_dataset(own_run.recipe.data))
        return {item.layer: item.sqnr_db for item in found.layers}

    before = decibels()
    plant(own_run, 0, lambda weights, bias: bias.codes.fill(0))
    after = decibels()
    assert before["conv2d"] - after["conv2d"] > 5, "the first layer"
    report = verify(own_run, open_dataset(own_run.recipe.data))
    (item,) = (one for one in report.comparisons if (one.kind, one.candidate) == ("conversion", "tflite-int8"))
    assert item.largest_lsb > 3 and item.mean_lsb > 0.5


def noisy(run, path):
    """Quantize the float model after training, with ranges from faint noise instead of images."""
    random = np.random.default_rng(2)
    converter = tf.lite.TFLiteConverter.from_keras_model(model_from_bytes(run.read(FLOAT_MODEL, "train")))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.normal(0, 0.2, (1, 8, 8, 1)).astype(np.float32)] for _ in range(60)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with quiet_stderr():
        path.write_bytes(converter.convert())


def test_a_model_calibrated_on_noise(own_run, tmp_path):
    """As a run's export it is refused for its input scale; as a file it is caught by the drop."""
    path = export_path(own_run, "tflite", "int8")
    noisy(own_run, path)
    with pytest.raises(EngineError, match="the model's input has scale"):
        verify(own_run, open_dataset(own_run.recipe.data))
    report = compare_models(export_path(own_run, "tflite", "float32"), path, "digits", gate=Gate(min_agreement=0.98))
    assert report.comparisons[0].failed == ("drop", "agreement")


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """Two classes of 24x24 images that differ in brightness; the bright ones are a fine checkerboard."""
    folder = tmp_path_factory.mktemp("brightness") / "boards"
    random = np.random.default_rng(4)
    board = np.indices((24, 24)).sum(axis=0) % 2
    for name in ("bright", "dark"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            grey = np.where(board == number % 2, 80, 220) if name == "bright" else np.full((24, 24), 100)
            noise = random.normal(0, 6, (24, 24, 3))
            image = np.clip(grey[:, :, None] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


def brightness_model(path, size, resize=None):
    """Store a model that tells dark from bright, and on request resizes its own input."""
    kernel = np.tile(np.array([[20, -20]], np.float32), (3, 1))
    bias = np.array([0, 0], np.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)])
    def answer(pixels):
        small = resize(pixels) if resize else pixels
        return {"logits": tf.reduce_mean(small, axis=(1, 2)) @ kernel + bias}

    module = tf.Module()
    module.answer = answer
    tf.saved_model.save(module, str(path), signatures={"serving_default": answer})
    return path


def test_another_resize_filter(brightness, tmp_path):
    """Caught by the drop, all of it in the class that the filter aliases. With the right filter there is no alarm."""
    reference = brightness_model(tmp_path / "reference", 12)
    same = brightness_model(
        tmp_path / "antialiased", 24, lambda pixels: tf.image.resize(pixels, (12, 12), "bilinear", antialias=True)
    )
    other = brightness_model(tmp_path / "nearest", 24, lambda pixels: tf.image.resize(pixels, (12, 12), "nearest"))
    gate = Gate(min_agreement=0.985)
    good = compare_models(reference, same, str(brightness), split="all", gate=gate)
    assert good.comparisons[0].failed == ()
    bad = compare_models(reference, other, str(brightness), split="all", gate=gate).comparisons[0]
    assert bad.accuracy_reference == 1.0
    assert bad.failed == ("drop", "agreement")
    assert {item.label: item.drop > 20 for item in bad.per_class} == {"bright": True, "dark": False}


def test_a_bias_zeroed_in_one_layer(brightness, tmp_path):
    """Caught by the drop and by agreement if the bias matters, here as a threshold on brightness."""
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    kernel = np.tile(np.array([[20, -20]], np.float32), (3, 1))
    model.set_weights([kernel, np.array([-30, 30], np.float32)])  # in real values from 0 to 1, bright is above 1/2
    reference = changed(model, tmp_path / "a.h5", lambda same: same)
    zeroed = changed(model, tmp_path / "b.h5", lambda weights: [weights[0], np.zeros_like(weights[1])])
    gate = Gate(max_drop=100.0, min_agreement=0.985)
    report = compare_models(
        reference, zeroed, str(brightness), stated=Stated(input_range="unit"), split="all", gate=gate
    )
    (item,) = report.comparisons
    assert item.failed == ("agreement",), "the drop was allowed"
    assert item.drop == 50.0
    assert [(one.label, one.drop) for one in item.per_class] == [("bright", 0.0), ("dark", 100.0)]
    with pytest.raises(ParityError, match=r"agrees on 50\.00%"):
        require_parity(report)


@pytest.fixture(scope="module")
def good(finished_run):
    """The good run's test split, and its float, fake-quantized and int8 answers."""
    dataset = open_dataset(finished_run.recipe.data)
    test = load_test(finished_run, dataset)
    path = export_path(finished_run, "tflite", "int8")
    return (
        test,
        dataset.labels,
        *(reference_answers(finished_run, name, test.images, silent) for name in ("float", "fake-quantized")),
        export_answers(finished_run, path, "tflite", "int8", test.images, silent),
    )


def test_a_shifted_threshold(good):
    """Caught by the share answered: it matches the record at the chosen threshold, and differs at another one."""
    test, _, float_, _, _ = good
    scores = softmax(float_.values)
    best, right = scores.max(axis=1), np.argmax(scores, axis=1) == test.classes
    chosen = choose_threshold(best, right, 0.05)
    assert answered_at(best, right, chosen.threshold).answered == chosen.answered
    shifted = answered_at(best, right, chosen.threshold + 0.2)
    assert shifted.answered < chosen.answered and shifted.share_answered < chosen.share_answered - 0.01


def test_twenty_resamples_of_a_good_models_test_split_raise_no_alarm(good):
    test, labels, float_, fake, int8 = good
    gate = Gate(max_drop=1.0, min_agreement=0.985)
    for seed in range(20):
        chosen = np.random.default_rng(seed).integers(0, len(test.classes), len(test.classes))
        split = Split(
            images=test.images[chosen],
            classes=test.classes[chosen],
            sources=tuple(test.sources[index] for index in chosen),
        )
        one, two, three = (
            replace(item, values=item.values[chosen], codes=None if item.codes is None else item.codes[chosen])
            for item in (float_, fake, int8)
        )
        assert compared("quantization", one, three, split, labels, gate).failed == ()
        assert compared("conversion", two, three, split, labels, gate).failed == ()
