"""Tiny models of every kind that the engines read, and a fake engine."""

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
    """An engine whose logits are the mean of each channel; it records the batches that it receives."""

    name, version, provider, format = "fake", "1.0", "none", "fake"

    def __init__(
        self, input_type="int8", output_type="int8", shape=(1, 8, 8, 3), scale=1 / 128, zero_point=0, output_scale=0.5
    ):
        self.input = Tensor("pixels", shape, np.dtype(input_type), scale, zero_point)
        self.features = None
        self.output = Tensor("logits", (1, CLASSES), np.dtype(output_type), output_scale, 3)
        self.batches = []

    def run(self, batch):
        self.batches.append(batch)
        return batch.astype(np.float32).mean(axis=(1, 2)).astype(self.output.dtype)


@pytest.fixture(scope="session")
def fake_engine():
    return FakeEngine


class Held:
    """The parts of a bundle that a Classifier reads."""

    def __init__(self, contract, limit=None, temperature=1.0, threshold=0.0):
        self.manifest = self
        self.name, self.labels, self.temperature, self.threshold = (
            "held",
            ("red", "green", "blue"),
            temperature,
            threshold,
        )
        self.input, self.stranger = contract, limit


@pytest.fixture(scope="session")
def held():
    return Held


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


@pytest.fixture
def shipped(root):
    """Path of a shipped bundle: `shipped("digits")`."""
    return lambda name: root / "models" / name / f"{name}.edgecnn"
