"""The networks that edgecnn trains: each has a function in `blocks` and one line here."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import NetworkError, UnknownNameError, nearest
from edgecnn.networks.own import build_own, load_function, own_network
from edgecnn.networks.pretrained import build_backbone, is_backbone

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

LITE = "EfficientNet-Lite0 and Lite2, whole or cut after one of their blocks: the backbones that start from ImageNet, for few photos."

NETWORKS = {
    "article": "The network of the article: Conv32-MaxPool-Conv64-MaxPool-Conv64-Flatten-Dense64-Dense, "
    "122,570 parameters for CIFAR-10.",
    "resnet8": "MLPerf Tiny's image-classification network, a ResNet with eight layers: 78,666 parameters for CIFAR-10.",
    "resnet_25kb": "A residual network with six layers, 28 kB as int8: "
    "16,950 parameters and 2.2 million MACs at 32 x 32 x 3 for ten classes.",
    "resnet_100kb": "A residual network with ten layers, 97 kB as int8: 20.4 million MACs at 32 x 32 x 3.",
    "resnet_300kb": "A residual network with twelve layers, 300 kB as int8: 20.8 million MACs at 32 x 32 x 3.",
    "resnet_500kb": "A residual network with eleven layers, 520 kB as int8: 61 million MACs at 32 x 32 x 3.",
    "resnet_1000kb": "A residual network with ten wide layers, 1,000 kB as int8: 55 million MACs at 32 x 32 x 3.",
    "efficientnet_lite0_150kb": LITE,
    "efficientnet_lite0_270kb": LITE,
    "efficientnet_lite0_1200kb": LITE,
    "efficientnet_lite0_4000kb": LITE,
    "efficientnet_lite2_1800kb": LITE,
    "efficientnet_lite2_5600kb": LITE,
}
"""What each network is; `blocks`, which imports TensorFlow, has a function of that name."""


def network_module(name: str) -> Any:
    """Import a network's module, or execute a user's own FILE.py:FUNCTION. Raises UnknownNameError or NetworkError."""
    own = own_network(name)
    if own:
        return load_function(own)
    if name not in NETWORKS:
        raise UnknownNameError(
            f"no network {name!r}. {nearest(name, NETWORKS)} "
            "Without --network, edgecnn chooses one to suit the images; FILE.py:FUNCTION names one of your own."
        )
    return importlib.import_module("edgecnn.networks.blocks")


def build_network(
    name: str,
    height: int,
    width: int,
    channels: int,
    num_classes: int,
    options: Mapping[str, str] | None = None,
) -> "keras.Model":
    """Build a network of NETWORKS, or a user's own FILE.py:FUNCTION, which is executed, with fresh random weights; or that of a FILE.onnx
    with the file's weights and a fresh last layer.

    Returns a tf_keras functional model from float32 (batch, height, width, channels) to logits (batch, num_classes). Raises
    UnknownNameError, or NetworkError for options of a network that has none, or an input that is too small.
    """
    options = options or {}
    own = own_network(name)
    if own:
        return build_own(own, height, width, channels, num_classes, options)
    if is_backbone(name):
        return build_backbone(Path(name), height, width, channels, num_classes, options)
    module = network_module(name)
    if options:
        raise NetworkError(
            f"network {name} has no options, received {', '.join(options)}. To change a network, write your own: FILE.py:FUNCTION."
        )
    from edgecnn.networks.keras import keras

    keras.backend.reset_uids()  # layer names, and so exported files, must not depend on what was built before
    return getattr(module, name)(height, width, channels, num_classes)
