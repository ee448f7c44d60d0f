"""TensorFlow and Keras 2, imported as quantization-aware training needs them.

tensorflow-model-optimization 0.8.1 knows only Keras 2, which `tf_keras` is; TensorFlow takes it for `tf.keras` if
TF_USE_LEGACY_KERAS is set before its first import. Delete this when the toolkit supports Keras 3.
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

    if "TF_CONFIG" not in os.environ:  # a cluster must be joined before there is a device
        tf.config.list_logical_devices()  # TensorFlow prints the last of its start-up notes for the first device

tf.get_logger().setLevel("ERROR")
guard_conv2d_gradient()

__all__ = ["keras", "tf"]
