"""Float models with equal answers but different weights: BatchNorm folded into convolutions, or weights prepared for quantization."""

from typing import Any

import numpy as np

from edgecnn.networks.keras import keras

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


def fitting_biases(model: "keras.Model") -> "keras.Model":
    """Return a model with nearly the same answers, in which every bias fits the int32 of an int8 file.

    TensorFlow 2.21's converter truncates the bias of a constant channel, whose weights are nearly zero, and its sums overflow. Here
    BatchNorm scales such a channel's weights up to LEAST_REACH of its bias.
    """
    gains: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for layer, before in _foldable_norms(model):
        if not (layer.scale and layer.center):
            continue
        kernel, bias = _folded_weights(before, layer)
        reach = np.abs(kernel).reshape(-1, len(bias)).max(axis=0)
        short = (reach > 0) & (reach < LEAST_REACH * np.abs(bias))
        if short.any():
            gain = np.where(short, LEAST_REACH * np.abs(bias) / np.where(short, reach, 1), 1)
            gains[layer.name] = gain, bias
    if not gains:
        return model
    copy = _copied(model)
    for name, (gain, bias) in gains.items():
        norm = copy.get_layer(name)
        norm.gamma.assign(norm.gamma * gain)
        norm.beta.assign(norm.beta + bias - _folded_weights(_foldable(norm), norm)[1])
    return copy


def even_depthwise(model: "keras.Model") -> "keras.Model":
    """Return a model with the same answers, in which every channel of a depthwise kernel has a largest weight of 1.

    tensorflow-model-optimization 0.8.1 quantizes a depthwise kernel with one range for all channels, which then fits each of them. Delete
    this when the toolkit quantizes per channel.
    """
    pairs = [pair for pair in _foldable_norms(model) if isinstance(pair[1], keras.layers.DepthwiseConv2D)]
    if not pairs:
        return model
    copy = _copied(model)
    for layer, before in pairs:
        if layer.scale:
            kernel, *rest = before.get_weights()
            factor = np.abs(kernel).max(axis=(0, 1))
            factor = np.where(factor > 0, factor, 1).astype(np.float32)
            flat = factor.reshape(-1)
            copy.get_layer(before.name).set_weights([kernel / factor, *(bias / flat for bias in rest)])
            norm = copy.get_layer(layer.name)
            norm.gamma.assign(norm.gamma * flat)
            norm.moving_mean.assign(norm.moving_mean / flat)
    return copy


def _copied(model: "keras.Model") -> "keras.Model":
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


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
