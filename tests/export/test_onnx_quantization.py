"""Scales and zero points are read from the graph of an ONNX file that edgecnn did not make."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are read with onnx")

import onnx

from edgecnn.export.given import quantization
from edgecnn.verify.model_files import open_model_file


@pytest.mark.parametrize("raw", [True, False], ids=["raw data", "typed data"])
@pytest.mark.parametrize(("element", "zero_point"), [("int8", -128), ("int8", 127), ("uint8", 0), ("uint8", 255)])
def test_input_and_output(make_onnx, raw, element, zero_point):
    model = make_onnx(
        element, raw=raw, scale=0.0078125, zero_point=zero_point, output_scale=0.1, output_zero_point=zero_point
    )
    assert quantization(model) == ((0.0078125, zero_point), (float(np.float32(0.1)), zero_point))


def test_a_float_file_has_no_scales(make_onnx):
    assert quantization(make_onnx("float32")) == ((0.0, 0), (0.0, 0))


def test_default_zero_point_and_per_channel_scales(make_onnx):
    model = onnx.ModelProto.FromString(make_onnx())
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    del quantize.input[2]
    assert quantization(model.SerializeToString())[1] == (0.25, 0)
    scale = next(item for item in model.graph.initializer if item.name == "out_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "out_scale"))
    assert quantization(model.SerializeToString())[1] == (0.0, 0)


def test_a_file_without_metadata_is_compared_using_its_graph(make_onnx, tmp_path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(make_onnx("uint8", zero_point=128, output_zero_point=5, metadata=False))
    opened = open_model_file(path)
    assert (opened.input.scale, opened.input.zero_point) == (1 / 128, 128)
    assert (opened.output.scale, opened.output.zero_point) == (0.25, 5)
