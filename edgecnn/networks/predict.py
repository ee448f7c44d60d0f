"""Inference with a Keras model on pixels, and its serialization to bytes."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from edgecnn.networks.code import refuse_code
from edgecnn.networks.frozen import FloatModel, FrozenModel
from edgecnn.networks.keras import keras, tf

HDF5_MAGIC = b"\x89HDF"

PIXELS = 2**19
"""Most pixels of a batch: ten of 224x224. A network that makes 64 MB of one image would otherwise take gigabytes."""

Numbers = float | tuple[float, ...]


def real_input(images, scale: Numbers, zero_point: Numbers):
    """Convert uint8 (batch, height, width, channels) to float32 scale * (pixel - 128 - zero_point), like `edgecnn.pixels.to_real`."""
    return (tf.cast(images, tf.float32) - (128 + np.asarray(zero_point, np.float32))) * np.asarray(scale, np.float32)


def predictor(
    model: FloatModel, scale: Numbers, zero_point: Numbers, batch_size: int = 500
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (n, height, width, channels) to float32 logits (n, num_classes)."""

    @tf.function(reduce_retracing=True)
    def forward(images):
        return tf.cast(model(real_input(images, scale, zero_point), training=False), tf.float32)

    def predict(images: np.ndarray) -> np.ndarray:
        size = min(batch_size, max(1, PIXELS // (images.shape[1] * images.shape[2])))
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([forward(tf.constant(batch)).numpy() for batch in batches])

    return predict


def model_bytes(model: "keras.Model") -> bytes:
    """Return a Keras model without its optimizer as the bytes of an HDF5 file, the format that can store a complete QAT model."""
    import h5py

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras recommends its .keras format, which cannot reload a QAT model
        with h5py.File(buffer, "w") as file:
            model.save(file, include_optimizer=False)
    return buffer.getvalue()


def model_from_bytes(data: bytes) -> Any:
    """Load a Keras model from `model_bytes`, or a `FrozenModel` from its bytes. Raises NetworkError if the model holds Python code."""
    if not data.startswith(HDF5_MAGIC):
        return FrozenModel.from_bytes(data)
    refuse_code(data, "the model of this run")
    import h5py
    import tensorflow_model_optimization as tfmot

    with tfmot.quantization.keras.quantize_scope(), h5py.File(io.BytesIO(data), "r") as file:
        return keras.models.load_model(file, compile=False)
