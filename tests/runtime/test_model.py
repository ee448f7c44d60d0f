"""A model behind its contract, what a start imports, and which pixels an answer depends on."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from edgecnn.errors import EngineError, ImageError
from edgecnn.pixels import PAD, to_codes, to_real
from edgecnn.runtime import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import Tensor, engines_for, is_installed, open_engine
from edgecnn.runtime.model import Model, interleave, measure_interleaved
from edgecnn.runtime.occlusion import POSITIONS, mean_over_patches, occlusion, places


def test_int8_input_is_codes(fake_engine, contract, pixels):
    engine = fake_engine("int8")
    Model(engine, contract).outputs(pixels)
    assert np.array_equal(engine.batches[0], pixels.astype(np.int16) - 128) and engine.batches[0].dtype == np.int8


def test_uint8_input_is_pixels(fake_engine, contract, pixels):
    engine = fake_engine("uint8", zero_point=128)
    Model(engine, contract).outputs(pixels)
    assert np.array_equal(engine.batches[0], pixels)


@pytest.mark.parametrize(("scale", "zero_point"), [(1 / 128, 0), (1.0, -128)])
def test_float_input_is_real_values(fake_engine, contract, pixels, scale, zero_point):
    engine = fake_engine("float32", "float32")
    Model(engine, dataclasses.replace(contract, scale=scale, zero_point=zero_point)).outputs(pixels)
    expected = pixels.astype(np.float32) if zero_point else (pixels.astype(np.float32) - 128) / 128
    assert np.array_equal(engine.batches[0], expected) and engine.batches[0].dtype == np.float32


def test_the_three_inputs_are_equivalent(tflite_models, contract, pixels):
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    logits = {
        kind: Model(open_engine("litert", model, "tflite"), contract).logits(pixels)
        for kind, model in tflite_models.items()
    }
    step = open_engine("litert", tflite_models["int8"], "tflite").output.scale
    assert all(item.dtype == np.float32 for item in logits.values())
    assert np.max(np.abs(logits["int8"] - logits["uint8"])) <= 1.001 * step, "one code of rounding, not two"
    assert np.max(np.abs(logits["int8"] - logits["float32"])) <= 3 * step, "an int8 network is close to its float one"


def test_dequantize_widens_before_arithmetic(fake_engine, contract):
    model = Model(fake_engine(), contract)
    codes = np.array([[-128, 0, 127]], np.int8)
    assert np.array_equal(model.dequantize(codes), np.array([[-65.5, -1.5, 62.0]], np.float32))


def test_an_input_scale_may_be_rounded(fake_engine, contract):
    assert Model(fake_engine(scale=(1 + 5e-7) / 128), contract).contract.scale == 1 / 128


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"shape": (1, 8, 9, 3)}, r"shape \(8, 9, 3\).*\(8, 8, 3\)"),
        ({"shape": (1, 8, 8, 1)}, "shape"),
        ({"scale": 1 / 127}, "scale 0.0078740157"),
        ({"scale": (1 + 2e-6) / 128}, "contract"),
        ({"zero_point": 1}, "zero point 1"),
        ({"input_type": "uint8"}, "contract .*0.0078125 and 128"),
        ({"input_type": "int16"}, "reads int16"),
        ({"output_scale": 0.0}, "int8 output has no scale"),
    ],
)
def test_a_model_that_breaks_the_input_contract(fake_engine, contract, engine, message):
    with pytest.raises(EngineError, match=message):
        Model(fake_engine(**engine), contract)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_labels_must_match_the_outputs(fake_engine, contract, num_classes):
    assert Model(fake_engine(), contract, 3)
    with pytest.raises(EngineError, match=rf"output has shape \(3,\), but {num_classes} labels"):
        Model(fake_engine(), contract, num_classes)


def test_outputs_whose_shape_differs_from_the_models_declaration(fake_engine, contract, pixels):
    """An ONNX file may declare (batch, 3) and return (batch, 2)."""
    engine = fake_engine()
    model = Model(engine, contract, 3)
    for shape in ((6, 2), (6, 3, 1), (5, 3)):
        engine.run = lambda batch, shape=shape: np.zeros(shape, np.int8)
        with pytest.raises(EngineError, match="expected 3 per image"):
            model.logits(pixels)


def test_invalid_pixels(fake_engine, contract, pixels):
    model = Model(fake_engine(), contract)
    with pytest.raises(ImageError, match=r"uint8.*float64"):
        model.logits(pixels.astype(float))
    with pytest.raises(EngineError, match=r"expected \(n, 8, 8, 3\)"):
        model.logits(pixels[0])


def test_codes_and_reals_agree():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_codes(every), every.astype(np.int16) - 128)
    assert np.array_equal(to_real(every, 1.0, -128), every.astype(np.float32))
    assert np.array_equal(to_real(every, 1 / 128, 0), (every.astype(np.float32) - 128) / 128)


def test_interleaved():
    seen = []
    timings = measure_interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, warmup=2, repeats=3)
    rounds = ["".join(seen[start : start + 2]) for start in range(0, 10, 2)]
    assert set(rounds) == {"ab", "ba"} and len(rounds) == 5
    assert timings["a"].n == 3
    assert 0 <= timings["a"].p50_ms <= timings["a"].p90_ms


def test_which_runs_count(monkeypatch):
    """The first call, of 99 ms, is the warm-up. The others take 10 to 1 ms."""
    durations = iter([0.099, *(number / 1000 for number in range(10, 0, -1))])
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    timing = measure_interleaved({"a": call}, warmup=1, repeats=10)["a"]
    assert (timing.p50_ms, timing.p90_ms, timing.n) == (pytest.approx(5.5), pytest.approx(9.1), 10)


def test_no_repetitions():
    with pytest.raises(ValueError, match="received 0"):
        measure_interleaved({}, warmup=1, repeats=0)


def test_each_block_has_a_new_random_order():
    turns = list(interleave(["a", "b", "c"], 25, 10))
    assert [(len(calls), calls[0]) for _, calls in turns] == [(10, 0)] * 3 + [(10, 10)] * 3 + [(5, 20)] * 3
    rounds = [[name for name, _ in turns[start : start + 3]] for start in (0, 3, 6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert turns == list(interleave(["a", "b", "c"], 25, 10)), "the same seed draws the same orders"
    names = [name for name, _ in interleave(["a", "b", "c"], 50, 1)]
    many = {tuple(names[start : start + 3]) for start in range(0, 150, 3)}
    assert len(many) == 6, "every order comes up"


HEAVY = {"tensorflow", "tf_keras", "keras", "onnx", "tf2onnx", "sklearn", "scipy", "matplotlib", "rich", "google"}
ENGINES = {"ai_edge_litert", "tflite_runtime", "onnxruntime"}
CODE = """
import json, sys
from edgecnn.cli import main
for command in json.load(sys.stdin):
    sys.argv = ["edgecnn", *command]
    try:
        main()
    except SystemExit as ended:
        loaded = [name for name in sys.modules if "." not in name or name.startswith("edgecnn.")]
        print(json.dumps([ended.code, loaded]), file=sys.stderr)
