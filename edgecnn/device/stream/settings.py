"""The settings of a stream, each declared once.

The flags of `edgecnn classify` and `capture` (`edgecnn.cli.options`), the keys of the service's TOML (`edgecnn.device.service.config`) and
the arguments of `open_stream` are made from these dataclasses. This module loads at every start, so it imports little.
"""

from collections.abc import Mapping
from dataclasses import Field, field
from pathlib import Path
from typing import Any, ClassVar

from edgecnn.errors import nearest
from edgecnn.region import FITS, ROTATIONS, Region, read_region, read_size
from edgecnn.tables import Group, fields_of, option


def read_smooth(text: str) -> str:
    """Return the text if it is a valid rule for `Smoother`; ValueError if not."""
    from edgecnn.runtime.decision import Smoother

    Smoother.parse(text)
    return text


class Camera(Group):
    """How a camera or another source is opened and kept open."""

    heading: ClassVar = "Camera and stream"
    size: tuple[int, int] = option((640, 480), "Frame size to request.", metavar="WxH", typed="640x480", read=read_size)
    fps: float = option(
        0.0, "Frame rate to request, in frames per second.", "requested frames per second; 0 for the camera's own",
        low=0, high=1000, metavar="N", shown="the camera's own",
    )  # fmt: skip
    rotation: int = option(
        0, "Rotate frames clockwise by 0, 90, 180 or 270 degrees.", "degrees by which frames are rotated clockwise",
        choices=ROTATIONS, flag="rotate", metavar="DEG",
    )  # fmt: skip
    warm_up: int | None = option(
        None, "Frames to discard after the source opens.", low=0, metavar="N", shown="5 for a camera, 0 for a file"
    )
    retry_for_s: float | None = option(
        None, "Give up after S seconds without the camera, including at the start; inf to keep trying.",
        low=0, flag="retry_for", metavar="S", shown="0 at the start, then inf",
    )  # fmt: skip
    password_file: Path | None = option(
        None, "A file with the password of a network camera, or with the user and the password on two lines.",
        flag="camera_password_file", metavar="FILE",
        shown="EDGECNN_CAMERA_USER and EDGECNN_CAMERA_PASSWORD from the environment",
    )  # fmt: skip


class Pace(Group):
    """How fast and for how long a stream is classified."""

    heading: ClassVar = Camera.heading
    max_age_s: float = option(
        1.0, "Drop camera frames older than this.",
        low=1, flag="max_age", metavar="MS", typed=1000.0, read=lambda typed_ms: typed_ms / 1000,
    )  # fmt: skip
    max_fps: float = option(
        0.0, "Classify at most N frames per second; 0 for no limit.", "maximum results per second; 0 for no limit",
        low=0, high=1000, unlimited=True, metavar="N", service=5.0,
    )  # fmt: skip
    duration_s: float = option(0.0, "Stop after S seconds; 0 to keep running.", low=0, flag="duration", metavar="S")


class Engine(Group):
    """Which model of a bundle runs, and on which engine."""

    heading: ClassVar = "Engine"
    engine: str | None = option(
        None, "litert, tflite_runtime or onnxruntime.", metavar="NAME", shown="the first installed one that can run a model of the bundle"
    )  # fmt: skip
    provider: str | None = option(
        None, "What computes: cpu; cuda (ONNX Runtime); builtin or reference (LiteRT's kernels without XNNPACK).",
        metavar="NAME", shown="cpu",
    )  # fmt: skip
    precision: str | None = option(
        None, "int8, float32, float16 or int16x8.", metavar="NAME", shown="the bundle's choice for the engine"
    )
    num_threads: int = option(1, "Threads per inference.", "threads per inference", low=1, high=256, flag="threads")


class Decision(Group):
    """How scores become a decision."""

    heading: ClassVar = "Decision"
    top_k: int = option(3, "How many classes to print for each image.", low=1)
    threshold: float | None = option(
        None, "Abstain if the best score is below this.", "abstain below this score; the bundle's threshold if left out",
        low=0, high=1, shown="the bundle's, else 0",
    )  # fmt: skip
    margin: float = option(
        0.0, "Abstain if the best score leads the second by less than this.", "abstain if the best score leads the second by less",
        low=0, high=1,
    )  # fmt: skip
    fit: str | None = option(
        None, "How to fit an image to the input: crop, letterbox or stretch.",
        choices=FITS, metavar="NAME", shown="the bundle's", heading=None,
    )  # fmt: skip


