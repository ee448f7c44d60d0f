"""A Keras model at work, as bytes and as a frozen graph, and with other weights that give equal answers."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgecnn.networks.keras import keras, tf
from edgecnn.networks.own import refuse_code

INPUT = "pixels"
OUTPUT = "edgecnn_logits"


class FloatModel(Protocol):
    """The interface that exports need: a Keras model or a `FrozenModel`."""

    input_shape: tuple[int | None, ...]
    variables: Sequence[Any]

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Map float32 pixels (batch, height, width, channels) to logits (batch, num_classes)."""


class FrozenModel(tf.Module):
    """A tf.compat.v1.GraphDef without variables, from node INPUT to node OUTPUT. Shapes start with None."""

    def __init__(self, graph_def: Any) -> None:
        super().__init__()
        self.graph_def = graph_def
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
        ends = (imported.graph.get_tensor_by_name(f"{name}:0") for name in (INPUT, OUTPUT))
        self._function = imported.prune(*ends)
        self.input_shape = tuple(self._function.inputs[0].shape)
        self.output_shape = tuple(self._function.outputs[0].shape)

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Map float32 pixels to logits. `training` exists for Keras's sake and has no effect."""
        return self._function(pixels)

    def tensors(self) -> list[Any]:
        """Return the graph's symbolic tensors that depend on the image: their first dimension is open."""
        made = (tensor for operation in self._function.graph.get_operations() for tensor in operation.outputs)
        return [tensor for tensor in made if tensor.shape.rank and tensor.shape[0] is None]

    def count_params(self) -> int:
        constants = (node.attr["value"].tensor for node in self.graph_def.node if node.op == "Const")
        floats = [item for item in constants if item.dtype == tf.float32.as_datatype_enum and item.tensor_shape.dim]
        return sum(tf.TensorShape(item.tensor_shape).num_elements() for item in floats)

    def to_bytes(self) -> bytes:
        return self.graph_def.SerializeToString(deterministic=True)

    @staticmethod
    def from_bytes(data: bytes) -> "FrozenModel":
        return FrozenModel(tf.compat.v1.GraphDef.FromString(data))


LEAST_REACH = 1e-4
"""The smallest ratio of a channel's largest weight to its bias at which the bias fits an int8 file: in the file's units the bias is then
at most 127 / LEAST_REACH / (the input's scale). Smaller weights move a channel by less than a code."""


def folded(model: "keras.Model") -> "keras.Model":
    """Fold each BatchNorm into the convolution before it. The answers match except for rounding; the model is new if anything was folded.

    kernel * g and (bias - mean) * g + beta, g = gamma / sqrt(variance + epsilon). Source: Jacob et al. 2017, arXiv:1712.05877, equation 14.
    """
    norms = dict(_foldable_norms(model))
    if not norms:
        return model
    convolutions = {before: layer for layer, before in norms.items()}

    def clone(layer: Any) -> Any:
        if layer in norms:
            return keras.layers.Activation("linear", name=layer.name)
        config = layer.get_config()
        if layer in convolutions:
            config["use_bias"] = True
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        if layer in convolutions:
            copy.get_layer(layer.name).set_weights(_folded_weights(layer, convolutions[layer]))
        elif layer not in norms and layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def fit_biases(model: "keras.Model") -> None:
    """Change a model so that every bias fits the int32 of an int8 file; its answers stay nearly the same.

    TensorFlow 2.21's converter truncates the bias of a constant channel, whose weights are nearly zero, and its sums overflow. Here
    BatchNorm scales such a channel's weights up to LEAST_REACH of its bias.
    """
    for norm, before in _foldable_norms(model):
        if not (norm.scale and norm.center):
            continue
        kernel, bias = _folded_weights(before, norm)
        reach = np.abs(kernel).reshape(-1, len(bias)).max(axis=0)
        short = (reach > 0) & (reach < LEAST_REACH * np.abs(bias))
        if short.any():
            norm.gamma.assign(norm.gamma * np.where(short, LEAST_REACH * np.abs(bias) / np.where(short, reach, 1), 1))
            norm.beta.assign(norm.beta + bias - _folded_weights(before, norm)[1])


