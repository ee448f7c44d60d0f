"""A training step with BatchNorm folded into kernels is the same step, in fewer operations."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.train.frozen_norms import norms_in_kernels
from edgecnn.train.qat_phase import fake_quantize, set_batch_norm


def depthwise(height, width, channels, classes):
    layers = keras.layers
    inputs = keras.Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(inputs)))
    x = layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def student_of(build):
    keras.utils.set_random_seed(1)
    model = build()
    random = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, array.shape).astype(np.float32) for array in layer.get_weights()])
    return fake_quantize(model, 1 / 128, 0)


def traced(student, folded):
    """Return a function from pixels to logits and gradients."""

    @tf.function
    def step(pixels):
        with tf.GradientTape() as tape:
            if folded:
                with norms_in_kernels(student):
                    logits = student(pixels, training=True)
            else:
                logits = student(pixels, training=True)
            loss = tf.reduce_sum(logits**2)
        return logits, tape.gradient(loss, student.trainable_variables)

    return step


def batch_norms(step, pixels):
    graph = step.get_concrete_function(tf.TensorSpec(pixels.shape, tf.float32)).graph
    return sum("FusedBatchNorm" in operation.type for operation in graph.get_operations())


@pytest.mark.parametrize(
    "build",
    [lambda: build_network("resnet8", 16, 16, 3, 5), lambda: depthwise(12, 12, 3, 4)],
    ids=["resnet8", "depthwise"],
)
def test_values_and_gradients_are_the_same(build):
    student = student_of(build)
    pixels = np.random.default_rng(0).uniform(-1, 1, (8, *student.input_shape[1:])).astype(np.float32)
    before = student.get_weights()
    outcomes = []
    for folded in (False, True):
        student.set_weights(before)
        step = traced(student, folded)
        assert batch_norms(step, pixels) == 0 if folded else batch_norms(step, pixels) > 0
        logits, gradients = step(tf.constant(pixels))
        outcomes.append([logits.numpy(), *(gradient.numpy() for gradient in gradients), *student.get_weights()])
    for one, other in zip(*outcomes, strict=True):
        # a sum rounded otherwise may move an activation by a code, which is a hundredth of what is compared
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02 * np.abs(one).max())


def test_the_model_is_the_same_after_the_block():
    student = student_of(lambda: build_network("resnet8", 16, 16, 3, 5))
    pixels = np.zeros((2, 16, 16, 3), np.float32)
    with norms_in_kernels(student):
        pass
    assert batch_norms(traced(student, False), pixels) > 0


def test_norms_that_train_are_left_alone():
    student = student_of(lambda: build_network("resnet8", 16, 16, 3, 5))
    set_batch_norm(student, trainable=True)
    assert batch_norms(traced(student, True), np.zeros((2, 16, 16, 3), np.float32)) > 0
