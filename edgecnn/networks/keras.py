"""TensorFlow and Keras 2, imported the way quantization-aware training needs them.

tensorflow-model-optimization 0.8.1 supports only Keras 2, which is `tf_keras`. TensorFlow uses it as `tf.keras` if TF_USE_LEGACY_KERAS
is set before its first import. Delete this when the toolkit supports Keras 3.
"""

import os
import warnings

from edgecnn.files import quiet_stderr
from edgecnn.networks.onednn import guard_conv2d_gradient

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

__all__ = ["keras", "tf"]
