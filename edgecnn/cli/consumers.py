"""Where a stream goes in addition to the terminal: the server of the page and the API, and the MQTT broker."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import checked, note, note_if_shared, secret
from edgecnn.device.address import Listener, VisiblePasswordError, open_listener, parse_address
from edgecnn.device.secrets import MQTT

if TYPE_CHECKING:
    from edgecnn.device.http.board import MetricsFile
    from edgecnn.device.http.live import Live
    from edgecnn.device.keep.keeper import Keeper
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.settings import Http, Mqtt, Settings
    from edgecnn.runtime.classifier import Classifier


def listen(options: "Http", say: Callable[[str], object] = note, warn: Callable[[str], object] = note) -> Listener:
    """Open the port and print the page's address; a usage error for invalid options, MissingExtraError without the packages."""
    require_packages("starlette", "uvicorn", "prometheus_client")
    if options.token_file is not None:
        note_if_shared(options.token_file)
    door = checked("--http", open_listener, options)
    say(f"page: {door.url}")
    if door.is_wide_open:
        warn("warning: anyone who can reach this port sees what the camera sees (--http-open)")
    return door


def require_packages(*names: str) -> None:
    """Raise ModuleNotFoundError if a package of the server is missing, without importing it."""
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def make_live(
    door: Listener,
    settings: "Settings",
    classifier: "Classifier",
    choice: Mapping[str, Any],
    source: str | None,
    keepers: "Sequence[Keeper]" = (),
) -> "Live":
    """Start the server of a stream.

    `choice` has the arguments that loaded the classifier, except its path; the first of `keepers` keeps frames, if the settings name a
    folder for them.
    """
    from edgecnn.device.http.link import UNSURES
    from edgecnn.device.http.live import Live, make_opening

    keeper = keepers[0] if settings.reaction.keep else None
    kept = keeper.newest(UNSURES) if keeper else ()
    opening = make_opening(door, settings, classifier, choice, camera=source or "", kept=kept)
    live = Live(opening, door.listener, (classifier.name, classifier.model_sha256), classifier.region)
    if keeper:
        keeper.on_kept = live.kept
    return live


def make_metrics_file(settings: "Settings", classifier: "Classifier", source: str | None) -> "MetricsFile":
    """Return the writer of --metrics-file for a stream that is not served; MissingExtraError without the package."""
    require_packages("prometheus_client")
    from edgecnn.device.http.board import MetricsFile
    from edgecnn.device.http.live import make_opening

    opening = make_opening(None, settings, classifier, {}, camera=source or "")
    return MetricsFile(opening, (classifier.name, classifier.model_sha256), classifier.region)


def serve_api(settings: "Settings", load: "functools.partial[Classifier]") -> None:
    """Serve without a camera until a signal arrives (Stopped)."""
    import asyncio

    from edgecnn.device.http.live import make_opening
    from edgecnn.device.http.serve import serve_api as serve_without_camera

    door = listen(settings.http)
    classifier = load()
    opening = make_opening(door, settings, classifier, load.keywords)
    asyncio.run(serve_without_camera(opening, door.listener, classifier))


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
