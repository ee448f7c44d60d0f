"""A network from an ONNX file, FILE.onnx, that starts with the file's weights: all of it but the last layer, which is new.

A recipe's network.options record the file: `sha256` is that of the file with the values next to it, and `mean` and `std` are those of each
channel for pixels from 0 to 1, if the network reads (pixel / 255 - mean) / std. Then its first layer converts the pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecnn.errors import NetworkError
from edgecnn.files import sha256
from edgecnn.recipe import INPUT_RANGES

if TYPE_CHECKING:
    import onnx

    from edgecnn.networks.keras import keras

MEAN, STD, SHA256 = "mean", "std", "sha256"  # keys of network.options

PASSING = ("Flatten", "Reshape", "Dropout")
"""Layers behind the last dense one that change no value."""


class Backbone(NamedTuple):
    """An ONNX file as read: its content, and the bytes and the SHA-256 of a file that holds all of it."""

    model: "onnx.ModelProto"
    data: bytes
    sha256: str


def is_backbone(network: str | None) -> bool:
    return bool(network and network.endswith(".onnx"))


def read_backbone(path: Path, expected: str | None = None) -> Backbone:
    """Read a backbone's file. Raises NetworkError if it is missing, or is not the `expected` one; ExportError like `read_onnx`."""
    from edgecnn.networks.onnx_model import read_onnx

    try:
        model, data = read_onnx(path), path.read_bytes()
    except OSError as error:
        raise NetworkError(
            f"cannot read the backbone {path}: {error.strerror or error}. Name its file with --backbone."
        ) from None
    if model.ByteSize() != len(data):  # values next to the file, which are in the model now
        data = model.SerializeToString(deterministic=True)
    found = sha256(data)
    if expected and found != expected:
        raise NetworkError(
            f"{path} is not the backbone of this recipe (SHA-256 {found[:12]}…, expected {expected[:12]}…). Restore that file, or train a "
            "new run from this one."
        )
    return Backbone(model, data, found)


def body_of(
    backbone: Backbone, where: str, size: tuple[int, int] | None = None, mean: str | None = None, std: str | None = None
) -> "keras.Model":
    """Return the network without its last layer, from (batch, height, width, channels) to features (batch, length).

    `size` is the (height, width) of an input that leaves them open. Raises ExportError like `build`, and NetworkError if the network does
    not end in a dense layer.
    """
    from edgecnn.networks.keras import keras
    from edgecnn.networks.onnx_model import build, conversion

    reading = None
    if mean and std:
        reading = conversion(read_numbers(mean, std), INPUT_RANGES["centred"])
    built = build(backbone.model, where, size, reading)
    last = built.model.layers[-1]
    if built.cut == "Sigmoid":  # one output, of which `build` makes two classes
        last = last.input._keras_history.layer
    while type(last).__name__ in PASSING:
        last = last.input._keras_history.layer
    features = last.input if type(last).__name__ in ("Dense", "Conv2D") else None
    if type(last).__name__ == "Conv2D" and tuple(last.input_shape[1:3]) == (1, 1):
        features = keras.layers.Flatten()(features)
    if features is None or len(features.shape) != 2:
        raise NetworkError(
            f"{where} ends in a layer of type {type(last).__name__} ({last.name!r}), expected a dense layer, which is replaced by one for "
            "your classes. Export the whole classifier, without a part behind its last dense layer."
        )
    return keras.Model(built.model.inputs, features)


def build_backbone(
    path: Path, height: int, width: int, channels: int, num_classes: int, options: Mapping[str, str]
) -> "keras.Model":
    """Build the network of a backbone's file with the file's weights and a fresh last layer, which ends in logits."""
    from edgecnn.networks.keras import keras

    if keras.mixed_precision.global_policy().compute_dtype != "float32":
        raise NetworkError(f"{path.name} can be trained in float32 only: set train.precision to float32.")
    keras.backend.reset_uids()
    backbone = read_backbone(path, options.get(SHA256))
    body = body_of(backbone, str(path), (height, width), options.get(MEAN), options.get(STD))
    if body.input_shape[3] != channels:
        raise NetworkError(
            f"{path.name} reads {body.input_shape[3]} channels, not {channels}. Leave network.channels out."
        )
    return keras.Model(body.inputs, keras.layers.Dense(num_classes, name="logits")(body.outputs[0]))


def read_numbers(mean: str, std: str) -> tuple[Any, Any]:
    """Return S and Z per channel of a network that reads (pixel / 255 - mean) / std: S * (pixel - 128 - Z)."""
    try:
        means, deviations = (np.array([float(one) for one in text.split(",")]) for text in (mean, std))
        if not (np.isfinite(means / deviations).all() and len(means) == len(deviations)):
            raise ValueError
    except ValueError:
        raise NetworkError(
            f"network.options has mean {mean!r} and std {std!r}, expected R,G,B for each, such as 0.485,0.456,0.406."
        ) from None
    return 1 / (255 * deviations), 255 * means - 128