"""
WORKSTATION = {
    f"edgecnn.{name}"
    for name in ("stages", "report", "verify", "export", "train", "networks", "data", "runs", "recipe")
}


@pytest.fixture
def modules(root, tmp_path):
    """Run commands one after another in a new process; return the modules that were loaded after each."""

    def call(*commands):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        ends = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
        assert [code for code, _ in ends] == [0] * len(commands), done.stderr
        return [set(loaded) for _, loaded in ends]

    return call


def test_help_imports_no_engine_nor_numpy(modules):
    pages = ((name, "--help") for name in ("classify", "explain", "selftest"))
    *_, loaded, targets = modules(("--version",), ("--help",), *pages, ("targets",))
    assert not targets & (HEAVY | ENGINES | {"numpy", "PIL"}) and "edgecnn.boards" in targets
    settings = {"edgecnn.device", "edgecnn.device.stream", "edgecnn.device.stream.settings"}
    settings |= {"edgecnn.device.system", "edgecnn.runtime", "edgecnn.runtime.child"}  # with the names of secrets
    device = {name for name in loaded if name.startswith(("edgecnn.runtime", "edgecnn.bundle", "edgecnn.device"))}
    assert device <= settings, "flags need only the settings and the names of secrets, and no other device module"


SERVER = {"starlette", "uvicorn", "prometheus_client", "h11", "anyio", "asyncio", "http"}


def test_each_command_imports_one_engine_no_workstation_and_only_what_it_uses(modules, root, tmp_path):
    """A server runs in another process."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    model = ("--model", root / "models" / "digits" / "digits.edgecnn")
    stream = ("classify", "synthetic:8x8?frames=20", *model)
    serving = [(*stream, "--http", "0")] if importlib.util.find_spec("uvicorn") else []
    classify, streamed, *served, explain = modules(
        ("classify", "photo.jpg", "--json", *model), stream, *serving, ("explain", "photo.jpg", "--json", *model)
    )
    assert not explain & (HEAVY | SERVER | WORKSTATION) and len(explain & ENGINES) == 1, "nor the ones before"
    commands = ("workstation_options", "recipes", "classify_stream", "help")
    assert not classify & {
        f"edgecnn.{name}" for name in ("device.mqtt", "device.http", *(f"cli.{name}" for name in commands))
    }
    assert not classify & {"zipfile", "tempfile", "tomllib", "importlib_metadata"}, "a fast start imports none of these"
    assert "edgecnn.cli.classify_stream" in streamed and not streamed & {"paho", "ssl"}
    assert not [name for name in streamed if "mqtt" in name or ".http" in name]
    for loaded in served:
        assert "edgecnn.device.http.live" in loaded and not loaded & SERVER


