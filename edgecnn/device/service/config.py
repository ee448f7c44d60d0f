"""The options of the service: one TOML file, which is checked before it is taken."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgecnn.device.cameras import is_stream
from edgecnn.device.mqtt.address import parse_address
from edgecnn.device.secrets import masked
from edgecnn.device.slots.disk import Disk, replace
from edgecnn.errors import ServiceError, SlotError
from edgecnn.pixels import ROTATIONS
from edgecnn.runtime.decision import Smoother
from edgecnn.tables import build, key

CONFIG = Path("/etc/edgecnn/service.toml")
"""Where a board's options are."""

ENVIRONMENT = CONFIG.with_name("environment")
"""Where user and password of a broker are."""

TAKEN = "service.toml"
"""The name of the copy next to the releases: the last options that were valid."""

SLOWEST_FPS = 0.2
"""Fewer results per second would look like a frozen camera to the watchdog."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The service's options, all of which have defaults."""

    source: str = key("", "a camera or stream, as edgecnn classify takes it; empty for the first camera that works")
    width: int = key(640, "requested width of frames", low=1, high=16384)
    height: int = key(480, "requested height of frames", low=1, high=16384)
    fps: float = key(0.0, "requested frames per second; 0 for the camera's own", low=0, high=1000)
    rotate: int = key(0, "degrees by which frames are turned clockwise", choices=ROTATIONS)
    max_fps: float = key(5.0, "most results per second; 0 for no limit", low=0, high=1000)
    threshold: float | None = key(None, "abstain below this score; the bundle's own if left out", low=0, high=1)
    margin: float = key(0.0, "abstain if the best score leads the second by less", low=0, high=1)
    strangers: bool | None = key(
        None, "whether the state may be stranger, if the bundle recognises strangers; the bundle's own if left out"
    )
    smooth: str = key("3", "as --smooth of edgecnn classify")
    good_after: int = key(10, "fresh frames that a pending release has to classify", low=1, high=1_000_000)
    mqtt: str = key("", "publish the state on this broker, as --mqtt of edgecnn classify; empty for none")
    mqtt_ca: str = key("", "a file of the authorities that may sign the broker's certificate; empty for the system's")
    mqtt_picture: bool = key(False, "whether a picture is published with each change")
    mqtt_binary: str = key("", "a label for a binary sensor; empty for none")


def parse(text: str, where: str) -> Config:
    """Read options.

    Args:
        text: TOML.
        where: the origin's name in messages.

    Raises:
        ServiceError: for what is not TOML, an unknown key, or a value that is not valid; it names the place.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServiceError(f"{where} is not TOML: {error}.") from None
    except RecursionError:
        raise ServiceError(f"{where} is nested too deeply.") from None
    config = build(Config, table, ServiceError, where)
    try:
        Smoother.parse(config.smooth)
    except ValueError as error:
        raise ServiceError(f"{where}: smooth: {error}.") from None
    if 0 < config.max_fps < SLOWEST_FPS:
        raise ServiceError(f"{where}: max_fps must be 0 or at least {SLOWEST_FPS:g}, received {config.max_fps:g}.")
    if config.source and not is_stream(config.source):
        raise ServiceError(
            f"{where}: source {masked(config.source)!r} is not a camera or a stream, such as /dev/video0 or rtsp://…"
        )
    if config.source.startswith("watch:"):
        raise ServiceError(f"{where}: source cannot be a folder: the watchdog takes its silence for a frozen camera.")
    if config.mqtt:
        try:
            parse_address(config.mqtt)
        except ValueError as error:
            raise ServiceError(f"{where}: mqtt: {error}.") from None
    return config


def read(path: Path) -> str:
    """Return the text of a file of options; "" if it does not exist.

    Raises:
        ServiceError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None


class Taken(NamedTuple):
    """The options in use, and why they are not those of the file, or could not be kept; "" if all is well."""

    config: Config
    problem: str


def take(path: Path, folder: Path, disk: Disk | None = None) -> Taken:
    """Take the options of a file if they are valid, and keep a copy of them; else the copy of the last that were.

    Args:
        path: the file; without it the defaults are used.
        folder: where the copy is kept.
        disk: writes the copy.
    """
    copy = folder / TAKEN
    try:
        text = read(path)
        config = parse(text, str(path))
    except ServiceError as error:
        last = _last(copy)
        what = "The defaults are" if last is None else "The last valid options stay"
        return Taken(last or Config(), f"{error} {what} in use.")
    try:
        if not copy.exists() or read(copy) != text:
            replace(disk or Disk(folder), copy, text.encode())
    except (OSError, ServiceError, SlotError) as error:
        return Taken(config, f"{copy}: the options in use cannot be kept: {error}")
    return Taken(config, "")


def _last(copy: Path) -> Config | None:
    """Return the options of the copy; None if there is no readable one."""
    try:
        return parse(read(copy), str(copy)) if copy.exists() else None
    except ServiceError:
        return None
