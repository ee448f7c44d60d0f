"""Home Assistant's device discovery: one retained message that describes a device with all its entities.

Source: the integration's page on MQTT discovery, and the schemas of Home Assistant 2026.2, against which a test holds it.
"""

import json
from collections.abc import Mapping
from typing import Any

from edgecnn import __version__
from edgecnn.device.mqtt.topics import topic

PREFIX = "homeassistant"
"""Where Home Assistant looks by default, and where it says when it comes online."""


def object_id(name: str) -> str:
    """Return a device's identifier in Home Assistant."""
    return f"edgecnn_{name}"


def config_topic(name: str, prefix: str = PREFIX) -> str:
    """Return the topic of a device's description."""
    return f"{prefix}/device/{object_id(name)}/config"


def birth_topics(prefix: str = PREFIX) -> set[str]:
    """Return where Home Assistant publishes "online" when it starts."""
    return {f"{PREFIX}/status", f"{prefix}/status"}


def config(name: str, model: str, names: Mapping[str, str], *, picture: bool = False, binary: str | None = None) -> str:
    """Return a device's description as JSON.

    What is not in use is named with its platform alone: that removes what an earlier run with other options made.

    Args:
        name: the device's.
        model: the bundle's name.
        names: of the states, from `state_names`.
        picture: whether pictures are published.
        binary: the label for which the binary sensor is on; None for no such sensor.
    """
    device = object_id(name)
    program = {"topic": topic(name, "availability")}
    components: dict[str, dict[str, Any]] = {
        "state": {
            "platform": "sensor",
            "unique_id": f"{device}_state",
            "name": None,  # the device's own
            "device_class": "enum",
            "options": list(names.values()),
            "state_topic": topic(name, "state"),
            "json_attributes_topic": topic(name, "attributes"),
            "icon": "mdi:image-search",
        },
        "score": {
            "platform": "sensor",
            "unique_id": f"{device}_score",
            "name": "Score",
            "state_class": "measurement",
            "suggested_display_precision": 2,
            "state_topic": topic(name, "score"),
        },
        "model": {
            "platform": "sensor",
            "unique_id": f"{device}_model",
            "name": "Model",
            "entity_category": "diagnostic",
            "state_topic": topic(name, "model"),
            "availability": [program],  # whatever the camera does
        },
        "picture": {"platform": "image"},
        "binary": {"platform": "binary_sensor"},
    }
    if picture:
        components["picture"] |= {
            "unique_id": f"{device}_picture",
            "name": "Picture",
            "image_topic": topic(name, "picture"),
            "content_type": "image/jpeg",
        }
    if binary is not None:
        components["binary"] |= {
            "unique_id": f"{device}_binary",
            "name": names[binary],
            "state_topic": topic(name, "binary"),
        }
    return json.dumps(
        {
            "device": {
                "identifiers": [device],
                "name": name,
                "manufacturer": "edgecnn",
                "model": model,
                "sw_version": __version__,
            },
            "origin": {"name": "edgecnn", "sw_version": __version__},
            "availability": [program, {"topic": topic(name, "camera")}],
            "availability_mode": "all",
            "components": components,
        }
    )
