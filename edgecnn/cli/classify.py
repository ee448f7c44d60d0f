"""`edgecnn classify`: the options; `classify_files` and `classify_stream` do the work."""

import functools
import sys

import typer

from edgecnn.cli.options import Model, check_choice, flag_names, load_classifier, refuse_options, with_flags
from edgecnn.device.stream import settings
from edgecnn.versions import processors

STREAM_OPTIONS = flag_names(
    settings.Camera, settings.Pace, settings.State, settings.Reaction, settings.Mqtt, settings.Metrics
)

HTTP_OPTIONS = flag_names(settings.Http)[1:]

MQTT_OPTIONS = (*flag_names(settings.Mqtt)[1:], "mqtt_forget")


@with_flags
def classify(
    context: typer.Context,
    *,
    source: list[str] | None = typer.Argument(
        None,
        metavar="[SOURCE]...",
        help="Image files, folders, globs, or - to read paths from standard input. Or one stream: /dev/video0, csi:1, "
        "rtsp://…, clip.mp4, exec:COMMAND, watch:DIR, folder:DIR, synthetic:.",
        show_default="none",
    ),
    camera: bool = typer.Option(
        False,
        "--camera",
        help="Find a camera and classify what it sees.",
        show_default="off",
        rich_help_panel=settings.Camera.heading,
    ),
    model: Model = None,
    engine: settings.Engine,
    decision: settings.Decision,
    seen: settings.Model,
    json: bool = typer.Option(False, "--json", help="Print one JSON line for each image.", show_default="off"),
    frames: settings.Camera,
    pace: settings.Pace,
    state: settings.State,
    reaction: settings.Reaction,
    mqtt: settings.Mqtt,
    mqtt_forget: bool = typer.Option(
        False,
        "--mqtt-forget",
        help="Remove the device from Home Assistant and from the broker, and exit.",
        show_default="off",
        rich_help_panel=settings.Mqtt.heading,
    ),
    http: settings.Http,
    metrics: settings.Metrics,
) -> None:
    """Classify images, or what a camera sees.

    Standard error names the bundle, engine and camera in use. Unreadable image files are reported and skipped; the exit code is then 22.
    Folders are classified on all processors, in order, unless the engine has threads or a GPU.

    If a camera is lost, edgecnn keeps trying to reopen it, forever unless --retry-for sets a limit. If it cannot be opened at the start,
    the exit code is 24. SIGTERM and Ctrl-C close the camera; the exit codes are 143 and 130. In a terminal the current result is redrawn in
    place. Elsewhere each change of state prints a line, or with --json each frame and event.

    \b
    Examples:
      edgecnn classify photo.jpg
      edgecnn classify photos/ 'more/*.png' --json --threshold 0.6
      find . -name '*.jpg' | edgecnn classify - --model cats.edgecnn
      edgecnn classify --camera --smooth 3 --on-change ./door.sh
      edgecnn classify --camera --region 0.4,0.2,0.3,0.5
      edgecnn classify rtsp://door.local/1 --max-fps 5 --json --keep kept
      edgecnn classify --camera --smooth 3 --mqtt mqtt://broker.local/door
    """
    from edgecnn.device.cameras import is_stream
    from edgecnn.runtime.engines import PROVIDERS

    if mqtt.address is None:
        refuse_options(context, MQTT_OPTIONS, "needs --mqtt ADDRESS.")
    elif mqtt_forget:
        from edgecnn.cli.classify_stream import forget_device

        if source or camera:
            raise typer.BadParameter(
                "only removes a device: give no source and no --camera.", param_hint="--mqtt-forget"
            )
        forget_device(mqtt)
        return
    if http.address is None:
        refuse_options(context, HTTP_OPTIONS, "needs --http [HOST:]PORT.")
    check_choice("--provider", engine.provider, PROVIDERS)
    streams = [text for text in source or () if is_stream(text)]
    if camera or streams:
        if len(source or ()) + camera > 1:
            raise typer.BadParameter("give one stream, or --camera, and nothing else.", param_hint="SOURCE")
    elif not source and http.address is None:
        raise typer.BadParameter(
            "name an image, a folder, a glob or a stream, - to read paths from standard input, or give --camera.",
            param_hint="SOURCE",
        )
    else:
        refuse_options(context, STREAM_OPTIONS, "is for streams and --camera, not for files.")
        if source:
            refuse_options(context, ("http",), "is for streams, for --camera or for no source, not for files.")

    load = functools.partial(load_classifier, model, **vars(engine), **vars(seen))
    if camera or streams:
        from edgecnn.cli.classify_stream import classify_stream

        chosen = settings.Settings(
            camera=frames,
            pace=pace,
            decision=decision,
            model=seen,
            state=state,
            reaction=reaction,
            mqtt=mqtt,
            http=http,
            metrics=metrics,
        )
        classify_stream(streams[0] if streams else None, chosen, load, json)
    elif not source:
        from edgecnn.cli.classify_stream import serve_api

        serve_api(settings.Settings(decision=decision, http=http), load)
    else:
        from edgecnn.cli.classify_files import classify_files

        # a fork does not take over an engine's threads, nor a GPU
        forks = sys.platform == "linux" and engine.num_threads == 1 and engine.provider != "cuda"
        classify_files(load(), source or (), decision, json, processors() if forks else 1)
