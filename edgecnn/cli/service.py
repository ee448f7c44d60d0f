"""`edgecnn service`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.options import SlotsFolder, check_action, emit_json, emit_line, note, note_if_shared, option
from edgecnn.errors import OutputError
from edgecnn.labels import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgecnn.device.keep.keeper import Keeper
    from edgecnn.device.service.config import Config
    from edgecnn.device.service.run import Surroundings
    from edgecnn.device.stream.loop import Consumer, Item
    from edgecnn.runtime.classifier import Classifier

ACTIONS = dict.fromkeys(("install", "check", "status", "logs", "remove", "run"), "")


def service(
    context: typer.Context,
    action: str = typer.Argument(..., metavar="ACTION", help="install, check, status, logs, remove or run; required"),
    config: Path | None = option(
        None,
        "Options in TOML. install checks the file and copies it to the default path.",
        "/etc/edgecnn/service.toml",
        "With install, check and run",
        metavar="FILE",
    ),
    root: SlotsFolder = Path("/var/lib/edgecnn"),
    follow: bool = option(False, "Keep printing new lines.", "off", "With logs", "--follow", "-f"),
    lines: int = option(20, "Number of lines.", True, "With logs", "--lines", "-n", min=1, metavar="N"),
    json: bool = option(False, "Print one JSON document.", "off", "With status", "--json"),
) -> None:
    """Classify what a camera sees as a systemd service, from boot on.

    install, once and as root, writes the unit, checks the options and starts the service. check only checks the options. status and logs
    show what the service does. remove takes it away but leaves options and releases. run is the command of the unit.

    The service runs the release that edgecnn slot has put in use, or waits for the first one. It writes JSON lines to the journal. A
    watchdog restarts it unless frames keep being classified.

    \b
    Examples:
      edgecnn service install --config service.toml
      edgecnn service check --config service.toml
      edgecnn service status
      edgecnn service logs --follow
    """
    check_action(context, action, ACTIONS)
    from edgecnn.device.service import config as manage
    from edgecnn.device.slots.record import NO_RELEASE
    from edgecnn.device.slots.store import Store

    if action == "run":
        run(config or manage.SERVICE_CONFIG, root)
    elif action == "check":
        path = config or manage.SERVICE_CONFIG
        manage.valid_options(path, required=config is not None)
        note(f"{path}: {'valid' if path.exists() else 'does not exist, so the defaults apply'}")
    elif action == "install":
        unit = manage.install(manage.Host(), config)
        note_if_shared(manage.ENVIRONMENT)
        note(f"{unit} has started, and will start at each boot. To watch it: edgecnn service logs --follow")
        if not Store(root).read().current:
            note(NO_RELEASE)
    elif action == "remove":
        manage.remove(manage.Host())
        note(f"service removed; options in {manage.SERVICE_CONFIG.parent} and releases in {root} stay")
    elif action == "logs":
        command = manage.logs_command(manage.Host(), lines, follow)
        os.execvp(command[0], command)
    else:
        show_status(manage.unit_properties(manage.Host()), root, json)


def show_status(state: dict[str, Any], root: Path, json: bool) -> None:
    from edgecnn.device.slots.record import NO_RELEASE
    from edgecnn.device.slots.store import Store

    slots = Store(root).read()
    release = slots.current
    about = slots.releases[release] if release else None
    if json:
        emit_json({"systemd": state, "release": release, "about": about})
        return
    print("service {ActiveState} ({SubState}), {UnitFileState}, restarts {NRestarts}".format_map(state))
    print(f"status  {printable(state['StatusText']) or '-'}")
    print(printable(f"release {release[:12]} {about.name} {about.state}") if release and about else NO_RELEASE)


def run(path: Path, root: Path) -> None:
    from edgecnn.device.service.config import take_options
    from edgecnn.device.service.run import CHANGED, Surroundings, run_service
    from edgecnn.device.slots.store import Store
    from edgecnn.device.stream.loop import Ends

    environment = dict(os.environ)  # the next process needs the broker's password, which reading the options removes
    config, problem = take_options(path, root)
    with Ends() as ends:
        around = Surroundings(
            report=print_item, check=ends.check, consumers=lambda classifier: publishers(config, classifier, around)
        )
        if problem:
            around.problem("configuration", problem)
        if not fit_network(config, around):
            return
        outcome = run_service(Store(root), config, around)
    if outcome == CHANGED:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def fit_network(config: "Config", around: "Surroundings") -> bool:
    """Close the network unless the options need it; False if an earlier process closed it, which only a restart undoes."""
    from edgecnn.device.service import run

    closed = run.is_closed()
    if config.needs_network and closed:
        around.problem("network", "the options need it now; the service exits, and systemd restarts it.")
        return False
    if not (config.needs_network or closed) and (why := run.close_network()):
        around.problem("network", f"it stays open: {why}.")
    return True


def print_item(item: "Item") -> None:
    """Print an event as a JSON line, but no frames: they would fill the journal."""
    from edgecnn.device.stream.events import Event, event_line

    if isinstance(item, Event):
        emit_line(event_line(item))


PACKAGES = {"http": "python3-starlette python3-uvicorn python3-prometheus-client", "mqtt": "python3-paho-mqtt"}
"""Debian's packages of each extra."""


def publishers(config: "Config", classifier: "Classifier", around: "Surroundings") -> "list[Consumer]":
    """Make the consumers that keep frames and publish the state, as the options require. Invalid options are reported, not fatal."""
    settings, source = config.settings, config.source

    def frames() -> "Sequence[Consumer]":
        from edgecnn.device.keep.keeper import make_keepers

        keepers.extend(make_keepers(settings, classifier))
        return keepers

    def broker() -> "Sequence[Consumer]":
        from edgecnn.cli.classify_stream import make_publisher, read_settings

        return [make_publisher(read_settings(settings.mqtt, settings.camera.rotation), classifier)]

    def page() -> "Sequence[Consumer]":
        from edgecnn.cli.classify_stream import listen, make_live, make_metrics_file

        if settings.http.address is None:
            return [make_metrics_file(settings, classifier, source)]
        door = listen(settings.http, say=bool, warn=lambda text: around.problem("configuration", text))
        return [make_live(door, settings, classifier, {"strangers": config.strangers}, source, keepers)]

    keepers: list[Keeper] = []
    made: list[Consumer] = []
    if settings.reaction.keep is not None:
        made += attempt(frames, around, "frames are kept")
    if settings.mqtt.address is not None:
        made += attempt(broker, around, "MQTT", "mqtt")
    if settings.http.address is not None or settings.metrics.file is not None:
        made += attempt(page, around, "page and no metrics", "http")
    return made


def attempt(
    make: "Callable[[], Sequence[Consumer]]", around: "Surroundings", what: str, extra: str = ""
) -> "Sequence[Consumer]":
    """Return what `make` makes; for an invalid option or a missing package of an extra, report why there is no such consumer."""
    try:
        return make()
    except (OutputError, typer.BadParameter) as error:
        around.problem("configuration", f"no {what}: {getattr(error, 'message', error)}")
    except ModuleNotFoundError as error:
        from edgecnn.versions import install_command

        install = f"apt install {PACKAGES[extra]}, or {install_command(extra)}"
        around.problem("configuration", f"no {what}: {error}. Install it: {install}")
    return ()