def even_depthwise(model: "keras.Model") -> None:
    """Change a model so that every channel of a depthwise kernel has a largest weight of 1; its answers stay the same.

    tensorflow-model-optimization 0.8.1 quantizes a depthwise kernel with one range for all channels, which then fits each of them. Delete
    this when the toolkit quantizes per channel.
    """
    for norm, before in _foldable_norms(model):
        if norm.scale and isinstance(before, keras.layers.DepthwiseConv2D):
            kernel, *rest = before.get_weights()
            factor = np.abs(kernel).max(axis=(0, 1))
            factor = np.where(factor > 0, factor, 1).astype(np.float32)
            flat = factor.reshape(-1)
            before.set_weights([kernel / factor, *(bias / flat for bias in rest)])
            norm.gamma.assign(norm.gamma * flat)
            norm.moving_mean.assign(norm.moving_mean / flat)


def _foldable_norms(model: "keras.Model") -> list[tuple[Any, Any]]:
    return [(layer, before) for layer in model.layers if (before := _foldable(layer)) is not None]


def _foldable(layer: Any) -> Any:
    """Return the convolution into which a BatchNorm can be folded; None for another layer or if no convolution qualifies."""
    if type(layer) is not keras.layers.BatchNormalization or len(layer.inbound_nodes) != 1:
        return None
    before = layer.inbound_nodes[0].inbound_layers
    if type(before) not in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D):
        return None
    alone = len(before.inbound_nodes) == len(before.outbound_nodes) == 1
    return before if alone and before.activation is keras.activations.linear else None


def _folded_weights(convolution: Any, norm: Any) -> list[np.ndarray]:
    kernel, *rest = convolution.get_weights()
    bias = rest[0] if rest else np.float32(0)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    gamma = norm.gamma.numpy() if norm.scale else np.float32(1)
    beta = norm.beta.numpy() if norm.center else np.float32(0)
    factor = gamma / np.sqrt(variance + norm.epsilon)
    # a depthwise kernel is (height, width, channels, multiplier); the last two together are its output channels
    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)
    return [kernel * (factor.reshape(kernel.shape[2:]) if depthwise else factor), (bias - mean) * factor + beta]


HDF5_MAGIC = b"\x89HDF"

PIXELS, ELEMENTS = 2**19, 2**24
"""Most pixels of a batch, ten images of 224x224, and most elements of one of its tensors. A network that makes 64 MB of one image would
otherwise take gigabytes."""

Numbers = float | tuple[float, ...]


def real_input(images, scale: Numbers, zero_point: Numbers):
    """Convert uint8 (batch, height, width, channels) to float32 scale * (pixel - 128 - zero_point), like `edgecnn.pixels.to_real`."""
    return (tf.cast(images, tf.float32) - (128 + np.asarray(zero_point, np.float32))) * np.asarray(scale, np.float32)


def predictor(
    model: Callable[..., Any], scale: Numbers, zero_point: Numbers, batch_size: int = 500
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from uint8 images (n, height, width, channels) to float32 logits (n, num_classes).

    `model` is a FloatModel, or a function that is called like one.
    """

    @tf.function(reduce_retracing=True)
    def forward(images):
        return tf.cast(model(real_input(images, scale, zero_point), training=False), tf.float32)

    def predict(images: np.ndarray) -> np.ndarray:
        size = min(batch_size, images_at_once(model, images.shape))
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([forward(tf.constant(batch)).numpy() for batch in batches])

    return predict


def images_at_once(model: Callable[..., Any], shape: Sequence[int]) -> int:
    """Return how many images (n, height, width, channels) keep a model's memory within PIXELS and ELEMENTS; at least one."""
    if isinstance(model, FrozenModel):
        shapes = [tensor.shape for tensor in model.tensors()]
    else:
        shapes = [layer.output.shape for layer in getattr(model, "layers", ()) if tf.is_tensor(layer.output)]
    largest = max((math.prod(size or 1 for size in one[1:]) for one in shapes), default=1)
    return max(1, min(PIXELS // (shape[1] * shape[2]), ELEMENTS // largest))


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