class Model(Group):
    """What a bundle's classifier looks at and may answer, fixed when it is loaded."""

    heading: ClassVar = Decision.heading
    strangers: bool | None = option(
        None, "For an image that shows none of the classes (out-of-distribution), answer stranger, if the bundle can detect that.",
        "whether the state may be stranger, if the bundle can detect strangers; the bundle's setting if left out",
        shown="the bundle's, else off",
    )  # fmt: skip
    region: Region | None = option(
        None, "Classify only this part of each image: left, top, width and height as fractions of the upright image, such as "
        "0.5,0,0.5,1 for its right half. 0,0,1,1 is the whole image.",
        metavar="X,Y,W,H", shown="the bundle's, else the whole image", heading=None, typed=None, read=read_region,
    )  # fmt: skip


class State(Group):
    """How decisions become a state."""

    heading: ClassVar = "State of a stream"
    smooth: str = option(
        "1", "Change the state after N equal decisions in a row; majority:N takes the majority of the last N.",
        "like --smooth of edgecnn classify", metavar="N", typed="1", read=read_smooth, service="3",
    )  # fmt: skip


class Reaction(Group):
    """What happens when the state changes, and which frames are kept, in addition to printing."""

    heading: ClassVar = "Frames that are kept"
    on_change: str | None = option(
        None, "Run CMD, without a shell, when the state changes, with EDGECNN_STATE, EDGECNN_PREVIOUS and EDGECNN_SCORE in its "
        "environment.",
        metavar="CMD", shown="none", heading=State.heading,
    )  # fmt: skip
    keep: Path | None = option(
        None, "Keep unsure and out-of-distribution frames, and a random sample of all frames, in DIR, each as a JPEG of the region and a "
        "JSON file.",
        "keep unsure frames and a random sample of all frames in this folder, such as /var/lib/edgecnn/kept; empty for none",
        metavar="DIR", shown="none",
    )  # fmt: skip
    keep_unsure: int = option(
        40, "Keep at most N unsure or out-of-distribution frames per day, avoiding similar ones.",
        "maximum number of unsure or out-of-distribution frames per day", low=0, high=10_000, metavar="N",
    )  # fmt: skip
    keep_random: int = option(
        20, "Keep N frames per day at random times, to estimate accuracy in the field.",
        "frames per day to keep at random times, to estimate accuracy in the field", low=0, high=10_000, metavar="N",
    )  # fmt: skip
    keep_margin: float = option(
        0.5, "A frame is unsure if it gets no label, or if the best score leads the second by less than this.",
        "a frame is unsure if the best score leads the second by less", low=0, high=1,
    )  # fmt: skip
    keep_cap: float = option(
        200.0, "Keep at most this much in each folder; the oldest frames are removed first.",
        "maximum MiB to keep; the oldest frames are removed first",
        low=0.1, high=1_000_000, metavar="MIB",
    )  # fmt: skip
    keep_days: int = option(
        30, "Remove frames after D days.", "days after which frames are removed", low=1, high=3650, metavar="D"
    )
    explain: Path | None = option(
        None, "For unsure frames, keep in DIR a picture of what the model looked at, within the same limits. See edgecnn explain.",
        metavar="DIR", shown="none",
    )  # fmt: skip


class Pictures(Group):
    """Which pictures to take for training."""

    heading: ClassVar = "Pictures"
    interval_s: float = option(
        0.0, "Take a picture every S seconds, or each frame of a file. 0 waits for a key each time.",
        low=0, flag="interval", metavar="S",
    )  # fmt: skip
    count: int = option(0, "Stop after N pictures; 0 to keep going.", low=0, metavar="N")
    region: Region | None = option(
        None, "Keep only this part of each picture: left, top, width and height as fractions of the upright picture. Without it the "
        "whole frame is kept, and train --region can choose the part later.",
        metavar="X,Y,W,H", shown="the whole frame", typed=None, read=read_region,
    )  # fmt: skip
    min_sharpness: float = option(
        10.0, "Skip pictures less sharp than this (variance of the Laplacian).", low=0, metavar="X"
    )
    min_change: float = option(
        2.0,
        "Skip pictures that differ from the last one by less than this (mean difference, of 256 grey levels).",
        low=0,
        metavar="X",
    )


