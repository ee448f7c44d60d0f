"""The options of the service: one TOML file, which is checked before use."""

import tomllib
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn.device.address import parse_address, parse_listen
from edgecnn.device.cameras import SCHEMES, is_stream
from edgecnn.device.secrets import masked
from edgecnn.device.slots import disk as disks
from edgecnn.device.stream.settings import (
    LARGEST,
    Camera,
    Decision,
    Engine,
    Http,
    Metrics,
    Model,
    Mqtt,
    Pace,
    Reaction,
    Settings,
    State,
    from_keys,
    keys_of,
    read_smooth,
)
from edgecnn.errors import ServiceError, SlotError
from edgecnn.tables import build, key

CONFIG = Path("/etc/edgecnn/service.toml")

ENVIRONMENT = CONFIG.with_name("environment")

TAKEN = "service.toml"  # the name of the copy, next to the releases, of the last valid options

SLOWEST_FPS = 0.2  # fewer results per second would look like a frozen camera to the watchdog


KEYS: list[tuple[str, Any, Any]] = [
    ("source", str, key("", "a camera or stream, as for edgecnn classify; empty for the first camera that works")),
    ("width", int, key(640, "requested width of frames", low=1, high=LARGEST)),
    ("height", int, key(480, "requested height of frames", low=1, high=LARGEST)),
    *keys_of(Camera, Pace, Engine, Decision, Model, State),
    ("good_after", int, key(10, "fresh frames that a pending release must classify", low=1, high=1_000_000)),
    *keys_of(Reaction, Mqtt, Http, Metrics),
]
"""The service's options. An empty text means none."""

Keys: Any = make_dataclass("Keys", KEYS, frozen=True, kw_only=True)


class Config(Keys):
    @property
    def settings(self) -> Settings:
        """The settings of the stream, which waits for a camera indefinitely."""
        made = from_keys(vars(self))
        camera = replace(made.camera, size=(self.width, self.height), retry_for_s=float("inf"))
        return replace(made, camera=camera)

    @property
    def needs_network(self) -> bool:
        """Whether the camera, the broker or the page needs a network. A program that delivers frames may need one."""
        return bool(self.mqtt or self.http or self.source.lower().startswith((*SCHEMES, "ffmpeg:", "exec:")))


def parse(text: str, where: str) -> Config:
    """Parse options from TOML; ServiceError, which names `where` and the key, if they are not valid."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServiceError(f"{where} is not TOML: {error}.") from None
    except RecursionError:
        raise ServiceError(f"{where} is nested too deeply.") from None
    config = build(Config, table, ServiceError, where)
    for name, check in (("smooth", read_smooth), ("mqtt", parse_address), ("http", parse_listen)):
        try:
            if value := getattr(config, name):
                check(value)
        except ValueError as error:
            raise ServiceError(f"{where}: {name}: {error}.") from None
    if 0 < config.max_fps < SLOWEST_FPS:
        raise ServiceError(f"{where}: max_fps must be 0 or at least {SLOWEST_FPS:g}; received {config.max_fps:g}.")
    if config.source and not is_stream(config.source):
        source = masked(config.source)
        raise ServiceError(f"{where}: source {source!r} is not a camera or a stream, such as /dev/video0 or rtsp://…")
    if config.keep and not Path(config.keep).is_absolute():
        raise ServiceError(
            f"{where}: keep must be the full path of a folder, such as /var/lib/edgecnn/kept; received {config.keep!r}."
        )
    if config.source.startswith(("watch:", "folder:")):
        raise ServiceError(
            f"{where}: source cannot be a folder: the watchdog would take its silence for a frozen camera."
        )
    return config


def read_options_file(path: Path) -> str:
    """Return the text of an options file, or "" if it does not exist; ServiceError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None


class Taken(NamedTuple):
    """The options in use, and why they differ from the file or could not be saved; "" if all is well."""

    config: Config
    problem: str


def take_options(path: Path, folder: Path, disk: disks.Disk | None = None) -> Taken:
    """Use a file's options if they are valid, and save a copy in `folder`; else use the copy of the last valid ones."""
    copy = folder / TAKEN
    try:
        text = read_options_file(path)
        config = parse(text, str(path))
    except ServiceError as error:
        last = _last(copy)
        what = "The defaults are" if last is None else "The last valid options stay"
        return Taken(last or Config(), f"{error} {what} in use.")
    try:
        if not copy.exists() or read_options_file(copy) != text:
            disks.replace(disk or disks.Disk(folder), copy, text.encode())
    except (OSError, ServiceError, SlotError) as error:
        return Taken(config, f"{copy}: the options in use cannot be saved: {error}")
    return Taken(config, "")


def _last(copy: Path) -> Config | None:
    try:
        return parse(read_options_file(copy), str(copy)) if copy.exists() else None
    except ServiceError:
        return None
