"""The MQTT options of `edgecnn classify`: who connects to which broker, and what publishes there."""

import contextlib
import functools
import shlex
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.console import note
from edgecnn.cli.options import checked
from edgecnn.device.mqtt.address import Broker, parse_address
from edgecnn.device.secrets import MQTT, read_secret

if TYPE_CHECKING:
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.settings import Mqtt
    from edgecnn.runtime.classifier import Classifier


def read_settings(options: "Mqtt", rotation: int = 0) -> "MqttSettings":
    """Read the address, and the user and the password from where they are.

    Raises:
        typer.BadParameter: for an option that is not valid.
        ModuleNotFoundError: if paho-mqtt is not installed.
    """
    from edgecnn.device.mqtt.publisher import MqttSettings

    try:
        broker, name = parse_address(options.address or "")
    except ValueError as error:
        advice = f"; the password goes into --mqtt-password-file or {MQTT}PASSWORD" if "password" in str(error) else ""
        raise typer.BadParameter(f"{error}{advice}.", param_hint="--mqtt") from None
    if options.ca is not None and not broker.tls:
        raise typer.BadParameter("is for mqtts:// addresses, which are encrypted.", param_hint="--mqtt-ca")
    if not options.prefix or set("+#\0") & set(options.prefix) or options.prefix.strip("/") != options.prefix:
        message = f"received {options.prefix!r}, expected a topic, such as homeassistant."
        raise typer.BadParameter(message, param_hint="--mqtt-prefix")
    return MqttSettings(
        broker=with_secret(broker, options.password_file), name=name, ca=options.ca, picture=options.picture,
        binary=options.binary, prefix=options.prefix, rotation=rotation,
    )  # fmt: skip


def with_secret(broker: Broker, file: Path | None) -> Broker:
    """Return the broker with user and password: from the file, else from the environment.

    Raises:
        typer.BadParameter: if the file cannot be read, or there is a password and no user.
    """
    if file is not None:
        note_if_shared(file)
    user, password = checked("--mqtt-password-file", functools.partial(read_secret, MQTT), file)
    user = broker.user or user
    if password is not None and user is None:
        raise typer.BadParameter(
            f"there is a password and no user; expected mqtt://USER@HOST/NAME, {MQTT}USER, or the user as the first line of the file.",
            param_hint="--mqtt",
        )
    return replace(broker, user=user, password=password)


def note_if_shared(file: Path) -> None:
    """Say so if every user of this machine may read a file that holds a password."""
    with contextlib.suppress(OSError):
        if file.stat().st_mode & stat.S_IROTH:
            note(
                f"{file} holds a password, and every user of this machine may read it. Change that: chmod o-r {shlex.quote(str(file))}"
            )


def make_publisher(settings: "MqttSettings", classifier: "Classifier") -> "Publisher":
    """Make what publishes a classifier's states.

    Raises:
        typer.BadParameter: for an option that is not valid.
    """
    from edgecnn.device.mqtt.publisher import Publisher

    try:
        return Publisher(
            settings, labels=classifier.labels, model=classifier.name, strangers=classifier.strangers is not None
        )
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--mqtt-binary") from None
    except OSError as error:
        raise bad_authorities(settings, error) from None


def forget_device(options: "Mqtt") -> None:
    """Remove a device from Home Assistant and from the broker.

    Raises:
        typer.BadParameter: for an option that is not valid.
        MqttError: if the broker cannot be reached, or refuses.
    """
    from edgecnn.device.mqtt.publisher import forget

    settings = read_settings(options)
    try:
        forget(settings)
    except ConnectionError:  # an MqttError is one
        raise
    except OSError as error:
        raise bad_authorities(settings, error) from None
    note(f"{settings.broker.address}: {settings.name} is removed")


def bad_authorities(settings: "MqttSettings", error: OSError) -> typer.BadParameter:
    """Return the usage error for a file of authorities that cannot be used."""
    import ssl

    why = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
    return typer.BadParameter(f"{settings.ca}: {why}.", param_hint="--mqtt-ca")