def test_the_package_itself_imports_nothing(root):
    code = "import sys; before = set(sys.modules); import edgecnn; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "['edgecnn']"


LABELS = ("empty", "lit")


class Looking:
    """A float32 engine that looks at one place: its second logit is the sum of the real values there, its first is 0."""

    name, version, provider, format = "looking", "1.0", "none", "fake"

    def __init__(self, shape, place, sign=1.0):
        self.input = Tensor("pixels", (1, *shape), np.dtype(np.float32), 0.0, 0)
        self.output = Tensor("logits", (1, 2), np.dtype(np.float32), 0.0, 0)
        self.place = place
        self.sign = sign
        self.batches = []

    def run(self, batch):
        self.batches.append(batch)
        top, left, bottom, right = self.place
        sums = self.sign * batch[:, top:bottom, left:right].sum(axis=(1, 2, 3))
        return np.stack([0 * sums, sums], axis=1).astype(np.float32)


@pytest.fixture
def looking(contract):
    """Make a model that looks at one place of an image of (height, width), and an all-white image."""

    def make(shape, place, sign=1.0, **changes):
        height, width = shape
        changed = replace(contract, height=height, width=width, **changes)
        model = Model(Looking((height, width, 3), place, sign), changed, 2)
        return model, np.full((height, width, 3), 255, np.uint8)

    return make


def test_a_model_that_looks_at_one_place(looking):
    top, left, bottom, right = place = 18, 10, 22, 14
    model, pixels = looking((32, 32), place)
    found = occlusion(model, pixels, LABELS)
    assert (found.answer, found.index) == ("lit", 1) and found.score > 0.99
    assert found.map.shape == (32, 32) and found.map.dtype == np.float32
    y, x = divmod(int(found.map.argmax()), 32)
    assert top <= y < bottom and left <= x < right
    box = [32 * end for end in found.box]
    assert box[0] <= left and box[1] <= top and box[2] >= right and box[3] >= bottom, "it covers the whole place"
    assert found.decrease == pytest.approx(4 * 4 * 3 * 127 / 128, rel=1e-5), "all of the place's values become 0"
    near = np.zeros((32, 32), bool)
    near[top - 7 : bottom + 7, left - 7 : right + 7] = True
    assert not found.map[~near].any(), "no patch that covers one of these pixels reaches the place"
    assert (found.map[top:bottom, left:right] > 0).all()


def test_evidence_against_the_answer_is_negative(looking):
    model, pixels = looking((32, 32), (20, 4, 24, 8), sign=-1)
    found = occlusion(model, np.where(np.arange(32)[:, None, None] < 16, pixels, 0), LABELS)
    assert found.answer == "lit", "the place is black, so that its values are negative"
    shown = occlusion(model, pixels, LABELS)
    assert shown.answer == "empty" and not shown.map.any() and shown.decrease == 0, "that logit does not move"


def test_a_rectangle_of_any_size(looking):
    model, pixels = looking((10, 40), (0, 36, 10, 40))
    found = occlusion(model, pixels, LABELS)
    assert found.map.shape == (10, 40)
    assert found.box[2] == 1 and found.map[:, :20].max() == 0 < found.map[:, 38].min()
    low, pixels = looking((12, 40), (9, 20, 12, 28))  # the patch has 3 rows and 10 columns, and is at row 9, column 18
    assert occlusion(low, pixels, LABELS).box == pytest.approx((18 / 40, 9 / 12, 28 / 40, 1))
    tiny, one = looking((1, 1), (0, 0, 1, 1))
    assert occlusion(tiny, one, LABELS).box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("scale", "zero_point", "middle"), [(1 / 128, 0, 0), (1 / 255, -128, 128 / 255), (1, -128, 128)]
)
def test_the_patch_is_the_middle_of_the_input_whatever_its_range(looking, scale, zero_point, middle):
    model, pixels = looking((8, 8), (0, 0, 8, 8), scale=scale, zero_point=zero_point)
    occlusion(model, pixels, LABELS)
    whole, first, *_ = model.engine.batches
    assert set(np.unique(whole).tolist()) == {np.float32(scale) * np.float32(127 - zero_point)}
    assert first[0, :2, :2] == pytest.approx(middle)
    assert (first[0, 2:] == whole[0, 2:]).all() and (first[0, :2, 2:] == whole[0, :2, 2:]).all()


