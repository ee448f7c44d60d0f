"""Home Assistant Core in this process: `home_assistant.py FOLDER WHAT`, with any of these keys in the JSON of WHAT.

`mqtt` is the broker's port for the MQTT integration, `camera` a user's input to the form of the generic camera. `rest:` is set up
from FOLDER/configuration.yaml. It prints a JSON line for each state of an entity, each warning of an integration, and the camera's
picture. SIGTERM ends it.
"""

import asyncio
import base64
import json
import logging
import signal
import socket
import sys
from pathlib import Path

from homeassistant import auth, bootstrap, config, config_entries, core, loader
from homeassistant.const import EVENT_STATE_CHANGED
from homeassistant.helpers import device_registry, entity_registry
from homeassistant.setup import async_setup_component


def say(**line):
    print(json.dumps(line, default=str), flush=True)


class Warnings(logging.Handler):
    def emit(self, record):
        say(warning=record.getMessage())


async def add_camera(hass, typed):
    """Go through the form of the generic camera, and report the result."""
    from homeassistant.components import camera

    step = await hass.config_entries.flow.async_init("generic", context={"source": "user"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], typed)
    if step["step_id"] == "user":
        return say(refused=step["errors"])
    made = await hass.config_entries.flow.async_configure(step["flow_id"], {"confirmed_ok": True})
    await hass.async_block_till_done()
    entity, *_ = entities_of(hass, made["result"].entry_id)
    image = await camera.async_get_image(hass, entity.entity_id)
    return say(camera=entity.entity_id, type=image.content_type, picture=base64.b64encode(image.content).decode())


def entities_of(hass, entry_id):
    return entity_registry.async_entries_for_config_entry(entity_registry.async_get(hass), entry_id)


async def main(folder, what):
    Path(folder, "configuration.yaml").touch()
    hass = core.HomeAssistant(folder)
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [], [])
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    http = {"http": {"server_host": "127.0.0.1", "server_port": free}}
    for name, options in (("homeassistant", {}), ("http", http)):
        assert await async_setup_component(hass, name, options), name

    @core.callback
    def changed(event):
        state, entity = event.data["new_state"], event.data["entity_id"]
        entry = entity_registry.async_get(hass).async_get(entity)
        if entry is None:
            if state is None:
                say(removed=entity)
            return
        device = device_registry.async_get(hass).async_get(entry.device_id) if entry.device_id else None
        if state is not None:
            say(
                entity=entity,
                state=state.state,
                attributes=dict(state.attributes),
                unique_id=entry.unique_id,
                category=entry.entity_category,
                device=device and device.name,
                model=device and device.model,
            )
        else:
            say(removed=entity)

    hass.bus.async_listen(EVENT_STATE_CHANGED, changed)
    handler = Warnings(logging.WARNING)
    logging.getLogger("homeassistant.components").addHandler(handler)
    ready = "nothing"
    if "mqtt" in what:
        entry = config_entries.ConfigEntry(
            data={"broker": "127.0.0.1", "port": what["mqtt"]}, discovery_keys={}, domain="mqtt", minor_version=1, options={},
            source="user", subentries_data=(), title="broker", unique_id=None, version=1,
        )  # fmt: skip
        await hass.config_entries.async_add(entry)
        ready = entry.state
    typed = await config.async_hass_config_yaml(hass)
    if "rest" in typed:
        ready = await async_setup_component(hass, "rest", typed)
    await hass.async_start()
    if "camera" in what:
        await add_camera(hass, what["camera"])
    say(ready=str(ready))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await hass.async_stop()


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