class Mqtt(Group):
    """Where the state is published, and in which forms."""

    heading: ClassVar = "MQTT"
    address: str | None = option(
        None, "Publish the state on the broker mqtt://USER@HOST:PORT/NAME, where Home Assistant finds it as the device NAME; "
        "mqtts:// is encrypted.",
        "publish the state on this broker, like --mqtt of edgecnn classify; empty for none",
        flag="mqtt", metavar="ADDRESS", shown="none",
    )  # fmt: skip
    password_file: Path | None = option(
        None, "A file with the password, or with the user and the password on two lines.",
        flag="mqtt_password_file", metavar="FILE", shown="EDGECNN_MQTT_USER and EDGECNN_MQTT_PASSWORD from the environment",
    )  # fmt: skip
    ca: Path | None = option(
        None, "Certificates (PEM) of the authorities that may sign the broker's certificate.",
        "a file of the authorities that may sign the broker's certificate; empty for the system's",
        flag="mqtt_ca", metavar="FILE", shown="the system's",
    )  # fmt: skip
    picture: bool = option(
        False, "Publish a JPEG of the frame with each change of the state.", "whether a picture is published with each change",
        flag="mqtt_picture",
    )  # fmt: skip
    binary: str | None = option(
        None, "Also publish a binary sensor, which is on while the state is LABEL.", "a label for a binary sensor; empty for none",
        flag="mqtt_binary", metavar="LABEL", shown="none",
    )  # fmt: skip
    prefix: str = option("homeassistant", "Home Assistant's discovery prefix.", flag="mqtt_prefix", metavar="TOPIC")


class Http(Group):
    """Where a page and an API are served, and to whom."""

    heading: ClassVar = "Page and API"
    address: str | None = option(
        None, "Serve a page, an API and metrics over HTTP on this port, only to this machine unless HOST is given; without a "
        "source, only the API.",
        "serve a page, an API and metrics over HTTP here, like --http of edgecnn classify; empty for none",
        flag="http", metavar="[HOST:]PORT", shown="none",
    )  # fmt: skip
    token_file: Path | None = option(
        None, "A file with the token that clients must send; required if other machines can reach the server.",
        "a file with the token that clients must send; empty for EDGECNN_HTTP_TOKEN from the environment",
        flag="http_token_file", metavar="FILE", shown="EDGECNN_HTTP_TOKEN from the environment",
    )  # fmt: skip
    open: bool = option(
        False, "Let other machines in without a token: anyone who can reach the port sees what the camera sees.",
        "whether other machines may connect without a token", flag="http_open",
    )  # fmt: skip
    hosts: str | None = option(
        None, "Other names that clients use for the server, separated by commas, such as a proxy's.",
        "other names that clients use for the server, separated by commas; empty for none",
        flag="http_hosts", metavar="NAMES", shown="this machine's name, also with .local",
    )  # fmt: skip


class Metrics(Group):
    """Where metrics are written, in addition to being served."""

    heading: ClassVar = Http.heading
    file: Path | None = option(
        None, "Write the metrics of a stream to this file every 15 s, for Prometheus's node_exporter; its name must end in .prom.",
        "a file for node_exporter to which metrics are written every 15 s; empty for none",
        flag="metrics_file", metavar="FILE", shown="none",
    )  # fmt: skip


class Settings(Group):
    """All settings of a stream, by group."""

    camera: Camera = Camera()
    pace: Pace = Pace()
    decision: Decision = Decision()
    model: Model = Model()
    state: State = State()
    reaction: Reaction = Reaction()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    metrics: Metrics = Metrics()


def typed_name(entry: Field) -> str:
    return str(entry.metadata.get("flag", entry.name))


def gather(values: Mapping[str, Any], *groups: type) -> dict[str, Any]:
    """Return the groups, by their names in Settings, with the settings in `values`; TypeError for a name that no group has."""
    kinds: dict[str, Any] = {name: entry.type for name, entry in fields_of(Settings).items() if entry.type in groups}
    names = [name for kind in kinds.values() for name in fields_of(kind)]
    for name in values:
        if name not in names:
            raise TypeError(f"unknown setting {name!r} of a stream. {nearest(name, names)}")
    return {
        group: kind(**{name: values[name] for name in fields_of(kind) if name in values})
        for group, kind in kinds.items()
    }


def keys_of(*groups: type) -> list[tuple[str, Any, Any]]:
    """Return the service's keys for groups of settings, each with its type and field. An empty text or path stands for None."""
    keys = []
    for entry in (entry for group in groups for entry in fields_of(group).values() if "meaning" in entry.metadata):
        text = entry.type in (str | None, Path | None)
        default = "" if text else entry.metadata.get("service", entry.default)
        keys.append((typed_name(entry), str if text else entry.type, field(default=default, metadata=entry.metadata)))
    return keys


def from_keys(values: Mapping[str, Any]) -> Settings:
    """Convert the service's keys to settings: an empty text becomes None, a path's text a Path."""
    made = {}
    for name, group in fields_of(Settings).items():
        kind: Any = group.type
        given = {field: (entry.type, values.get(typed_name(entry))) for field, entry in fields_of(kind).items()}
        made[name] = kind(**{field: from_key(*of) for field, of in given.items() if of[1] is not None})
    return Settings(**made)


def from_key(kind: Any, value: Any) -> Any:
    if kind == Path | None:
        return Path(value) if value else None
    return value or None if kind == str | None else value