def test_an_int8_model_reads_code_0_under_the_patch(contract, fake_engine, pixels):
    engine = fake_engine()
    found = occlusion(Model(engine, contract, 3), pixels[0], ("a", "b", "c"))
    assert (engine.batches[1][0, :2, :2] == 0).all() and engine.batches[1].dtype == np.int8
    assert np.array_equal(found.pixels, pixels[0]), "the image itself is unchanged"


def test_places_go_from_end_to_end_and_cover_every_pixel():
    for side in (*range(1, 130), 224, 299):
        length, starts = places(side)
        assert starts[0] == 0 and starts[-1] == side - length and len(starts) == len(set(starts)) <= POSITIONS, side
        assert abs(length - side / 4) <= 0.75
        assert set(range(side)) == {start + step for start in starts for step in range(length)}
        assert side < 16 or max(np.diff(starts)) <= max(2, np.ceil(side / 16)), side


def test_the_map_is_the_mean_over_the_patches_that_cover_a_pixel():
    shape = 21, 34
    (down, tops), (across, lefts) = map(places, shape)
    decreases = np.random.default_rng(1).normal(size=(len(tops), len(lefts))).astype(np.float32)
    expected = np.empty(shape)
    for y in range(shape[0]):
        for x in range(shape[1]):
            rows = [top <= y < top + down for top in tops]
            columns = [left <= x < left + across for left in lefts]
            expected[y, x] = decreases[np.ix_(rows, columns)].mean()
    found = mean_over_patches(decreases, shape)
    assert found == pytest.approx(expected, abs=1e-5) and found.dtype == np.float32


def test_batches_are_small(looking):
    model, pixels = looking((64, 64), (0, 0, 9, 9))
    occlusion(model, pixels, LABELS)
    sizes = [len(batch) for batch in model.engine.batches]
    assert sum(sizes) == 1 + POSITIONS**2 and max(sizes) == POSITIONS


def test_the_score_is_the_classifiers(looking):
    model, pixels = looking((8, 8), (0, 0, 1, 1))
    logit = 3 * 127 / 128
    assert occlusion(model, pixels, LABELS, 2.0).score == pytest.approx(1 / (1 + np.exp(-logit / 2)))


def test_scores_that_are_not_numbers(looking):
    model, pixels = looking((8, 8), (0, 0, 1, 1), sign=np.nan)
    with pytest.raises(ImageError, match="not numbers"):
        occlusion(model, pixels, LABELS)


def deletion_area(model, item, order, steps=32):
    """Return the area under a deletion curve: pixels are greyed out, a 32nd at a time, starting with the largest values of a map."""
    ranks = np.empty(order.size, np.int64)
    ranks[np.argsort(-order, axis=None, kind="stable")] = np.arange(order.size)
    deleted = ranks.reshape(1, *order.shape, 1) < np.linspace(0, order.size, steps + 1)[:, None, None, None]
    scores = softmax(model.logits(np.where(deleted, np.uint8(PAD), item.pixels)))[:, item.index]
    return (scores[:-1] + scores[1:]).mean() / 2


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_a_trained_models_deletion_curve_beats_random_maps(shipped):
    """Petsiuk et al. 2018: the answer's score falls sooner if pixels are removed in the map's order than in a random map's."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn, of the train extra")
    classifier, random = Classifier.load(shipped("digits"), precision="int8"), np.random.default_rng(1)
    grey = (datasets.load_digits().images[:40] * 255 / 16).astype(np.uint8)[..., np.newaxis]
    explained = [occlusion(classifier.model, image, classifier.labels) for image in grey]
    grid = tuple(len(places(side)[1]) for side in (8, 8))

    def area(map_of):
        return np.mean([deletion_area(classifier.model, item, map_of(item)) for item in explained])

    pixels = area(lambda item: random.random((8, 8)))
    smooth = area(lambda item: mean_over_patches(random.random(grid, dtype=np.float32), (8, 8)))
    assert area(lambda item: item.map) < 0.7 * min(pixels, smooth)
    assert area(lambda item: -item.map) > pixels, "in the opposite order, important pixels are removed last"
