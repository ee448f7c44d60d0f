"""TensorFlow and Keras 2, imported as quantization-aware training needs them, with a workaround for a fault of oneDNN.

For the kernel's gradient of a strided 1x1 convolution, oneDNN 3.7 (in TensorFlow 2.21.0) first copies the inputs that the stride selects
into a workspace. If there are fewer input channels than a block of channels (16, or 8 without AVX-512) and its threads do not share a batch
evenly, it writes past that workspace: with two threads, on every odd batch. The process then ends in `malloc(): corrupted top size` or
SIGSEGV. Check the TensorFlow after 2.21.0: delete the workaround once `tests/networks/test_networks.py` passes without it.

Source: uxlfoundation/oneDNN issue 6035.

AutoGraph rewrites Python's conditions on tensors. Neither the toolkit nor edgecnn has any, and looking for them takes as long as building a
network.

tensorflow-model-optimization 0.8.1 supports only Keras 2, which is `tf_keras`. TensorFlow uses it as `tf.keras` if TF_USE_LEGACY_KERAS is
set before its first import. Delete that when the toolkit supports Keras 3.
"""

import os
import warnings
from typing import Any

from edgecnn.files import quiet_stderr

BLOCK = 16  # channels in oneDNN's largest block


def guard_conv2d_gradient() -> None:
    """Select the inputs for the affected gradients by average pooling with window 1. The values are bit-identical."""
    import tensorflow as tf
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry["Conv2D"]
    original = registered["type"]

    def gradient(op: Any, upstream: Any) -> list[Any]:
        if not _concerned(op):
            return original(op, upstream)
        inputs, kernel = op.inputs
        strides = op.get_attr("strides")
        picked = tf.nn.avg_pool2d(inputs, 1, strides, "VALID")
        raw, given = tf.raw_ops, {"out_backprop": upstream, "padding": "VALID"}
        return [
            raw.Conv2DBackpropInput(input_sizes=tf.shape(inputs), filter=kernel, strides=strides, **given),
            raw.Conv2DBackpropFilter(input=picked, filter_sizes=tf.shape(kernel), strides=[1, 1, 1, 1], **given),
        ]

    registered["type"] = gradient


def restrict_autograph() -> None:
    """Keep AutoGraph from converting the functions of the toolkit and of edgecnn, as it leaves those of TensorFlow and Keras."""
    from tensorflow.python.autograph.core import config

    ours = [config.DoNotConvert(package) for package in ("tensorflow_model_optimization", "edgecnn")]
    config.CONVERSION_RULES = (*ours, *config.CONVERSION_RULES)


def _concerned(op: Any) -> bool:
    height, width, channels, _ = op.inputs[1].shape
    pointwise = height == width == 1 and max(op.get_attr("strides")) > 1 and channels < BLOCK
    # operations that run eagerly return these attributes as bytes
    return pointwise and op.get_attr("data_format") in ("NHWC", b"NHWC") and op.get_attr("padding") != b"EXPLICIT"


os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with quiet_stderr(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf
    import tf_keras as keras

    if "TF_CONFIG" not in os.environ:  # a cluster must be joined before any device is created
        tf.config.list_logical_devices()  # creating the first device triggers the last of TensorFlow's start-up notes

tf.get_logger().setLevel("ERROR")
guard_conv2d_gradient()
restrict_autograph()

__all__ = ["keras", "tf"]
