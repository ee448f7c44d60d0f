"""Classify generated frames for two seconds, publish the state to a broker, and print the MQTT events."""

import sys

from edgecnn.device.address import parse_address
from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
from edgecnn.device.stream.loop import open_stream
from edgecnn.runtime.classifier import Classifier

broker, name = parse_address(sys.argv[1] if len(sys.argv) > 1 else "mqtt://localhost/door")
classifier = Classifier.load()
publisher = Publisher(MqttSettings(broker=broker, name=name), labels=classifier.labels, model=classifier.name)
with open_stream("synthetic:?fps=5", classifier, duration_s=2.0, consumers=[publisher]) as stream:
    for item in stream:
        if getattr(item, "kind", "").startswith("mqtt"):
            print(item)
