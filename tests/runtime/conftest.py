"""Tiny models of every kind that the engines read, and an engine that is none."""

import numpy as np
import pytest

from edgecnn.bundle.manifest import InputContract
from edgecnn.runtime.engines import Tensor

CLASSES = 3


@pytest.fixture(scope="session")
def contract():
    """8 by 8 pixels in RGB, real value (pixel - 128) / 128."""
    return InputContract(height=8, width=8, channels=3, fit="crop", scale=1 / 128, zero_point=0)


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), np.uint8)


class FakeEngine:
    """An engine whose logits are the mean of each channel; it keeps the batches that it was given."""

    name, version, provider, format = "fake", "1.0", "none", "fake"

    def __init__(
        self, input_type="int8", output_type="int8", shape=(1, 8, 8, 3), scale=1 / 128, zero_point=0, output_scale=0.5
    ):
        self.input = Tensor("pixels", shape, np.dtype(input_type), scale, zero_point)
        self.output = Tensor("logits", (1, CLASSES), np.dtype(output_type), output_scale, 3)
        self.batches = []

    def run(self, batch):
        self.batches.append(batch)
        return batch.astype(np.float32).mean(axis=(1, 2)).astype(self.output.dtype)


@pytest.fixture(scope="session")
def fake_engine():
    return FakeEngine


@pytest.fixture(scope="session")
def tflite_models():
    """TFLite files made with plain TensorFlow: float32, and int8 and uint8 by post-training quantization over all pixels."""
    pytest.importorskip("tensorflow", reason="test models are made with TensorFlow")
    from edgecnn.files import quiet_stderr
    from edgecnn.networks.keras import tf

    random = np.random.default_rng(2)
    kernel = tf.constant(random.normal(0, 0.5, (3, 3, 3, 4)), tf.float32)
    dense = tf.constant(random.normal(0, 1, (4, CLASSES)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), tf.float32)])
    def network(images):
        features = tf.nn.relu(tf.nn.conv2d(images, kernel, strides=2, padding="SAME"))
        return tf.matmul(tf.reduce_mean(features, axis=(1, 2)), dense)

    def samples():
        yield [np.full((1, 8, 8, 3), -1, np.float32)]
        yield [np.full((1, 8, 8, 3), 127 / 128, np.float32)]
        for _ in range(20):
            yield [(random.integers(0, 256, (1, 8, 8, 3)) / 128 - 1).astype(np.float32)]

    models = {}
    for kind in ("float32", "int8", "uint8"):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = samples
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
        with quiet_stderr():
            models[kind] = converter.convert()
    return models


def onnx_model(
    element="int8", batch="batch", raw=True, scale=1 / 128, zero_point=0, output_scale=0.25, output_zero_point=-7
):
    """Return an ONNX file: channel means times 4, quantized in and out unless `element` is float32."""
    onnx = pytest.importorskip("onnx", reason="test models are made with onnx")
    from onnx import TensorProto, helper, numpy_helper

    quantized = element != "float32"
    kind = getattr(TensorProto, element.upper() if quantized else "FLOAT")
    nodes, constants = [], []

    def constant(name, value, dtype):
        if raw:
            constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        else:
            kind_of = TensorProto.FLOAT if dtype == np.float32 else getattr(TensorProto, np.dtype(dtype).name.upper())
            constants.append(helper.make_tensor(name, kind_of, [], [value]))

    constant("four", 4.0, np.float32)
    value = "pixels"
    if quantized:
        constant("in_scale", scale, np.float32)
        constant("in_zero", zero_point, np.dtype(element))
        nodes.append(helper.make_node("Transpose", [value], ["moved"], perm=[0, 3, 1, 2]))
        nodes.append(helper.make_node("DequantizeLinear", ["moved", "in_scale", "in_zero"], ["real"]))
    else:
        nodes.append(helper.make_node("Transpose", [value], ["real"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("ReduceMean", ["real"], ["means"], axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("Mul", ["means", "four"], ["product" if quantized else "logits"]))
    if quantized:
        constant("out_scale", output_scale, np.float32)
        constant("out_zero", output_zero_point, np.dtype(element))
        nodes.append(helper.make_node("QuantizeLinear", ["product", "out_scale", "out_zero"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind, [batch, 8, 8, 3])],
        [helper.make_tensor_value_info("logits", kind, [batch, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def make_onnx():
    return onnx_model


@pytest.fixture
def shipped(root):
    """Path of a bundle that ships: `shipped("digits")`."""
    return lambda name: root / "models" / name / f"{name}.edgecnn"
