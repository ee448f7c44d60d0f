"""Home Assistant Core in this process, with the MQTT integration alone: `home_assistant.py FOLDER BROKER_PORT`.

It prints a JSON line for each state of an entity, and for each warning of the MQTT integration. SIGTERM ends it.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
from pathlib import Path

from homeassistant import auth, bootstrap, config_entries, core, loader
from homeassistant.const import EVENT_STATE_CHANGED
from homeassistant.helpers import device_registry, entity_registry
from homeassistant.setup import async_setup_component


def say(**line):
    print(json.dumps(line, default=str), flush=True)


class Warnings(logging.Handler):
    def emit(self, record):
        say(warning=record.getMessage())


async def main(folder, port):
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
    for name, config in (("homeassistant", {}), ("http", http)):
        assert await async_setup_component(hass, name, config), name

    @core.callback
    def changed(event):
        state, entity = event.data["new_state"], event.data["entity_id"]
        entry = entity_registry.async_get(hass).async_get(entity)
        if entry is None:
            if state is None:
                say(removed=entity)
            return
        device = device_registry.async_get(hass).async_get(entry.device_id)
        if state is not None:
            say(
                entity=entity,
                state=state.state,
                attributes=dict(state.attributes),
                unique_id=entry.unique_id,
                category=entry.entity_category,
                device=device.name,
                model=device.model,
            )
        else:
            say(removed=entity)

    hass.bus.async_listen(EVENT_STATE_CHANGED, changed)
    handler = Warnings(logging.WARNING)
    logging.getLogger("homeassistant.components").addHandler(handler)
    entry = config_entries.ConfigEntry(
        data={"broker": "127.0.0.1", "port": port}, discovery_keys={}, domain="mqtt", minor_version=1, options={},
        source="user", subentries_data=(), title="broker", unique_id=None, version=1,
    )  # fmt: skip
    await hass.config_entries.async_add(entry)
    await hass.async_start()
    say(ready=str(entry.state))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await hass.async_stop()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
