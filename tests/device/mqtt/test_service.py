"""The service and its broker."""

import dataclasses
import os
import sys

import pytest

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.device.secrets import MQTT
from edgecnn.device.slots.store import Store
from edgecnn.runtime.default import shipped_bundle
from edgecnn.runtime.engines import is_installed


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_it_still_knows_the_password_after_another_release_was_put_in_use(small, spawn, tmp_path, root, eventually):
    store = Store(tmp_path / "slots")
    shipped = read_bundle(shipped_bundle())
    write_bundle(tmp_path / "new.edgecnn", dataclasses.replace(shipped.manifest, name="new"), shipped.files)
    old, new = store.add(shipped_bundle())[0], store.add(tmp_path / "new.edgecnn")[0]
    store.activate(old)
    options = tmp_path / "service.toml"
    options.write_text(f'source = "synthetic:"\nmqtt = "mqtt://127.0.0.1:{small.port}/door"\n')
    command = [sys.executable, "-m", "edgecnn", "service", "run", "--root", store.root, "--config", options]
    environment = {**os.environ, "PYTHONPATH": str(root), f"{MQTT}USER": "ann", f"{MQTT}PASSWORD": "sesame"}
    with (tmp_path / "lines").open("wb") as lines:
        spawn(command, env=environment, stdout=lines)
    eventually(lambda: "online" in small.payloads("availability"), "a connection")
    store.activate(new)
    eventually(lambda: len(small.connects) >= 2, "a connection of the next process")
    assert all(b"ann" in body and b"sesame" in body for body in small.connects)
