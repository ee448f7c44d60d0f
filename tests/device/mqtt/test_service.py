"""The service, its broker and its page."""

import dataclasses
import json
import os
import sys
import urllib.request

import pytest

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")
pytest.importorskip("starlette", reason="the page needs the http extra")

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.device.secrets import HTTP, MQTT
from edgecnn.device.slots.store import Store, Use
from edgecnn.runtime.default import shipped_bundle
from edgecnn.runtime.engines import is_installed

TOKEN = "correct-horse-battery-staple"


def model_of(port):
    """Return the name of the model on the page once it has classified a frame; None without an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/state", headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            state = json.load(answer)
    except OSError:
        return None
    return state["model"]["name"] if state["frame"] else None


@pytest.mark.needs("mosquitto", "mosquitto_passwd", package="mosquitto")
@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_its_page_and_its_connection_come_back_when_another_release_is_put_in_use(
    mosquitto, watch, password_file, spawn, tmp_path, root, eventually, free_port
):
    store = Store(tmp_path / "slots")
    shipped = read_bundle(shipped_bundle())
    write_bundle(tmp_path / "new.edgecnn", dataclasses.replace(shipped.manifest, name="new"), shipped.files)
    old, new = store.add(shipped_bundle())[0], store.add(tmp_path / "new.edgecnn")[0]
    store.activate(old)
    broker = mosquitto("allow_anonymous false", password_file("ann", "sesame"))
    watcher = watch(broker.port, user="ann", password="sesame")
    port = free_port()
    options = tmp_path / "service.toml"
    source = "synthetic:64x48?fps=30"
    options.write_text(f'source = "{source}"\nmqtt = "mqtt://127.0.0.1:{broker.port}/door"\nhttp = "0.0.0.0:{port}"\n')
    command = [sys.executable, "-m", "edgecnn", "service", "run", "--slots", store.root, "--config", options]
    environment = {**os.environ, "PYTHONPATH": str(root), f"{HTTP}TOKEN": TOKEN}
    environment |= {f"{MQTT}USER": "ann", f"{MQTT}PASSWORD": "sesame"}
    with (tmp_path / "lines").open("wb") as lines:
        process = spawn(command, env=environment, stdout=lines)
    watcher.until("availability", b"online")
    eventually(lambda: model_of(port) == shipped.manifest.name, "the page")
    store.activate(new, Use(accept="a test"))
    watcher.until("model", b"new")
    eventually(lambda: model_of(port) == "new", "the page of the next process")
    text = (tmp_path / "lines").read_text()
    assert process.poll() is None and "sesame" not in text and TOKEN not in text
