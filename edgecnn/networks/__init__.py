"""The networks that edgecnn trains: each has its own file and one line here."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import NetworkError, UnknownNameError, nearest
from edgecnn.networks.backbone import build_backbone, is_backbone
from edgecnn.networks.own import build_own, load_function, own_network

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

NETWORKS = {
    "article": "edgecnn.networks.article",
    "resnet8": "edgecnn.networks.resnet8",
    "resnet_25kb": "edgecnn.networks.resnet_25kb",
    "resnet_100kb": "edgecnn.networks.resnet_100kb",
    "resnet_300kb": "edgecnn.networks.resnet_300kb",
    "resnet_1000kb": "edgecnn.networks.resnet_1000kb",
    "efficientnet_lite0_150kb": "edgecnn.networks.efficientnet_lite",
    "efficientnet_lite0_270kb": "edgecnn.networks.efficientnet_lite",
    "efficientnet_lite0_1200kb": "edgecnn.networks.efficientnet_lite",
    "efficientnet_lite0_4000kb": "edgecnn.networks.efficientnet_lite",
    "efficientnet_lite2_1800kb": "edgecnn.networks.efficientnet_lite",
    "efficientnet_lite2_5600kb": "edgecnn.networks.efficientnet_lite",
}
"""Maps each name to a module, which holds a function of that name."""


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
    return importlib.import_module(NETWORKS[name])


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
