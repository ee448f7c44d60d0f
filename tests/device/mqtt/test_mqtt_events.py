"""Each event in words and as a JSON line."""

import json

import jsonschema
import pytest

from edgecnn.cli.stream import event_text
from edgecnn.device.stream import events
from edgecnn.device.stream.results import event_line

COMMON = {"ts": 0.0, "source": "", "broker": "mqtt://broker:1883"}
EVENTS = {
    "mqtt connected to mqtt://broker:1883 after 1.5 s": events.MqttConnectedEvent(
        after_s=1.5, attempts=1, dropped=0, **COMMON
    ),
    "mqtt connected to mqtt://broker:1883 after 1.5 s; states not sent meanwhile: 1,234": events.MqttConnectedEvent(
        after_s=1.5, attempts=9, dropped=1234, **COMMON
    ),
    "mqtt lost (closed): mqtt://broker:1883: it went": events.MqttLostEvent(
        reason="closed", message="it went", dropped=0, **COMMON
    ),
    "mqtt refused (tls): mqtt://broker:1883: no": events.MqttRefusedEvent(
        reason="tls", message="no", count=1, **COMMON
    ),
    "mqtt refused (tls): mqtt://broker:1883: no (3 times)": events.MqttRefusedEvent(
        reason="tls", message="no", count=3, **COMMON
    ),
    "mqtt conflict: mqtt://broker:1883: another": events.MqttConflictEvent(message="another", count=1, **COMMON),
}


@pytest.mark.parametrize("text", EVENTS)
def test_an_event_in_words_and_as_a_line(schema_of, text):
    schema = schema_of("result")
    jsonschema.Draft202012Validator(schema).validate(json.loads(event_line(EVENTS[text])))
    assert event_text(EVENTS[text]) == text


def test_the_reasons_match_the_schema(schema_of):
    connection = pytest.importorskip(
        "edgecnn.device.mqtt.connection", reason="MQTT needs the mqtt extra", exc_type=ImportError
    )
    parts = schema_of("result")["$defs"]
    refused = parts["mqtt_refused"]["properties"]["reason"]["enum"]
    lost = parts["mqtt_lost"]["properties"]["reason"]["enum"]
    assert set(refused) == set(connection.REASONS)
    assert set(lost) - {connection.STOPPED} <= set(connection.REASONS)
