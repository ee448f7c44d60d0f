"""`edgecnn classify`: the options; `classify_files` and `classify_stream` do the work."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecnn.cli.console import note
from edgecnn.cli.options import (
    CAMERA,
    CameraPasswordFile,
    EngineName,
    Fps,
    Model,
    Provider,
    RegionText,
    RetryFor,
    Rotate,
    Size,
    WarmUp,
    check_choice,
    option_name,
    read_region,
)

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier

DECISION, STATE, UNSURE, MQTT = "Decision", "State of a stream", "Unsure frames of a stream", "MQTT"
"""Headings of options in the help."""

STREAM_OPTIONS = (
    "size", "fps", "rotate", "warm_up", "retry_for", "camera_password_file", "max_age", "max_fps", "duration", "smooth", "on_change",
    "save_uncertain", "save_margin", "save_cap", "explain", "mqtt", "mqtt_password_file", "mqtt_ca", "mqtt_picture", "mqtt_binary",
    "mqtt_prefix",
)  # fmt: skip
"""Parameters of `classify` that are for streams only."""

MQTT_OPTIONS = ("mqtt_password_file", "mqtt_ca", "mqtt_picture", "mqtt_binary", "mqtt_prefix", "mqtt_forget")
"""Parameters of `classify` that mean nothing without a broker."""


def classify(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Image files, folders, globs, or - to read paths from standard input. Or one stream: /dev/video0, "
            "rtsp://…, clip.mp4, exec:COMMAND, watch:DIR, synthetic:.",
            show_default="none",
        ),
    ] = None,
    camera: Annotated[
        bool,
        typer.Option(
            "--camera", help="Find a camera and classify what it sees.", show_default="off", rich_help_panel=CAMERA
        ),
    ] = False,
    model: Model = None,
    engine: EngineName = None,
    provider: Provider = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="int8, float32, float16 or int16x8.",
            show_default="the bundle's choice for the engine",
            rich_help_panel="Engine",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Threads of one inference.",
            show_default="as tuned, else 1",
            rich_help_panel="Engine",
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many classes to print for each image.", rich_help_panel=DECISION)
    ] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Abstain if the best score is below this.",
            show_default="the bundle's, else 0",
            rich_help_panel=DECISION,
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Abstain if the best score leads the second by less than this.",
            rich_help_panel=DECISION,
        ),
    ] = 0.0,
    strangers: Annotated[
        bool | None,
        typer.Option(
            "--strangers/--no-strangers",
            help="Answer stranger if an image shows none of the classes and the bundle recognises that.",
            show_default="the bundle's, else off",
            rich_help_panel=DECISION,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How an image fits the input: crop, letterbox or stretch.", show_default="the bundle's"
        ),
    ] = None,
    region: RegionText = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line for each image.", show_default="off")
    ] = False,
    size: Size = "640x480",
    fps: Fps = 0.0,
    rotate: Rotate = 0,
    warm_up: WarmUp = None,
    retry_for: RetryFor = None,
    camera_password_file: CameraPasswordFile = None,
    max_age: Annotated[
        float,
        typer.Option(min=1.0, metavar="MS", help="Drop camera frames older than this.", rich_help_panel=CAMERA),
    ] = 1000.0,
    max_fps: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="N", help="Classify at most N frames per second; 0 for no limit.", rich_help_panel=CAMERA
        ),
    ] = 0.0,
    duration: Annotated[
        float,
        typer.Option(min=0.0, metavar="S", help="Stop after S seconds; 0 to keep running.", rich_help_panel=CAMERA),
    ] = 0.0,
    smooth: Annotated[
        str,
        typer.Option(
            metavar="N",
            help="The state changes after N equal decisions in a row, or majority:N for the most frequent of the last N.",
            rich_help_panel=STATE,
        ),
    ] = "1",
    on_change: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run CMD, without a shell, when the state changes, with EDGECNN_STATE, EDGECNN_PREVIOUS and EDGECNN_SCORE in its "
            "environment.",
            show_default="none",
            rich_help_panel=STATE,
        ),
    ] = None,
    save_uncertain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep unsure frames as DIR/GUESS/*, at most one per second.",
            show_default="none",
            rich_help_panel=UNSURE,
        ),
    ] = None,
    save_margin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="A frame is unsure if its decision is no label, or the best score leads the second by less than this.",
            rich_help_panel=UNSURE,
        ),
    ] = 0.5,
    save_cap: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="MIB",
            help="Keep at most this much in each folder; the oldest frames go first.",
            rich_help_panel=UNSURE,
        ),
    ] = 100.0,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep a picture of what the model looked at in unsure frames as DIR/GUESS/*, at most one per second. See edgecnn explain.",
            show_default="none",
            rich_help_panel=UNSURE,
        ),
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Publish the state on the broker mqtt://USER@HOST:PORT/NAME, where Home Assistant finds it as the device NAME; "
            "mqtts:// is encrypted.",
            show_default="none",
            rich_help_panel=MQTT,
        ),
    ] = None,
    mqtt_password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the password, or with the user and the password on two lines.",
            show_default="EDGECNN_MQTT_USER and EDGECNN_MQTT_PASSWORD of the environment",
            rich_help_panel=MQTT,
        ),
    ] = None,
    mqtt_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificates (PEM) of the authorities that may sign the broker's.",
            show_default="the system's",
            rich_help_panel=MQTT,
        ),
    ] = None,
    mqtt_picture: Annotated[
        bool,
        typer.Option(
            "--mqtt-picture",
            help="Publish a JPEG of the frame with each change of the state.",
            show_default="off",
            rich_help_panel=MQTT,
        ),
    ] = False,
    mqtt_binary: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="Publish a binary sensor too, which is on while the state is LABEL.",
            show_default="none",
            rich_help_panel=MQTT,
        ),
    ] = None,
    mqtt_prefix: Annotated[
        str, typer.Option(metavar="TOPIC", help="Home Assistant's discovery prefix.", rich_help_panel=MQTT)
    ] = "homeassistant",
    mqtt_forget: Annotated[
        bool,
        typer.Option(
            "--mqtt-forget",
            help="Remove the device from Home Assistant and from the broker, and exit.",
            show_default="off",
            rich_help_panel=MQTT,
        ),
    ] = False,
) -> None:
    """Classify images, or what a camera sees.

    Standard error names the bundle, engine and camera in use. An image file that cannot be read is reported and skipped, and the exit
    code is then 22.

    If a camera is lost, edgecnn keeps trying to open it again, forever unless --retry-for says otherwise. A camera that cannot be opened
    at the start is an error, exit code 24. SIGTERM and Ctrl-C close the camera; the exit codes are 143 and 130. In a terminal the current
    result is redrawn in place. Elsewhere each change of state prints a line, or with --json each frame and event.

    \b
    Examples:
      edgecnn classify photo.jpg
      edgecnn classify photos/ 'more/*.png' --json --threshold 0.6
      find . -name '*.jpg' | edgecnn classify - --model cats.edgecnn
      edgecnn classify --camera --smooth 3 --on-change ./door.sh
      edgecnn classify --camera --region 0.4,0.2,0.3,0.5
      edgecnn classify rtsp://door.local/1 --max-fps 5 --json --save-uncertain unsure
      edgecnn classify --camera --smooth 3 --mqtt mqtt://broker.local/door
    """
    from edgecnn.device.cameras import is_stream
    from edgecnn.runtime.engines import PROVIDERS

    broker = None
    if mqtt is not None:
        from edgecnn.cli.mqtt import MqttOptions, forget_device

        broker = MqttOptions(
            address=mqtt, password_file=mqtt_password_file, ca=mqtt_ca, picture=mqtt_picture, binary=mqtt_binary,
            prefix=mqtt_prefix,
        )  # fmt: skip
        if mqtt_forget:
            if source or camera:
                raise typer.BadParameter("removes a device and classifies nothing.", param_hint="--mqtt-forget")
            forget_device(broker)
            return
    else:
        refuse_options(context, MQTT_OPTIONS, "needs --mqtt ADDRESS.")
    check_choice("--provider", provider, PROVIDERS)
    check_choice("--fit", fit, ("crop", "letterbox", "stretch"))
    streams = [text for text in source or () if is_stream(text)]
    if camera or streams:
        if len(source or ()) + camera > 1:
            raise typer.BadParameter("give one stream, or --camera, and nothing else.", param_hint="SOURCE")
    elif not source:
        raise typer.BadParameter(
            "name an image, a folder, a glob or a stream, - to read paths from standard input, or give --camera.",
            param_hint="SOURCE",
        )
    else:
        refuse_options(context, STREAM_OPTIONS, "is for streams and --camera, not for files.")

    load = functools.partial(
        load_classifier, model, engine=engine, provider=provider, precision=precision, num_threads=threads,
        region=read_region(region), strangers=strangers,
    )  # fmt: skip
    if camera or streams:
        from edgecnn.cli.classify_stream import StreamOptions, classify_stream

        options = StreamOptions(
            source=streams[0] if streams else None, fit=fit, size=size, fps=fps, rotate=rotate, warm_up=warm_up,
            retry_for=retry_for, password_file=camera_password_file, top_k=top_k, threshold=threshold, margin=margin, json=json,
            max_age=max_age, max_fps=max_fps, duration=duration, smooth=smooth, on_change=on_change, save_uncertain=save_uncertain,
            save_margin=save_margin, save_cap=save_cap, explain=explain, mqtt=broker,
        )  # fmt: skip
        classify_stream(options, load)
        return
    from edgecnn.cli.classify_files import classify_files

    classify_files(load(), source or (), top_k=top_k, threshold=threshold, margin=margin, fit=fit, json=json)


def refuse_options(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that are given where they mean nothing.

    Raises:
        typer.BadParameter: a usage error, which names the option.
    """
    for name in names:
        given = context.get_parameter_source(name)
        if given is not None and given.name != "DEFAULT":
            raise typer.BadParameter(why, param_hint=option_name(name))


def load_classifier(model: Path | None, **choice: Any) -> "Classifier":
    """Load a bundle, and print which.

    Raises:
        as `edgecnn.runtime.classifier.Classifier.load` does.
    """
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(default_bundle(model), **choice)
    note(classifier.about)
    return classifier
