"""Scales and zero points are read from an ONNX file as the onnx package would read them."""

import numpy as np
import pytest

from edgecnn.runtime.engines.onnx_graph import Graph


@pytest.mark.parametrize("raw", [True, False], ids=["raw data", "typed data"])
@pytest.mark.parametrize(("element", "zero_point"), [("int8", -128), ("int8", 127), ("uint8", 0), ("uint8", 255)])
def test_input_and_output(make_onnx, raw, element, zero_point):
    model = make_onnx(
        element, raw=raw, scale=0.0078125, zero_point=zero_point, output_scale=0.1, output_zero_point=zero_point
    )
    graph = Graph(model)
    assert graph.input_quantization("pixels") == (0.0078125, zero_point)
    assert graph.output_quantization("logits") == (float(np.float32(0.1)), zero_point)


def test_float_and_unknown_names(make_onnx):
    graph = Graph(make_onnx("float32"))
    assert graph.input_quantization("pixels") == (0.0, 0)
    assert graph.output_quantization("logits") == (0.0, 0)
    assert Graph(make_onnx()).input_quantization("other") == (0.0, 0)


def test_default_zero_point_and_per_channel_scales(make_onnx):
    onnx = pytest.importorskip("onnx", reason="test models are made with onnx")
    model = onnx.ModelProto.FromString(make_onnx())
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    del quantize.input[2]
    assert Graph(model.SerializeToString()).output_quantization("logits") == (0.25, 0)
    scale = next(item for item in model.graph.initializer if item.name == "out_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "out_scale"))
    assert Graph(model.SerializeToString()).output_quantization("logits") == (0.0, 0)


def test_damaged_files_end_in_an_error_or_in_no_answer(make_onnx):
    model = make_onnx()
    outcomes = set()
    for length in range(0, len(model), 7):
        try:
            Graph(model[:length]).input_quantization("pixels")
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    for data in (b"\x3a\xff\xff\xff\xff\x7f", b"\x3b", b"\xff" * 20):
        with pytest.raises(ValueError, match=r"truncated|unknown"):
            Graph(data)
