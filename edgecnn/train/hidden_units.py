"""A dense network's hidden units put to use before it is quantized: the same answers, from weights that lose less of them in eight bits.

A network with a hidden dense layer often ends training with units that never fire. Their weights still widen the ranges of the
kernels, and their places are free for others.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from edgecnn.networks.keras import keras
from edgecnn.networks.predict import predictor
from edgecnn.train.rounding import CODES

IMAGES = 50_000
"""Training images by which units are known that never fire, at most."""


class Firing(NamedTuple):
    """How hidden units fire on some images.

    Attributes:
        largest: each unit's largest activation, float64 (units,).
        share: the share of images in which it fires, float64 (units,).
        room: the largest activation of all in a batch, on average: about the upper end of the layer's range.
    """

    largest: np.ndarray
    share: np.ndarray
    room: float


class Head(NamedTuple):
    """The weights of a hidden dense layer with ReLU and of the dense layer behind it, which gives the logits; all float64.

    Attributes:
        kernel: shape (inputs, units).
        bias: shape (units,).
        outputs: shape (units, num_classes).
        output_bias: shape (num_classes,).
    """

    kernel: np.ndarray
    bias: np.ndarray
    outputs: np.ndarray
    output_bias: np.ndarray


def used_well(
    model: "keras.Model", images: np.ndarray, batch_size: int, scale: float, zero_point: int, seed: int
) -> "keras.Model":
    """Return a model that answers as this one does, but for rounding, and that quantizes better.

    Only a network that ends in a dense layer with ReLU and a dense layer for the logits is changed, see `rewritten`.

    Args:
        model: a float32 tf_keras functional model; not changed.
        images: uint8 training images (n, height, width, channels); of more than IMAGES every second is looked at, or every third …
        batch_size: images of which a range is taken at once when ranges are calibrated.
        scale, zero_point: of the input code.
        seed: draws how the weights of copies differ.

    Returns:
        A model with weights of its own, of the same architecture; the model itself where there is no such head.
    """
    layers = find_head(model)
    if layers is None:
        return model
    hidden, last = layers
    predict = predictor(keras.Model(model.input, hidden.output), scale, zero_point, batch_size)
    images = images[:: math.ceil(len(images) / IMAGES)]
    chunks = (images[first : first + batch_size] for first in range(0, len(images), batch_size))
    firing = observed(predict(chunk) for chunk in chunks)
    weights = (array.astype(np.float64) for layer in layers for array in layer.get_weights())
    head = rewritten(Head(*weights), firing, np.random.default_rng([seed, *b"units"]))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.get_layer(hidden.name).set_weights([head.kernel, head.bias])
    copy.get_layer(last.name).set_weights([head.outputs, head.output_bias])
    return copy


def find_head(model: "keras.Model") -> tuple[Any, Any] | None:
    """Return a model's hidden dense layer with ReLU and the dense layer of its logits; None if it does not end in these two.

    Dropout between them, which is nothing at inference, is passed over.
    """
    last: Any = model.layers[-1]
    if not _is_dense(last, keras.activations.linear) or len(last.inbound_nodes) != 1:
        return None
    before = last.inbound_nodes[0].inbound_layers
    while type(before) is keras.layers.Dropout and len(before.outbound_nodes) == 1:
        before = before.inbound_nodes[0].inbound_layers
    alone = _is_dense(before, keras.activations.relu) and len(before.inbound_nodes) == len(before.outbound_nodes) == 1
    return (before, last) if alone else None


def _is_dense(layer: Any, activation: Any) -> bool:
    return type(layer) is keras.layers.Dense and layer.use_bias and layer.activation is activation


def observed(activations: Iterator[np.ndarray]) -> Firing:
    """Return how units fire, from batches of their activations, float32 (n, units)."""
    largest, fired, count = [], [], 0
    for batch in activations:
        largest.append(batch.max(axis=0))
        fired.append(np.sum(batch > 0, axis=0))
        count += len(batch)
    return Firing(
        largest=np.max(largest, axis=0).astype(np.float64),
        share=np.sum(fired, axis=0) / count,
        room=float(np.mean(np.max(largest, axis=1))),
    )


def rewritten(head: Head, firing: Firing, random: np.random.Generator) -> Head:
    """Rewrite a head so that its answers stay, but for rounding and for what a dead unit might have said of an image not seen.

    - The logits' mean over the classes is taken out of the last layer: softmax does not change with it, and both the kernel's range and
      the logits' become smaller.
    - A unit that never fires is emptied.
    - A unit whose activations and weights fill little of their range is scaled up, and what the last layer makes of it down. Source: Nagel
      et al. 2019, section 4 (arXiv:1906.04721).
    - The units that would bring most rounding errors into the logits are split: copies of them go where a unit was emptied, and each
      has its share of the outputs. Source: Zhao et al. 2019, section 3 (arXiv:1901.09504). Weights of copies differ by parts of a code,
      so that they are rounded otherwise and their errors do not add up; they are the unit's own on average.

    Args:
        head: the weights as they were trained.
        firing: of its hidden units, on training images.
        random: draws which copy has which part of a code.

    Returns:
        A head of the same shapes.
    """
    live = firing.largest > 0
    if not live.any():
        return head
    kernel, bias = head.kernel * live, head.bias * live
    outputs = (head.outputs - head.outputs.mean(axis=1, keepdims=True)) * live[:, np.newaxis]
    factors = scaling(kernel, firing)
    kernel, bias, outputs = kernel * factors, bias * factors, outputs / factors[:, np.newaxis]
    step = np.abs(kernel).max() / CODES
    noise = firing.share * np.sum(outputs**2, axis=1)
    for units in split(noise, np.flatnonzero(~live)):
        parts = step * (np.arange(len(units)) - (len(units) - 1) / 2) / len(units)
        differences = random.permuted(np.tile(parts, (len(kernel), 1)), axis=1)
        kernel[:, units] = kernel[:, units[:1]] + differences
        bias[units] = bias[units[0]]
        outputs[units] = outputs[units[0]] / len(units)
    return Head(kernel, bias, outputs, head.output_bias - head.output_bias.mean())


def scaling(kernel: np.ndarray, firing: Firing) -> np.ndarray:
    """Return by how much each unit is scaled up, float64 (units,): at least 1, as far as neither range grows.

    Args:
        kernel: of the hidden layer, shape (inputs, units).
        firing: of its units.
    """
    weights = np.maximum(np.abs(kernel).max(axis=0), 1e-12)
    activations = np.maximum(firing.largest, 1e-12)
    factors = np.minimum(weights.max() / weights, firing.room / activations)
    return np.where(firing.largest > 0, np.maximum(factors, 1.0), 1.0)


def split(noise: np.ndarray, places: np.ndarray) -> list[list[int]]:
    """Choose which units are copied to the free places.

    One place after the other goes to the unit whose noise is largest still: that of n copies is an n-th of a code's, a power of n^2 less.

    Args:
        noise: what each unit brings, in any unit, float64 (units,).
        places: numbers of the units that are free.

    Returns:
        For each unit that is copied, its number and those of its copies.
    """
    copies: dict[int, list[int]] = {}
    left = noise.copy()
    left[places] = 0
    for place in places:
        unit = int(np.argmax(left))
        units = copies.setdefault(unit, [unit])
        units.append(int(place))
        left[unit] = noise[unit] / len(units) ** 2
    return list(copies.values())
