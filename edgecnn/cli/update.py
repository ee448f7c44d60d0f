"""`edgecnn update`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgecnn.cli.help import missing_extra
from edgecnn.cli.options import Json, check_choice, emit_json, note, option, refuse_options
from edgecnn.errors import EdgeCNNError, UpdateError
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.device.update.board import Board, UpdateOutcome


ACTIONS = {"status": ""}


def update(
    context: typer.Context,
    action: str | None = typer.Argument(
        None, metavar="[ACTION]", help="status; without it, look for a release", show_default="none"
    ),
    source: str | None = option(
        None,
        "Where the releases are: an address, https://…, or a folder, such as one on a stick.",
        "that of /etc/edgecnn/update.toml",
        None,
        "--from",
        metavar="URL|FOLDER",
    ),
    channel: str | None = option(
        None, "The channel of this board.", "that of /etc/edgecnn/update.toml", metavar="NAME"
    ),
    root: Path | None = option(
        None, "The root of trust, which decides whose signatures count.", "/etc/edgecnn/root.json", metavar="FILE"
    ),
    prefix: Path = option(Path("/"), "The folder of this board's files, such as DIR/etc/edgecnn.", True, metavar="DIR"),
    json: Json = False,
) -> None:
    """Fetch this board's next release, verify it, and put it in use.

    The server need not be trusted: a release counts if the keys of the root of trust have signed it, if it is not older than what this
    board has had, and if the metadata have not expired. The new model is then pending, as after edgecnn slot add --activate, and is rolled
    back if it does not prove itself. If anything fails, the model in use stays in use.

    status shows the last check: when it was, why it failed if it did, and the release in use.

    \b
    Examples:
      edgecnn update
      edgecnn update --from /media/stick/releases --channel door
      edgecnn update status
    """
    if action is not None:
        check_choice("ACTION", action, ACTIONS)
        refuse_options(context, ("source", "channel", "root"), "is for a check, not for status.")
    from edgecnn.device.update.board import CONFIG, Board, Options, note_failure, read_options, read_status

    board = Board(prefix=prefix)
    if action is None:
        options = Options(source=source or "", channel=channel or "")
        try:
            options = read_options(board.path(CONFIG), options)
            from edgecnn.device.update.run import update
        except (ModuleNotFoundError, UpdateError, OSError) as error:
            problem = missing_extra(error, "update") if isinstance(error, ModuleNotFoundError) else error
            if type(problem) is FileNotFoundError:  # requests, which python-tuf 5 imports, reads them on import
                certificates = (
                    "the machine's certificates are missing. On Debian: apt install --reinstall ca-certificates"
                )
                problem = UpdateError(f"python-tuf cannot be loaded, perhaps because {certificates}")
            if board.path(CONFIG).exists():
                note_failure(board, options, str(problem or error))
            note_unchanged(board)
            raise problem or error from None
        try:
            outcome = update(board, options, root)
        except EdgeCNNError:
            note_unchanged(board)
            raise
        if outcome.user == "root":
            note("root fetched the files: this machine has no user edgecnn-update")
        if not json:
            print(outcome_text(outcome))
            return
    found = read_status(board)
    if json:
        emit_json(found)
    elif found is None:
        print("this board has not checked for a release yet: edgecnn update")
    else:
        for line in lines_of(found):
            print(printable(line))


def note_unchanged(board: "Board") -> None:
    from edgecnn.device.slots.record import Slots
    from edgecnn.errors import SlotError

    slots = Slots()
    with contextlib.suppress(SlotError):
        slots = board.slots().read()
    if name := slots.current:
        note(f"still in use: {name[:12]} {slots.releases[name].name} serial {slots.releases[name].serial}")
    else:
        note("whatever release is in use here stays in use")


def outcome_text(outcome: "UpdateOutcome") -> str:
    entry = outcome.entry
    release = (
        f"{entry.sha256[:12]} {entry.name} serial {entry.terms.serial}, release {entry.terms.number}" if entry else ""
    )
    text = f"in use: {release}" if outcome.installed else f"{outcome.note}{f': {release}' if release else ''}"
    if held := outcome.held:
        text += f"\nrelease {held.terms.number}, {held.name} serial {held.terms.serial}, is held back: {outcome.why}"
    return text


def release_text(release: dict[str, Any]) -> str:
    return "{sha256:.12} {name} serial {serial}, release {number}".format_map(release)


def lines_of(found: dict[str, Any]) -> list[str]:
    release, in_use = found["release"], found["in_use"]
    return [
        f"from     {found['from']}, channel {found['channel']}, board {found['board']}",
        f"checked  {found['last_check']}: {found['reason'] or 'good'}",
        f"good     {found['last_good'] or 'never'}",
        f"release  {release_text(release) if release else 'none for this board'}",
        "in use   "
        + (
            "{sha256:.12} {name} serial {serial} {state}".format_map(in_use)
            if in_use
            else "none, or only root can read it"
        ),
        *(["clock    behind: the date is taken from the newest signed metadata"] if found["clock"] == "behind" else []),
        *(
            [f"held     {release_text(held)}, is not put in use here: {held['reason']}"]
            if (held := found.get("held_back"))
            else []
        ),
        *(f"bad      {name[:12]}: {why}" for name, why in found["bad"].items()),
    ]
