"""The MQTT options of `edgecnn classify`: the broker, the credentials and the publisher."""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.console import note
from edgecnn.cli.options import checked, secret
from edgecnn.device.mqtt.address import VisiblePasswordError, parse_address
from edgecnn.device.secrets import MQTT

if TYPE_CHECKING:
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.settings import Mqtt
    from edgecnn.runtime.classifier import Classifier


def read_settings(options: "Mqtt", rotation: int = 0) -> "MqttSettings":
    """Read the address, the user and the password from their options; an invalid one is a usage error."""
    import ssl

    from edgecnn.device.mqtt.publisher import MqttSettings

    try:
        broker, name = parse_address(options.address or "")
    except ValueError as error:
        has_one = isinstance(error, VisiblePasswordError)
        advice = f"; the password goes into --mqtt-password-file or {MQTT}PASSWORD" if has_one else ""
        raise typer.BadParameter(f"{error}{advice}.", param_hint="--mqtt") from None
    if options.ca is not None and not broker.tls:
        raise typer.BadParameter("is for mqtts:// addresses, which are encrypted.", param_hint="--mqtt-ca")
    if not options.prefix or set("+#\0") & set(options.prefix) or options.prefix.strip("/") != options.prefix:
        message = f"received {options.prefix!r}, expected a topic, such as homeassistant."
        raise typer.BadParameter(message, param_hint="--mqtt-prefix")
    user, password = secret("--mqtt-password-file", MQTT, options.password_file)
    broker = replace(broker, user=broker.user or user, password=password)
    if password is not None and broker.user is None:
        raise typer.BadParameter(
            f"a password needs a user; expected mqtt://USER@HOST/NAME, {MQTT}USER, or the user as the first line of the file.",
            param_hint="--mqtt",
        )
    try:
        return MqttSettings(broker=broker, name=name, options=options, rotation=rotation)
    except OSError as error:
        why = "it contains no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise typer.BadParameter(f"{options.ca}: {why}.", param_hint="--mqtt-ca") from None


def make_publisher(settings: "MqttSettings", classifier: "Classifier") -> "Publisher":
    from edgecnn.device.mqtt.publisher import Publisher

    strangers = classifier.strangers is not None
    make = functools.partial(Publisher, labels=classifier.labels, model=classifier.name, strangers=strangers)
    return checked("--mqtt-binary", make, settings)


def forget_device(options: "Mqtt") -> None:
    from edgecnn.device.mqtt.publisher import forget

    settings = read_settings(options)
    forget(settings)
    note(f"{settings.broker.address}: {settings.name} is removed")
