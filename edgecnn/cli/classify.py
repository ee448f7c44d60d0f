"""`edgecnn classify`: files here, streams in `edgecnn.cli.stream`."""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecnn.cli.console import emit_line, note
from edgecnn.cli.options import (
    EngineName,
    Fps,
    Model,
    Provider,
    RetryFor,
    Rotate,
    Size,
    WarmUp,
    check_choice,
    option_name,
)
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier, Result

STREAM_OPTIONS = (
    "size", "fps", "rotate", "warm_up", "retry_for", "max_age", "max_fps", "duration", "smooth", "on_change", "save_uncertain",
    "save_margin", "save_cap",
)  # fmt: skip
"""Parameters of `classify` that say something about streams alone."""


def classify(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Image files, folders, globs, or - for a list of paths on standard input. Or one stream: /dev/video0, "
            "rtsp://…, clip.mp4, exec:COMMAND, watch:DIR, synthetic:.",
            show_default="none",
        ),
    ] = None,
    camera: Annotated[
        bool, typer.Option("--camera", help="Find a camera and classify what it sees.", show_default="off")
    ] = False,
    model: Model = None,
    engine: EngineName = None,
    provider: Provider = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="int8, float32, float16 or int16x8.", show_default="the bundle's choice for the engine"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Threads of one inference.", show_default="as tuned, else 1")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes an image.")] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Abstain where the best score is below.", show_default="the bundle's, else 0"
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Abstain where the second score is nearer to the best.")
    ] = 0.0,
    fit: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="crop, letterbox or stretch images.", show_default="the bundle's"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line an image.", show_default="off")] = False,
    size: Size = "640x480",
    fps: Fps = 0.0,
    rotate: Rotate = 0,
    warm_up: WarmUp = None,
    retry_for: RetryFor = None,
    max_age: Annotated[
        float, typer.Option(min=1.0, metavar="MS", help="Drop a camera's frames that are older.")
    ] = 1000.0,
    max_fps: Annotated[
        float, typer.Option(min=0.0, metavar="N", help="Most frames to classify a second; 0 for no limit.")
    ] = 0.0,
    duration: Annotated[float, typer.Option(min=0.0, metavar="S", help="End after S seconds; 0 for no end.")] = 0.0,
    smooth: Annotated[
        str,
        typer.Option(
            metavar="N", help="A decision is the state after N frames in a row, or as majority:N of the last."
        ),
    ] = "1",
    on_change: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run CMD, without a shell, when the state changes. EDGECNN_STATE, EDGECNN_PREVIOUS and EDGECNN_SCORE are "
            "in its environment.",
            show_default="none",
        ),
    ] = None,
    save_uncertain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep unsure frames as DIR/GUESS/*, one a second at most.", show_default="none"
        ),
    ] = None,
    save_margin: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Unsure is an abstention, or a best score that leads the second by less than this."
        ),
    ] = 0.5,
    save_cap: Annotated[float, typer.Option(min=0.1, metavar="MIB", help="Most to keep; the oldest go first.")] = 100.0,
) -> None:
    """Classify images, or what a camera sees.

    Which bundle, engine and camera were taken stands on standard error. An image file that cannot be read is reported and
    skipped; the exit code is then 22.

    A camera that is lost is opened again, for ever unless --retry-for says otherwise; one that cannot be opened at the start
    is an error, exit code 24. SIGTERM and Ctrl-C close it; the exit codes are 143 and 130. In a terminal the result is drawn
    in place; elsewhere a line is printed for each change of the state, or with --json for each frame and event.

    \b
    Examples:
      edgecnn classify photo.jpg
      edgecnn classify photos/ 'more/*.png' --json --threshold 0.6
      find . -name '*.jpg' | edgecnn classify - --model cats.edgecnn
      edgecnn classify --camera --smooth 3 --on-change ./door.sh
      edgecnn classify rtsp://door.local/1 --max-fps 5 --json --save-uncertain unsure
    """
    from edgecnn.device.cameras import is_stream
    from edgecnn.runtime.engines import PROVIDERS

    check_choice("--provider", provider, PROVIDERS)
    check_choice("--fit", fit, ("crop", "letterbox", "stretch"))
    streams = [text for text in source or () if is_stream(text)]
    if camera or streams:
        if len(source or ()) + camera > 1:
            raise typer.BadParameter("a stream, or --camera, stands alone.", param_hint="SOURCE")
    elif not source:
        raise typer.BadParameter(
            "name an image, folder, glob or stream, - to read a list of paths, or give --camera.", param_hint="SOURCE"
        )
    else:
        refuse_stream_options(context)

    load = functools.partial(
        load_classifier, model, engine=engine, provider=provider, precision=precision, num_threads=threads
    )
    if camera or streams:
        from edgecnn.cli.stream import StreamOptions, classify_stream

        options = StreamOptions(
            source=streams[0] if streams else None, fit=fit, size=size, fps=fps, rotate=rotate, warm_up=warm_up,
            retry_for=retry_for, top_k=top_k, threshold=threshold, margin=margin, json=json, max_age=max_age,
            max_fps=max_fps, duration=duration, smooth=smooth, on_change=on_change, save_uncertain=save_uncertain,
            save_margin=save_margin, save_cap=save_cap,
        )  # fmt: skip
        classify_stream(options, load)
        return

    from edgecnn.device.stream.files import classify_sources
    from edgecnn.errors import PartialFailure

    classifier = load()
    if json:
        from edgecnn.device.stream.lines import error_line, file_line
    count = failed = 0
    for outcome in classify_sources(
        classifier, source or (), sys.stdin.buffer, top_k=top_k, threshold=threshold, margin=margin, fit=fit, note=note
    ):
        count += 1
        failed += outcome.error is not None
        result = outcome.result
        if result is None:
            if json:
                emit_line(error_line(outcome.source, str(outcome.error)))
            else:
                note(f"{printable(outcome.source)}: {outcome.error}")
        elif json:
            emit_line(file_line(outcome.source, result, (classifier.name, classifier.model_sha256)))
        else:
            emit_line(text_line(outcome.source, result))
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be classified; each is named above.")
    if not count:
        raise PartialFailure("standard input named no image.")


def refuse_stream_options(context: typer.Context) -> None:
    """Refuse what says something about streams alone.

    Raises:
        typer.BadParameter: a usage error, which names the option.
    """
    for name in STREAM_OPTIONS:
        given = context.get_parameter_source(name)
        if given is not None and given.name != "DEFAULT":
            raise typer.BadParameter("is for streams and --camera, not for files.", param_hint=option_name(name))


def load_classifier(model: Path | None, **choice: Any) -> "Classifier":
    """Load a bundle and say which.

    Raises:
        as `edgecnn.runtime.classifier.Classifier.load` does.
    """
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(model, **choice)
    note(classifier.about)
    return classifier


def text_line(source: str, result: "Result") -> str:
    """Return one image's result for people: the source, then the classes with their scores, or the decision to abstain."""
    if result.reason:
        return f"{printable(source)}: abstain"
    return f"{printable(source)}: {', '.join(f'{printable(item.label)} {item.score:.2%}' for item in result.top)}"
