"""A model behind its input contract, and the timing of calls."""

import dataclasses
import time

import numpy as np
import pytest

from edgecnn.errors import EngineError, ImageError
from edgecnn.pixels import to_codes, to_real
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model, interleave, measure_interleaved


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
