"""`edgecnn review`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.options import Json, checked, emit_json, emit_line, note, option, with_flags
from edgecnn.device.stream import settings
from edgecnn.labels import plural

if TYPE_CHECKING:
    from edgecnn.device.address import Listener
    from edgecnn.device.review import Reviewing


BOARD = "A board's pictures"

EVERY = 100  # pictures between two progress lines


@with_flags
def review(
    *,
    source: str = typer.Argument(
        ...,
        metavar="FOLDER|HOST",
        help="A folder that --keep has filled, or one of any photos, or a board, named as for ssh: NAME, USER@NAME, "
        "ssh://USER@NAME:PORT.",
    ),
    into: Path = option(
        ..., "The photos: labelled pictures go to PHOTOS/CLASS.", False, None, "--into", metavar="PHOTOS"
    ),
    remote_folder: str | None = option(None, "The folder on the board.", "that of its service", BOARD, metavar="DIR"),
    address: str | None = option(
        None,
        "Serve the page on this port, only to this machine unless you name HOST.",
        "any free port of this machine",
        settings.Http.heading,
        "--http",
        metavar="[HOST:]PORT",
    ),
    token_file: Annotated[Path | None, settings.Http] = None,
    open: Annotated[bool, settings.Http] = False,
    hosts: Annotated[str | None, settings.Http] = None,
    browser: bool = option(False, "Open the page in a browser.", "off", None, "--browser"),
    json: Json = False,
) -> None:
    """Label kept pictures or any photos, and add them to yours.

    The page shows one picture after the other, or several that look alike: keys 1 to 9 or a press name the class. Each answer is on disk
    before the next picture is shown. Ctrl-C ends the review; the next review continues with what is left.

    A board's pictures are first fetched over ssh, into PHOTOS-kept next to the photos; those already there are not fetched again. Answers
    that people gave on the board's own page, /review, come along.

    A folder that no board has filled works too: each of its photos is a question, without the model's guess.

    \b
    Examples:
      edgecnn review kept/ --into photos/
      edgecnn review pi@door.local --into photos/
      edgecnn review pi@door.local --into photos/ --remote-folder /srv/kept --browser
    """
    import secrets

    from edgecnn.boards import LABELS_FILE
    from edgecnn.cli.classify_stream import require_packages
    from edgecnn.device.address import open_listener
    from edgecnn.device.keep.folder import kept_pictures
    from edgecnn.device.review import Journal, Photos, Plain, Reviewing
    from edgecnn.errors import DatasetError, OutputError
    from edgecnn.files import folder_lock, output_errors

    require_packages("starlette", "uvicorn")
    options = settings.Http(address=address or "127.0.0.1:0", token_file=token_file, open=open, hosts=hosts)
    door = checked("--http", open_listener, options)
    url = f"{door.url}review"
    if not (door.token or open):
        door = door._replace(token=secrets.token_urlsafe())
        url += f"#token={door.token}"  # which browsers do not send
    with output_errors(into):
        if not into.exists():
            note(
                f"{into} is a new folder: nothing is labelled there yet. If your photos are elsewhere, press Ctrl-C, and name their folder"
            )
        into.mkdir(parents=True, exist_ok=True)
    busy = OutputError(f"another review into {into} is running. Wait until it ends, or end it.")
    with folder_lock(into, busy):
        folder, board, plain = located(source, into, remote_folder)
        photos = Photos(into, folder, board)
        listed = Plain(into) if plain and not kept_pictures(folder) else kept_pictures
        reviewing = Reviewing(folder, photos, into=str(into), listed=listed)
        if not reviewing.pictures:
            raise DatasetError(
                f"{folder} contains no kept pictures and no photos. edgecnn classify --keep {folder} or the service's keep writes "
                "pictures."
            )
        photos.finish(reviewing.pictures.values())
        taken = photos.take(Journal(folder / LABELS_FILE).decided, reviewing.pictures.values())
        if taken:
            note(f"{board}: {plural(taken, 'picture')} labelled on its own page")
        serve(door, url, reviewing, browser)
        report(reviewing, taken, json)


def located(source: str, into: Path, remote_folder: str | None) -> tuple[Path, str, bool]:
    """Return the folder of pictures, fetched first if a board has them, the board's name, and whether any photos in it count."""
    from edgecnn.fleet.ssh import check_host

    folder = Path(source)
    if folder.is_dir() or "/" in source.removeprefix("ssh://"):
        if remote_folder is not None:
            raise typer.BadParameter("is for a board: HOST, not FOLDER.", param_hint="--remote-folder")
        return folder, folder.resolve().name, True
    host = checked("FOLDER|HOST", check_host, source)
    name = host.removeprefix("ssh://").rpartition("@")[2]
    fetched = into.resolve().with_name(f"{into.resolve().name}-kept") / name
    fetch_from_board(host, remote_folder, fetched)
    return fetched, name, False


def fetch_from_board(host: str, remote: str | None, folder: Path) -> None:
    from edgecnn.errors import PartialFailure
    from edgecnn.fleet.ssh import BoardError, Sessions
    from edgecnn.fleet.status import fetch_kept, remote_folder

    def progress(done: int) -> None:
        if done % EVERY == 0:
            note(f"{host}: {plural(done, 'picture')}")

    try:
        with Sessions() as sessions, sessions.connect(host) as board:
            done = fetch_kept(board, remote or remote_folder(board), folder, progress)
    except BoardError as error:
        named = host if "@" in host else f"no folder {host} exists, and as a board it failed"
        go_on = f"Run the same command to continue, or edgecnn review {folder} for the pictures fetched so far."
        raise PartialFailure(f"{named}: {error}. {go_on if folder.exists() else ''}".rstrip()) from None
    note(f"{host}: {plural(done, 'new picture')} in {folder}")


def serve(door: "Listener", url: str, reviewing: "Reviewing", browser: bool) -> None:
    """Serve until Ctrl-C; other signals are raised as Stopped."""
    import asyncio
    import signal
    import tempfile
    import webbrowser

    from edgecnn.device.http.access import AccessControl
    from edgecnn.device.http.serve import serve_review
    from edgecnn.device.stream.loop import Stopped

    note(f"page: {url}")
    with tempfile.NamedTemporaryFile("w", suffix=".html") as page:
        if browser:  # every user of this machine can read a program's arguments, but only this user the file
            page.write(f'<meta http-equiv="refresh" content="0; url={url}">')
            page.flush()
            webbrowser.open(f"file://{page.name}")
        try:
            asyncio.run(serve_review(AccessControl(door.token, door.hosts, door.address[1]), door.listener, reviewing))
        except Stopped as stopped:
            if stopped.code != Stopped(signal.SIGINT).code:
                raise


def report(reviewing: "Reviewing", taken: int, json: bool) -> None:
    document, field = reviewing.document(), reviewing.field()
    counts = {name: document[name] for name in ("labelled", "none", "skipped", "left", "unreadable")}
    if json:
        emit_json({"from_board": taken, **counts, "field": field})
        return
    text = "{labelled:,} labelled, {none:,} none of these, {skipped:,} skipped; {left:,} left, {unreadable:,} damaged"
    emit_line(text.format(**counts))
    if field:
        emit_line(field.text)
