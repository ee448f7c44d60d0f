"""Home Assistant's device discovery: one retained message that describes a device and its entities.

Source: the integration's page on MQTT discovery, and the schemas of Home Assistant 2026.2, which a test checks it against.
"""

import json
from collections.abc import Mapping
from typing import Any

from edgecnn import __version__
from edgecnn.device.mqtt.topics import topic
from edgecnn.device.stream.settings import Mqtt

PREFIX = "homeassistant"  # where Home Assistant looks by default, and where it announces that it is online


def object_id(name: str) -> str:
    return f"edgecnn_{name}"


def config_topic(name: str, prefix: str = PREFIX) -> str:
    return f"{prefix}/device/{object_id(name)}/config"


def birth_topics(prefix: str = PREFIX) -> set[str]:
    return {f"{PREFIX}/status", f"{prefix}/status"}


def config(name: str, model: str, names: Mapping[str, str], options: Mqtt) -> str:
    """Return a device's description as JSON. An unused entity is listed with only its platform, which removes it."""
    device = object_id(name)
    program = {"topic": topic(name, "availability")}

    def component(platform: str, last: str, **fields: Any) -> dict[str, Any]:
        return {"platform": platform, "unique_id": f"{device}_{last}", **fields}

    components: dict[str, dict[str, Any]] = {
        "state": component(
            "sensor", "state", name=None, device_class="enum", options=list(names.values()),  # the name is the device's own
            state_topic=topic(name, "state"), json_attributes_topic=topic(name, "attributes"), icon="mdi:image-search",
        ),
        "score": component(
            "sensor", "score", name="Score", state_class="measurement", suggested_display_precision=2,
            state_topic=topic(name, "score"),
        ),
        "model": component(
            "sensor", "model", name="Model", entity_category="diagnostic", state_topic=topic(name, "model"),
            availability=[program],  # whatever the camera does
        ),
        "picture": {"platform": "image"},
        "binary": {"platform": "binary_sensor"},
    }  # fmt: skip
    if options.picture:
        components["picture"] = component(
            "image", "picture", name="Picture", image_topic=topic(name, "picture"), content_type="image/jpeg"
        )
    if options.binary is not None:
        components["binary"] = component(
            "binary_sensor", "binary", name=names[options.binary], state_topic=topic(name, "binary")
        )
    about = {
        "identifiers": [device],
        "name": name,
        "manufacturer": "edgecnn",
        "model": model,
        "sw_version": __version__,
    }
    return json.dumps(
        {
            "device": about,
            "origin": {"name": "edgecnn", "sw_version": __version__},
            "availability": [program, {"topic": topic(name, "camera")}],
            "availability_mode": "all",
            "components": components,
        }
    )
