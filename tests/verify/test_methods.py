"""The choice between methods, and small parts of verification."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import jsonschema

from edgecnn.bundle.file import read_bundle
from edgecnn.data import Split, open_dataset
from edgecnn.evaluate.answers import Answers, export_answers
from edgecnn.evaluate.statistics import mcnemar_exact
from edgecnn.export import alternative, export_path
from edgecnn.recipe import build_recipe, load_recipe, merge
from edgecnn.runs import CARD, PARITY, QAT_MODEL
from edgecnn.runtime.engines import Tensor
from edgecnn.runtime.selftest import selftest
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.verify import golden
from edgecnn.verify.golden import tolerance_of
from edgecnn.verify.layers import HINTS, Noise, Pair, inside_codes, layer_error, measured_split
from edgecnn.verify.matrix import as_codes, matrix_row
from edgecnn.verify.model_files import ModelFile
from edgecnn.verify.parity import Basis, compared, judged, parity_report
from edgecnn.verify.parity_report import Data, Gate, require_parity
from edgecnn.verify.predictions import PICTURE_SIDE, gallery, thumbnail


def valid(run, schema_of):
    jsonschema.validate(json.loads(run.read(PARITY, "verify")), schema_of("parity"))


def kinds(report, candidate):
    return [item.kind for item in report.comparisons if item.candidate == candidate]


def names(report):
    return [model.name for model in report.models]


@pytest.fixture
def ptq_run(own_run):
    """A run whose training chose post-training quantization: the finished run with that choice, taken through the stages again."""
    info = own_run.info
    own_run.write_info(replace(info, int8=replace(info.int8, asked="auto", method="ptq", decided_by="divergence")))
    return own_run


def test_post_training_quantization_is_measured_as_well(finished_run, schema_of):
    report = parity_report(finished_run)
    valid(finished_run, schema_of)
    assert kinds(report, "tflite-int8-ptq") == ["alternative"]
    assert kinds(report, "fake-quantized") == ["alternative"], "the limit holds for what ships"
    found = report.int8.qat_against_ptq
    assert (found.reference, found.candidate, found.n) == ("tflite-int8-ptq", "tflite-int8", 385)
    assert found.drop == pytest.approx(100 * (found.lost - found.gained) / 385)
    assert found.mcnemar_p_worse == mcnemar_exact(found.lost, found.gained, "greater")
    accuracy = {model.name: model.accuracy for model in report.models}
    assert found.accuracy_reference == accuracy["tflite-int8-ptq"]
    assert found.accuracy_candidate == accuracy["tflite-int8"]


def test_it_is_quantized_with_training_images_and_does_not_ship(finished_run):
    assert finished_run.info.representative_dataset.split == "train"
    bundle = read_bundle(bundle_path(finished_run))
    assert not any("ptq" in name for name in bundle.files)
    assert bundle.manifest.provenance["int8"] == to_json(finished_run.info.int8)
    assert finished_run.info.int8.method == "qat"


def test_the_card_states_what_training_gained(finished_run):
    card = finished_run.read(CARD, "bundle").decode()
    assert "int8 was made by quantization-aware training (epoch " in card
    assert (
        "Compared with post-training quantization, quantization-aware training changed the accuracy on the test split by "
        in card
    )
    assert "| tflite-int8-ptq |" in card


def test_a_bad_alternative_does_not_close_the_gate(own_run, plant):
    """Its logits are all one. It would fail the gate, but it does not ship."""

    def zero(*tensors):
        for tensor in tensors:
            tensor.codes.fill(0)

    plant(own_run, -1, zero, "int8-ptq")
    report = verify(own_run, open_dataset(own_run.recipe.data), gate=Gate(max_drop=2.0))
    found = next(item for item in report.comparisons if item.candidate == "tflite-int8-ptq")
    assert found.drop > 50 and found.passed
    require_parity(report)
    assert report.int8.qat_against_ptq.drop < -50


def test_if_it_is_better_it_ships_and_everything_follows(ptq_run, tiny_recipe, reporter, schema_of):
    assert alternative(ptq_run) == ("tflite", "int8-qat")
    qat = export_path(ptq_run, "tflite", "int8").read_bytes()
    ptq = export_path(ptq_run, "tflite", "int8-ptq").read_bytes()
    run_recipe(build_recipe(load_recipe(tiny_recipe)), ptq_run.path, reporter, max_drop=100.0)
    assert export_path(ptq_run, "tflite", "int8").read_bytes() == ptq
    assert export_path(ptq_run, "tflite", "int8-qat").read_bytes() == qat
    report = parity_report(ptq_run)
    valid(ptq_run, schema_of)
    assert names(report) == [
        "float", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32", "tflite-int8-qat",
    ]  # fmt: skip
    assert kinds(report, "tflite-int8") == kinds(report, "onnx-int8") == ["quantization"], "no fake-quantized model"
    found = report.int8.qat_against_ptq
    assert (found.reference, found.candidate) == ("tflite-int8", "tflite-int8-qat")
    bundle = read_bundle(bundle_path(ptq_run))
    assert bundle.files["models/int8.tflite"] == ptq
    assert bundle.manifest.provenance["int8"]["method"] == "ptq"
    assert bundle.manifest.provenance["representative_dataset"] == to_json(ptq_run.info.representative_dataset)
    assert selftest(bundle).passed
    assert (
        "int8 was made by post-training quantization, which ties with the other method in agreement and accuracy on validation images"
        in ptq_run.read(CARD, "bundle").decode()
    )


@pytest.mark.slow
def test_a_recipe_with_only_post_training_quantization(tmp_path, monkeypatch, tiny_recipe, tiny_network, reporter):
    monkeypatch.chdir(tmp_path)
    qat = {"method": "ptq"}
    over = {"network": {"name": tiny_network}, "train": {"epochs": 2}, "qat": qat}
    recipe = build_recipe(merge(load_recipe(tiny_recipe), over))
    run, report = run_recipe(recipe, tmp_path / "run", reporter, max_drop=100.0)
    assert not run.file(QAT_MODEL).exists() and [phase for phase, _ in reporter.epochs] == ["float", "float"]
    assert names(report) == ["float", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32"]
    assert report.int8.qat_against_ptq is None and alternative(run) is None
    assert selftest(read_bundle(bundle_path(run))).passed
    assert "int8 was made by post-training quantization, as the recipe requests" in run.read(CARD, "bundle").decode()


def test_the_file_used_in_training_is_the_exported_one(finished_run):
    """On validation images, the exports answer as recorded when training chose."""
    dataset = open_dataset(finished_run.recipe.data)
    split = dataset.load(("validation",), **vars(finished_run.info.input), stage="test")["validation"]
    for name, precision in (("qat", "int8"), ("ptq", "int8-ptq")):
        path = export_path(finished_run, "tflite", precision)
        found = export_answers(finished_run, path, "tflite", precision, split.images, lambda *progress: None)
        accuracy = np.mean(np.argmax(found.values, axis=1) == split.classes)
        assert accuracy == getattr(finished_run.info.int8.validation, name).accuracy


PIXELS = np.array([0, 51, 128, 255], np.uint8).reshape(1, 2, 2, 1)


def file_with(dtype, scale, zero_point, output=(0.0, 0)):
    """Return a model file that gives what it reads."""
    read = Tensor("in", (1, 2, 2, 1), np.dtype(dtype), scale, zero_point)
    return ModelFile(
        format="tflite",
        engine="none",
        size_bytes=1,
        sha256="",
        input=read,
        output=read._replace(scale=output[0], zero_point=output[1]),
        run=lambda x: x,
    )


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "expected"),
    [
        ("float32", 0.0, 0, [0, 0.2, 128 / 255, 1]),
        ("uint8", 1 / 255, 0, [0, 51, 128, 255]),
        ("int8", 1 / 255, -128, [-128, -77, 0, 127]),
        ("int8", 2 / 255, 0, [0, 26, 64, 127]),  # 25.5 is rounded to even, and 127.5 does not fit
        ("uint8", 0.0, 0, [0, 51, 128, 255]),  # codes, the range is not known
        ("int8", 0.0, 0, [-128, -77, 0, 127]),
    ],
)
def test_a_file_reads_pixels_of_0_to_1_in_its_own_codes(dtype, scale, zero_point, expected):
    given = file_with(dtype, scale, zero_point).outputs(PIXELS, 1 / 255, -128)
    assert given.dtype == dtype and given.ravel().tolist() == pytest.approx(expected, abs=1e-6)


def test_outputs_are_values_by_scale_and_zero_point_of_the_output():
    model = file_with("int8", 1 / 255, -128, output=(0.5, 3))
    assert model.values(PIXELS, 1 / 255, -128).ravel().tolist() == [-65.5, -40.0, -1.5, 62.0]
    plain = file_with("float32", 0.0, 0)
    assert plain.dequantize(np.array([2.5, -1.0])).tolist() == [2.5, -1.0]


def test_golden_outputs_may_differ_by_one_code_or_a_share_of_the_largest_logit():
    logits = np.array([[-20.0, 3.0], [1.0, 4.0]], np.float32)
    assert tolerance_of(logits.astype(np.int8), "int8")[:2] == (1.0, "LSB")
    assert tolerance_of(logits, "float32")[:2] == (pytest.approx(0.02), "logit"), "-20 is the largest"
    assert tolerance_of(logits, "float16")[0] == pytest.approx(0.2)
    assert tolerance_of(logits / 100, "float32")[0] == pytest.approx(0.001), "of 1 at least"


def test_a_layers_noise_adds_up_over_chunks_and_a_relus_floor_is_not_saturation():
    real = np.array([[0.0, 4.0], [1.0, 10.0], [0.5, 4.0]], np.float32)
    codes = np.array([[-128, 8], [2, 127], [1, 8]], np.int8)
    whole, parts = Noise(2), Noise(2)
    whole.add(real, codes, 0.5, 0)
    for rows in (slice(0, 1), slice(1, 3)):
        parts.add(real[rows], codes[rows], 0.5, 0)
    assert (whole.saturated, whole.count) == (2, 6) and vars(parts).keys() == vars(whole).keys()
    assert parts.sqnr_db == pytest.approx(10 * np.log10(133.25 / (64**2 + 53.5**2)))
    assert parts.channel_ratio == whole.channel_ratio == pytest.approx(6 / 3.5)
    floor = Noise(2)
    floor.add(real, codes, 0.5, -128)
    assert floor.saturated == 1, "only the highest code"


@pytest.mark.parametrize(
    ("saturated", "ratio", "scales", "operator", "hint"),
    [
        (0.001, 7.9, 4, "CONV_2D", "saturated range"),
        (0.00099, 7.9, 4, "CONV_2D", None),
        (0.001, 8.0, 4, "CONV_2D", "outlier channels"),
        (0.001, 8.0, 1, "DEPTHWISE_CONV_2D", "per-tensor weights"),
        (0.0, 1.0, 1, "FULLY_CONNECTED", None),
        (0.0, 1.0, 1, "ADD", None),
    ],
)
def test_a_hint_begins_at_its_limit_and_the_first_cause_is_named(saturated, ratio, scales, operator, hint):
    weights = SimpleNamespace(scale=[0.1] * scales)
    total = SimpleNamespace(saturated=saturated, count=1, channel_ratio=ratio, sqnr_db=20.0)
    found = layer_error(Pair("layer", SimpleNamespace(name=operator, inputs=[None, weights]), None), total)
    assert (found.layer, found.operator, found.hint) == ("layer", operator, HINTS[hint] if hint else "")


def test_the_last_layers_clipped_ends_are_not_counted_as_noise():
    logits, codes = inside_codes(np.array([-90.0, 1.5, 90.0]), np.array([-128, 5, 127], np.int8), 0.5, 2)
    assert codes.tolist() == [-127, 5, 126] and logits.tolist() == [-64.5, 1.5, 62.0]
    runs = [SimpleNamespace(info=SimpleNamespace(folds=folds)) for folds in ((), ("fold",))]
    assert [measured_split(run) for run in runs] == ["validation", "train"]


def answers(values, codes=None):
    values = np.array(values, np.float32)
    return Answers(
        name="m", format="tflite", precision="int8", engine="e", size_bytes=1, sha256="", values=values, scale=0.5, zero_point=-3,
        codes=None if codes is None else np.array(codes, np.int8),
    )  # fmt: skip


def test_engines_are_compared_in_codes_of_the_first_int8_file():
    grid = answers([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5]], [[1, -1], [-3, 3], [-1, -2]])
    keras = answers([[2.0, 1.2], [0.0, 1.0], [0.0, 90.0]])
    assert as_codes(keras, grid).tolist() == [[1, -1], [-3, -1], [-3, 127]], "codes end at 127"
    row = matrix_row("keras", keras, {"keras": keras, "litert": grid}, grid, np.array([0, 0, 1]))
    (cell,) = row.against
    assert (row.name, cell.name, cell.largest_lsb) == ("keras", "litert", 129)
    assert (row.accuracy, cell.agreement) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert matrix_row(
        "litert", grid, {"keras": keras, "litert": grid}, grid, np.array([0, 0, 1])
    ).accuracy == pytest.approx(1 / 3)
    assert (
        matrix_row("keras", keras, {"keras": keras, "other": grid}, None, np.array([0, 0, 1])).against[0].largest_lsb
        is None
    )


def test_galleries_show_flips_in_order_and_mistakes_with_the_highest_score_first():
    true, one, other = np.array([0, 1, 2, 2, 0]), np.array([0, 1, 1, 2, 1]), np.array([1, 1, 1, 0, 0])
    flips, mistakes = gallery(true, one, other, np.array([0.5, 0.99, 0.7, 0.7, 0.8]))
    assert flips.tolist() == [0, 3, 4] and mistakes.tolist() == [2, 3, 0], "a tie keeps its order"


@pytest.mark.parametrize(
    ("shape", "small"), [((96, 60, 3), (96, 60, 3)), ((97, 10, 1), (96, 10, 1)), ((50, 200, 3), (24, 96, 3))]
)
def test_a_picture_is_made_smaller_only_if_its_longer_side_is_above_the_limit(shape, small):
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    made = thumbnail(pixels)
    assert made.shape == small and PICTURE_SIDE == 96 and (made is pixels) == (shape == small)


def timing(p50, p90):
    return SimpleNamespace(p50_ms=p50, p90_ms=p90, _asdict=lambda: {"p50_ms": p50, "p90_ms": p90, "n": 200})


@pytest.mark.parametrize(
    ("int8", "faster", "ratio"), [(1.5, "int8", 0.75), (2.0, "float32", 1.0), (5.0, "float32", 2.5)]
)
def test_the_faster_export_is_named_and_the_ratio_is_int8s_time_by_float32s(tmp_path, monkeypatch, int8, faster, ratio):
    run = SimpleNamespace(command=lambda name: f"edgecnn {name} RUN")
    monkeypatch.setattr(golden, "export_path", lambda run, format_, precision: tmp_path / f"{precision}.{format_}")
    (tmp_path / "int8.onnx").write_bytes(b"x")
    none = golden.time_exports(run, "onnx")
    assert "edgecnn export RUN --format onnx --float32" in none.text and none.ratio is None and none.faster is None
    (tmp_path / "float32.onnx").write_bytes(b"x")
    model = SimpleNamespace(engine=SimpleNamespace(name="ort", version="1.9"), logits=None)
    for name, value in (
        ("input_contract", lambda run: None),
        ("golden_images", lambda contract: np.zeros((2, 4, 6, 3), np.uint8)),
        ("device_model", lambda *given: SimpleNamespace(**vars(model) | {"logits": len})),
        ("measure_interleaved", lambda calls, **options: {"int8": timing(int8, 9.0), "float32": timing(2.0, 3.0)}),
    ):
        monkeypatch.setattr(golden, name, value)
    made = golden.time_exports(run, "onnx")
    assert (made.faster, made.ratio, made.engine) == (faster, ratio, "ort 1.9")
    assert vars(made.measured["int8"]) == {"p50_ms": int8, "p90_ms": 9.0, "n": 200}
    assert (
        made.text.startswith(f"{faster} is faster")
        and f"int8 {int8:.3f} ms, float32 2.000 ms (ratio {ratio:.2f})" in made.text
    )


@pytest.mark.parametrize("groups", [None, 20])
def test_if_every_class_counts_the_same_the_balanced_accuracy_must_be_above_that_of_one_answer(groups):
    """Ninety cats and ten dogs. One model finds 82 and 7; always answering cat is right more often, and finds no dog."""
    classes = np.array([0] * 90 + [1] * 10)
    split = Split(images=np.zeros((100, 1, 1, 1), np.uint8), classes=classes, sources=tuple(map(str, range(100))))
    common = {"format": "tflite", "engine": "none", "size_bytes": 1, "sha256": "a" * 64, "ms_per_image": 1.0}
    found = np.array([0] * 82 + [1] * 8 + [1] * 7 + [0] * 3)
    models = [
        Answers(name=name, precision="float32", values=np.eye(2, dtype=np.float32)[answer], **common)
        for name, answer in (("finds", found), ("guesses", 0 * classes))
    ]
    data = Data(name="pets", title="Pets", split="test", test_images=100, test_sha256="a" * 64)
    gate = Gate(max_drop=100.0)
    comparison = compared("quantization", *models, split, ("cat", "dog"), gate)
    named = [str(number % groups) for number in range(100)] if groups else None

    def chance(balanced):
        tested = Basis(split, ("cat", "dog"), named, (90, 10), balanced)
        return judged(None, data, gate, models, [comparison], tested).chance

    assert chance(False).not_better == ("finds", "guesses") and chance(False).balanced is None
    assert chance(True).not_better == ("guesses",) and (chance(True).accuracy, chance(True).balanced) == (0.9, 0.5)


def test_nothing_is_at_chance_level_if_the_test_images_have_other_shares_than_the_data():
    """Of ten test images, six are cats; the model answers cat always. Seven tenths of all images are dogs, or six tenths cats."""
    classes = np.array([0] * 6 + [1] * 4)
    split = Split(images=np.zeros((10, 1, 1, 1), np.uint8), classes=classes, sources=tuple(map(str, range(10))))
    common = {"format": "tflite", "engine": "none", "size_bytes": 1, "sha256": "a" * 64, "ms_per_image": 1.0}
    values = np.tile(np.array([[2.0, 0.0]], np.float32), (10, 1))
    one, other = (Answers(name=name, precision="float32", values=values, **common) for name in ("float", "int8"))
    data = Data(name="pets", title="Pets", split="test", test_images=10, test_sha256="a" * 64)
    gate = Gate(max_drop=1.0)
    comparison = compared("quantization", one, other, split, ("cat", "dog"), gate)

    def report(counts, groups=None):
        return judged(None, data, gate, [one, other], [comparison], Basis(split, ("cat", "dog"), groups, counts))

    usual, none_known, off = report((60, 40)), report(()), report((30, 70))
    for one_report in (usual, none_known):
        assert one_report.chance.not_better == ("float", "int8") and not one_report.doubts
    assert off.chance.not_better == () and "60% of the test images are 'cat', and 30% of all" in off.doubts[0]
    few, enough = report((60, 40), list("aabbccddee")), report((60, 40), list("abcdefghij"))
    assert few.chance.not_better == () and "only 5 groups tested" in few.doubts[0]
    assert enough.chance.not_better == ("float", "int8") and not enough.doubts
    assert usual.models[0].accuracy_interval != report((60, 40), list("aabbccddee")).models[0].accuracy_interval
    assert report((60, 40), ["a"] * 10).models[0].accuracy_interval == (0.0, 1.0), "one group"
