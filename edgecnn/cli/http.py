"""The HTTP options of `edgecnn classify`: the address and the server of the page and the API."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecnn.cli.console import note
from edgecnn.cli.options import checked, note_if_shared
from edgecnn.device.http.door import Door, open_door

if TYPE_CHECKING:
    from edgecnn.device.http.live import Live
    from edgecnn.device.http.textfile import MetricsFile
    from edgecnn.device.keep.keeper import Keeper
    from edgecnn.device.stream.settings import Http, Settings
    from edgecnn.runtime.classifier import Classifier


def listen(options: "Http", say: Callable[[str], object] = note, warn: Callable[[str], object] = note) -> Door:
    """Open the port and print the page's address; a usage error for invalid options, MissingExtraError without the packages."""
    require_packages("starlette", "uvicorn", "prometheus_client")
    if options.token_file is not None:
        note_if_shared(options.token_file)
    door = checked("--http", open_door, options)
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
    door: Door,
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
    from edgecnn.device.http.live import Live
    from edgecnn.device.http.opening import make_opening

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
    from edgecnn.device.http.opening import make_opening
    from edgecnn.device.http.textfile import MetricsFile

    opening = make_opening(None, settings, classifier, {}, camera=source or "")
    return MetricsFile(opening, (classifier.name, classifier.model_sha256), classifier.region)


def serve_api(settings: "Settings", load: "functools.partial[Classifier]") -> None:
    """Serve without a camera until a signal arrives (Stopped)."""
    import asyncio

    from edgecnn.device.http.opening import make_opening
    from edgecnn.device.http.serve import serve_api as serve_without_camera

    door = listen(settings.http)
    classifier = load()
    opening = make_opening(door, settings, classifier, load.keywords)
    asyncio.run(serve_without_camera(opening, door.listener, classifier))
